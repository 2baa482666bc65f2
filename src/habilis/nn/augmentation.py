"""Random shifts of images (DrQ-v2, Yarats et al. 2022): what control from pixels needs most to learn from a replay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from habilis.core.config import require
from habilis.core.specs import ObsGroup

PAD = 4


def require_room_to_move(groups: Iterable[ObsGroup], pad: int) -> None:
    """Raise `ConfigError` unless something of each image is left in sight, however far it moves."""
    for group in groups:
        height, width = group.shape[:2] if group.channel_axis == -1 else group.shape[-2:]
        require(pad < min(height, width), f"pad must be less than the {height} x {width} pixels of an image, got {pad}")


def draw_offsets(rows: int, generator: torch.Generator, pad: int = PAD) -> Tensor:
    """Draw how far each of `rows` images moves down and to the right: `[rows, 2]` int64, uniform in -pad to pad."""
    return torch.randint(-pad, pad + 1, (rows, 2), generator=generator, device=generator.device)


def shift_images(images: Tensor, offsets: Tensor, channel_axis: int = -1) -> Tensor:
    """Move each image; what comes into it repeats its border.

    The same as padding by repetition and cropping, and without a float: DrQ-v2's interpolation is at whole pixels too.

    Args:
        images: `[B, H, W, C]` or `[B, C, H, W]`, of any type; frames of a stack are channels and move together.
        offsets: `[B, 2]` of `draw_offsets`: pixels down and to the right.
        channel_axis: -1 or -3, as `ObsGroup.channel_axis`.

    Returns:
        As `images`.
    """
    last = images.movedim(channel_axis, -1).contiguous()
    height, width = last.shape[1:3]
    # a moved image shows at each place what was the offset before it, or the border where that is outside
    rows = (torch.arange(height, device=images.device) - offsets[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - offsets[:, 1:]).clamp(0, width - 1)
    tops = torch.arange(len(images), device=images.device).view(-1, 1, 1) * height
    # one index for each pixel, whose channels are copied as one: a quarter of the time of three indices
    places = ((tops + rows.unsqueeze(2)) * width + columns.unsqueeze(1)).flatten()
    return last.flatten(0, 2).index_select(0, places).view(last.shape).movedim(-1, channel_axis)
