"""Images that a learner sees moved by a few pixels at random (Yarats et al. 2022, DrQ-v2, arXiv 2107.09645).

With each batch out of replay every image of what was observed, and of what followed, moves by an offset of its own. A
critic that sees the same scene at many places in the picture cannot learn it by heart from a few thousand steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from habilis.core.batches import VALID, TransitionBatch
from habilis.core.config import coerce_fields, require_positive
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.types import Metrics, Obs, State
from habilis.nn.augmentation import PAD, draw_offsets, require_room_to_move, shift_images


@dataclass(frozen=True, kw_only=True)
class RandomShiftConfig:
    """How far images move."""

    pad: int = PAD
    """Most pixels in each direction, drawn uniformly."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require_positive(self, "pad")


class RandomShift:
    """Moves the images of batches; what learns from windows sees each of them moved as one.

    Args:
        config: how far.
        policy: which learns; its `spec` says what is an image.
        streams: the run's random streams.

    Raises:
        ConfigError: nothing that is observed is an image.
    """

    def __init__(self, config: RandomShiftConfig, policy: Any, streams: RandomStreams) -> None:
        self.config = config
        self.axes = {name: group.channel_axis for name, group in policy.spec.obs.items() if group.channel_axis}
        self.generator = streams.torch("plugin/random_shift", next(policy.parameters()).device)
        if not self.axes:
            raise ConfigError(f"random_shift moves images and {policy.spec.id} shows none: leave the plugin out")
        require_room_to_move((policy.spec.obs[name] for name in self.axes), config.pad)

    def transform(self, batch: TransitionBatch) -> TransitionBatch:
        """Return the batch with its images moved."""
        return replace(batch, obs=self._move(batch.obs), next_obs=self._move(batch.next_obs))

    def _move(self, obs: Obs) -> Obs:
        moved = {}
        for name, axis in self.axes.items():
            images = obs[name]
            offsets = draw_offsets(len(images), self.generator, self.config.pad)
            if VALID in obs:
                offsets = offsets.repeat_interleave(images.shape[1], 0)
            flat = images.flatten(0, -4)
            moved[name] = shift_images(flat, offsets, axis).view(images.shape)
        return {**obs, **moved}

    def update(self, batch: TransitionBatch) -> Metrics:
        """Learn nothing."""
        return {}

    def state_dict(self) -> State:
        """Return nothing: the generator is one of the run's streams."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restore nothing."""
