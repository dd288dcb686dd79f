"""Batches as the network sees them: normalised, with a client's own order of pixels, augmented."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.training.samples import Samples, augmentation_draws
from tests.support.experiments import CPU

HEIGHT, WIDTH = 6, 8
INDEX = np.array([3, 0, 3, 7])


def images(count: int = 10, channels: int = 3) -> NDArray[np.uint8]:
    """[count, channels, 6, 8], all values of an image different and not zero."""
    rng = np.random.default_rng(0)
    values = [rng.permutation(255)[: channels * HEIGHT * WIDTH] + 1 for _ in range(count)]
    return np.array(values, dtype=np.uint8).reshape(count, channels, HEIGHT, WIDTH)


def samples(x: NDArray, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> Samples:
    return Samples(x, np.arange(len(x)) % 4, mean, std, CPU)


def draws_of(count: int) -> Tensor:
    """[count, 3] random words."""
    bits = randomness.hashed_bits(randomness.keys(0, "augmentation 0", 1, [0]), 3 * count).reshape(count, 3)
    return torch.from_numpy(augmentation_draws(bits))


def grey(x: Tensor) -> NDArray[np.uint8]:
    """The stored values of images that are only scaled."""
    values = (x * 255).round()
    torch.testing.assert_close(values, x * 255, rtol=0, atol=1e-3)
    return values.numpy().astype(np.uint8)


def test_normalisation_is_torchvisions() -> None:
    """Oracle: torchvision's to_tensor and Normalize, for all 256 values in three channels."""
    from torchvision.transforms import functional

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    expected = functional.normalize(torch.from_numpy(x).float() / 255, list(mean), list(std))
    torch.testing.assert_close(samples(x, mean, std).batch(np.array([0])).x, expected, rtol=0, atol=1e-6)


def test_images_without_normalisation_are_scaled() -> None:
    """Oracle: x / 255."""
    x = images()
    batch = samples(x).batch(INDEX)
    torch.testing.assert_close(batch.x, torch.from_numpy(x[INDEX]).float() / 255, rtol=0, atol=1e-7)


def test_a_batch_holds_what_was_asked_for() -> None:
    """Oracle: NumPy's indexing; a sample may come twice, and the set stays as it was."""
    x = images()
    everything = samples(x)
    for _ in range(2):
        batch = everything.batch(INDEX)
        assert len(batch) == 4
        assert batch.index.tolist() == INDEX.tolist()
        assert batch.y.tolist() == [3, 0, 3, 3]
        np.testing.assert_array_equal(grey(batch.x), x[INDEX])


@pytest.mark.parametrize("in_memory", ["channels_first", "channels_last"])
def test_images_are_channels_last(in_memory: str) -> None:
    """Oracle: PyTorch's word on the memory format, and the same values from either order in memory."""
    x = images()
    if in_memory == "channels_last":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    batch = samples(x).batch(INDEX)
    assert batch.x.shape == (4, 3, HEIGHT, WIDTH)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(grey(batch.x), x[INDEX])


def test_features_and_tokens_are_left_alone() -> None:
    """Oracle: NumPy's indexing; float32 bit for bit, tokens as int64."""
    features = np.random.default_rng(0).standard_normal((10, 7)).astype(np.float32)
    np.testing.assert_array_equal(samples(features).batch(INDEX).x.numpy(), features[INDEX])
    tokens = np.arange(50, dtype=np.int32).reshape(10, 5)
    batch = samples(tokens).batch(INDEX)
    assert batch.x.dtype == torch.int64
    np.testing.assert_array_equal(batch.x.numpy(), tokens[INDEX])


# The order of pixels


def test_pixels_in_another_order() -> None:
    """Oracle: place i shows pixel order[i], of every channel alike."""
    x, order = images(), np.random.default_rng(1).permutation(HEIGHT * WIDTH)
    everything = samples(x)
    assert everything.pixels == HEIGHT * WIDTH
    expected = x.reshape(10, 3, -1)[INDEX][:, :, order].reshape(4, 3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(grey(everything.batch(INDEX, torch.from_numpy(order)).x), expected)


def test_an_order_for_each_sample() -> None:
    """Oracle: one sample at a time."""
    everything, rng = samples(images()), np.random.default_rng(1)
    orders = torch.from_numpy(np.array([rng.permutation(HEIGHT * WIDTH) for _ in INDEX]))
    together = everything.batch(INDEX, orders).x
    for number, (index, order) in enumerate(zip(INDEX, orders, strict=True)):
        assert torch.equal(together[number], everything.batch(np.array([index]), order).x[0])


def test_features_in_another_order() -> None:
    """Oracle: NumPy's indexing."""
    features = np.random.default_rng(0).standard_normal((10, 7)).astype(np.float32)
    order = np.array([4, 0, 6, 1, 2, 5, 3])
    everything = samples(features)
    assert everything.pixels == 7
    np.testing.assert_array_equal(
        everything.batch(INDEX, torch.from_numpy(order)).x.numpy(), features[INDEX][:, order]
    )


# Augmentation


def crops(image: NDArray[np.uint8], kind: str) -> dict[bytes, tuple[int, int, bool]]:
    """Every picture that may become of an image [C, H, W], made one by one; its bytes -> top, left, mirrored."""
    frame = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    found = {}
    places = itertools.product(range(9), range(9)) if kind == "crop_flip" else [(4, 4)]
    for top, left in places:
        cut = frame[:, top : top + HEIGHT, left : left + WIDTH]
        found[cut.tobytes()] = (top, left, False)
        found[cut[:, :, ::-1].tobytes()] = (top, left, True)
    return found


@pytest.mark.parametrize(("kind", "count"), [("flip", 2), ("crop_flip", 162)])
def test_augmentation(kind: str, count: int) -> None:
    """Oracle: all pictures made by padding, cutting and mirroring one at a time; chi-square over them (4 sigma)."""
    x = images(1)
    made = crops(x[0], kind)
    assert len(made) == count
    draws = 100 * count
    batch = samples(x).batch(np.zeros(draws, int), augmentation=kind, draws=draws_of(draws))  # type: ignore[arg-type]
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    seen = [made[picture.tobytes()] for picture in grey(batch.x)]  # KeyError: a picture that may not be
    frequencies = np.array([seen.count(picture) for picture in made.values()])
    assert ((frequencies - 100) ** 2 / 100).sum() < count - 1 + 4 * np.sqrt(2 * (count - 1))


def test_augmentation_of_a_sample_depends_on_its_bits_alone() -> None:
    """Oracle: one sample at a time."""
    everything, words = samples(images(), (0.5,) * 3, (0.25,) * 3), draws_of(4)
    together = everything.batch(INDEX, augmentation="crop_flip", draws=words)
    assert together.y.tolist() == [3, 0, 3, 3]
    for number, index in enumerate(INDEX):
        one = everything.batch(INDEX[number : number + 1], augmentation="crop_flip", draws=words[number : number + 1])
        assert torch.equal(one.x[0], together.x[number]), index
    assert not torch.equal(together.x[0], together.x[2]), "the same sample, drawn for twice"


def test_the_frame_is_black_before_normalisation() -> None:
    """Oracle: a white image, normalised: inside (1 - mean) / std, outside (0 - mean) / std."""
    white = np.full((1, 1, HEIGHT, WIDTH), 255, np.uint8)
    batch = samples(white, (0.25,), (0.5,)).batch(np.zeros(200, int), augmentation="crop_flip", draws=draws_of(200))
    assert sorted(set(batch.x.flatten().tolist())) == pytest.approx([-0.5, 1.5])
