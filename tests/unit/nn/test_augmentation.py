"""Random shifts: padding and cropping give the same, in every layout and type."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from habilis.nn.augmentation import draw_offsets, shift_images


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pad_and_crop(images, offsets, pad):
    """Shift float images `[B, C, H, W]` by the definition."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    tops, lefts = (pad - offsets).unbind(1)
    return torch.stack(
        [x[:, t : t + height, s : s + width] for x, t, s in zip(padded, tops.tolist(), lefts.tolist(), strict=True)]
    )


@pytest.mark.parametrize("channel_axis", [-1, -3])
@pytest.mark.parametrize("pad", [1, 4])
def test_shifting_is_padding_and_cropping(generator, channel_axis, pad):
    images = torch.randint(256, (32, 6, 9, 7), generator=generator, dtype=torch.uint8)
    offsets = draw_offsets(32, generator, pad)
    expected = pad_and_crop(images.float(), offsets, pad).to(torch.uint8)
    given = images.movedim(1, channel_axis).contiguous()
    shifted = shift_images(given, offsets, channel_axis)
    assert shifted.dtype == torch.uint8
    assert shifted.shape == given.shape
    assert torch.equal(shifted.movedim(channel_axis, 1), expected)


def test_an_offset_says_down_and_right():
    image = torch.arange(9).view(1, 3, 3, 1)
    assert torch.equal(shift_images(image, torch.tensor([[0, 0]])), image)
    moved = shift_images(image, torch.tensor([[1, -1]]))[0, :, :, 0]
    assert moved.tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]


def test_offsets_are_uniform_and_independent(generator):
    offsets = draw_offsets(8100, generator)
    assert offsets.dtype == torch.int64
    counts = torch.zeros(9, 9).index_put_(tuple((offsets + 4).T), torch.tensor(1.0), accumulate=True)
    # 100 expected in each of 81 cells: chi-squared of 80 degrees of freedom, of deviation 12.6
    assert 80 - 4 * 12.6 < float(((counts - 100) ** 2 / 100).sum()) < 80 + 4 * 12.6
