"""Units of permuted copies, exact and noisy, find back to their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpi.training.matching import Matching, assign
from tests.training.test_symmetry import MODELS, cycle, flat

LARGE = {"resnet group", "vgg", "mobilenet fusion"}  # whose like are among the others
CASES = [*((name, True) for name in sorted(MODELS.keys() - LARGE)), ("lenet", False)]


@pytest.mark.parametrize(("name", "layer_by_layer"), CASES)
def test_permuted_copies_are_aligned_exactly(name: str, layer_by_layer: bool) -> None:
    """Oracle: the original, bit for bit, layer by layer; its plain mean with a copy is far off."""
    model, shape, _ = MODELS[name]
    made, groups = flat(model, shape)
    matching, rng = Matching(made.layout, groups, layer_by_layer), np.random.default_rng(0)
    original, copy = made.weights[0].clone(), made.weights[0].clone()
    for group in groups:
        matching.permute(copy, group, cycle(group.size, rng))
    assert ((original + copy) / 2 - original).abs().max() > 0.05
    count = np.zeros(made.layout.size, dtype=int)  # of the layers that have a column
    for layer in matching.layers:
        matching.align(copy, original, layer)
        assert torch.equal(copy[layer.columns], original[layer.columns])
        count[layer.columns] += 1
        left = np.zeros_like(count)
        for run in layer.rest:
            left[run] += 1
        trained = slice(made.layout.parameters)
        np.testing.assert_array_equal(count[trained] + left[trained], 1)
    assert torch.equal(copy, original)
    np.testing.assert_array_equal(np.flatnonzero(count == 0), matching.outputs)
    assert count.max() == 1
    assert len(matching.outputs) == made.layout.segments["head"].stop


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_noisy_copies_are_aligned(name: str) -> None:
    """Oracle: the noise, which is all that is left of the difference between the mean of copies and the original.

    Noise of 0.05 hides the units of a wide layer whose weights are not larger, so there the copies have less.
    """
    model, shape, _ = MODELS[name]
    made, groups = flat(model, shape)
    matching, rng, original = Matching(made.layout, groups, False), np.random.default_rng(0), made.weights[0].clone()
    amount = 0.05 if name == "mlp" else 0.005
    copies = []
    for seed in range(4):
        noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(seed)) * amount
        copy = original + noise
        for group in groups:
            matching.permute(copy, group, cycle(group.size, rng))
        matching.align(copy, original, matching.layers[0])
        assert torch.equal(copy, original + noise)
        copies.append(copy)
    assert (torch.stack(copies).mean(0) - original).abs().max() < 3.5 * amount


def test_cost_is_the_squared_distance() -> None:
    """Oracle: by loops over units, of what makes them: for the second layer with the first one in order."""
    made, groups = flat(*MODELS["mlp"][:2])
    other, _ = flat(*MODELS["mlp"][:2], seed=4)
    matching = Matching(made.layout, groups, True)
    mine, theirs = made.layout.views(made.weights[0]), made.layout.views(other.weights[0])
    for group, layer in zip(groups, ("extractor.1", "extractor.4"), strict=True):
        cost = matching.cost(group, made.weights[0], other.weights[0])
        for i in range(group.size):
            for j in range(group.size):
                distance = sum(
                    (mine[f"{layer}.{part}"][i] - theirs[f"{layer}.{part}"][j]).square().sum()
                    - theirs[f"{layer}.{part}"][j].square().sum()
                    for part in ("weight", "bias")
                )
                assert cost[i, j] == pytest.approx(float(distance), rel=1e-4, abs=1e-4)


def test_assignment() -> None:
    """Oracle: by hand; the nearest for each by itself would be column 0 twice."""
    assert assign(np.array([[1.0, 2.0], [0.0, 5.0]], np.float32)).tolist() == [1, 0]


def test_what_has_diverged_stays_as_it_is() -> None:
    """Oracle: its bits, so that the mean finds what is not finite where it was."""
    made, groups = flat(*MODELS["mlp"][:2])
    matching, weights = Matching(made.layout, groups, False), made.weights[0].flip(0)
    weights[3:700:9] = torch.tensor(torch.nan)
    kept = weights.clone()
    matching.align(weights, made.weights[0], matching.layers[0])
    torch.testing.assert_close(weights, kept, rtol=0, atol=0, equal_nan=True)
