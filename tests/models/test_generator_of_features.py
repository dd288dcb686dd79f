"""Generators of features: the papers' tables, and what they make."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fedmpi.errors import BadInput
from fedmpi.models.generators.features import FeatureGenerator


@pytest.mark.parametrize(
    ("generator", "features", "classes", "parameters"),
    [
        (FeatureGenerator(), 512, 10, 143_104),
        # FedFTG's Table 1(b), then 2(b) for images of 112x112 and 64x64.
        (FeatureGenerator(100, 4096, (8192,)), 512, 10, 71_803_392),
        (FeatureGenerator(256, 4096, (8192,)), 512, 100, 72_811_008),
        (FeatureGenerator(256, 112**2, (112**2,) * 2), 512, 11, 481_978_624),
        (FeatureGenerator(256, 64**2, (64**2,) * 2), 512, 200, 54_346_240),
    ],
)
def test_parameter_counts(generator: FeatureGenerator, features: int, classes: int, parameters: int) -> None:
    """Oracle: by hand, of a layer a x b + b and of a normalisation 2 b."""
    with torch.device("meta"):
        module = generator.build((features,), classes)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    sizes, branch = [generator.noise + classes], generator.branch
    by_hand = 0
    if branch:
        by_hand = (generator.noise + 1 + classes + 1) * branch + 4 * branch
        sizes = [2 * branch]
    sizes += [*generator.hidden, features]
    by_hand += sum((a + 1) * b for a, b in pairwise(sizes)) + 2 * sum(generator.hidden)
    assert by_hand == parameters


@pytest.mark.parametrize("generator", [FeatureGenerator(5), FeatureGenerator(5, 7, (9, 8))])
def test_what_it_makes(generator: FeatureGenerator) -> None:
    """Oracle: the shape; what it makes depends on the noise and on the label, and in evaluation on nothing else."""
    torch.manual_seed(0)
    module = generator.build((6,), 3).eval()
    noise, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 2])
    with torch.no_grad():
        made = module(noise, labels)
        assert made.shape == (4, 6)
        torch.testing.assert_close(module(noise[:1], labels[:1]), made[:1])
        assert not torch.allclose(module(noise, labels.flip(0)), made)
        assert not torch.allclose(module(noise.flip(0), labels), made)


def test_what_cannot_be() -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=r"branch = 0: must be at least 1"):
        FeatureGenerator(branch=0)
    with pytest.raises(BadInput, match=r"hidden = \[4, 0\]: must be widths of at least 1"):
        FeatureGenerator(hidden=(4, 0))
    with pytest.raises(BadInput, match=r"FeatureGenerator: makes features, not samples of shape \(3, 32, 32\)"):
        FeatureGenerator().build((3, 32, 32), 10)
