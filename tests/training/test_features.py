"""Features of the clients' training samples: what each client's network makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpi.training.flat import FlatModel
from tests.support.experiments import CPU, SEED
from tests.training.test_sidebyside import MODELS, SIZES, Both, block


@pytest.mark.parametrize("model", ["mlp batch", "lenet batch"])
def test_a_model_for_each_client(model: str) -> None:
    """Oracle: the networks in PyTorch in evaluation mode; zeros beyond a client's samples, and no weight changed."""
    both = Both(MODELS[model], permuted=True)
    trainer, clients = both.plain, [6, 0, 7]
    models = both.start + 0.1 * torch.rand(3, both.start.shape[1], generator=torch.Generator().manual_seed(1))
    before = trainer.model.weights.clone()
    found = trainer.features(block(clients, {}), models)
    assert torch.equal(trainer.model.weights, before)
    assert found.shape == (3, max(SIZES), *trainer.feature_shape)
    for client, weights, rows in zip(clients, models, found, strict=True):
        torch.manual_seed(SEED)
        flat = FlatModel(MODELS[model].build((3, 8, 8), 10), CPU)
        flat.load(weights)
        shard, order = trainer._shards[client], trainer._pixels(client)
        with torch.no_grad():
            expected = flat.module.eval().get_submodule("extractor")(trainer.samples.batch(shard, order).x)
        torch.testing.assert_close(rows[: len(shard)], expected, rtol=1e-5, atol=1e-5)
        assert not rows[len(shard) :].any()


@pytest.mark.parametrize("model", ["mlp batch", "lenet batch"])
def test_one_model_for_all(model: str) -> None:
    """Oracle: the same model given for each client, bit for bit."""
    both = Both(MODELS[model])
    everyone = block(list(range(len(SIZES))), {})
    found = both.plain.features(everyone, both.start[0])
    assert torch.equal(found, both.plain.features(everyone, both.start.repeat(len(SIZES), 1)))
    assert np.isfinite(found.numpy()).all()
