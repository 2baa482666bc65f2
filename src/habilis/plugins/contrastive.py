"""An encoder of images that knows a picture again when it has moved (Laskin et al. 2020, CURL, arXiv 2004.04136).

Of each picture there are two that are moved at random. The encoder's features of the one are to be most like those of
the other, among all others of the batch; the latter come from an encoder that follows slowly (He et al. 2020).
Deviations from CURL: moves are random shifts, as in DrQ-v2, where it crops; features are normalised here, where its
encoder ends with a layer that does so; and the similarity begins as the cosine.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from habilis.core.config import coerce_fields, require_fractions, require_positive
from habilis.core.random import RandomStreams
from habilis.core.specs import ObsGroup
from habilis.core.tree import Tree
from habilis.functional.representation import contrastive_loss
from habilis.nn.augmentation import PAD, draw_offsets, require_room_to_move, shift_images
from habilis.nn.encoder import ImageEncoder
from habilis.nn.optimizer import flatten_parameters
from habilis.plugins.auxiliary import AuxiliaryLoss, image_encoder


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """How pictures are told from one another."""

    learning_rate: float = 1e-3
    """Adam's step size, of the encoder and of the similarity."""
    batch_size: int = 256
    """Steps of a rollout in a gradient step; batches out of replay are taken whole."""
    tau: float = 0.05
    """How far the slow encoder moves towards the encoder at each step."""
    pad: int = PAD
    """Most pixels by which a picture moves in each direction."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require_positive(self, "learning_rate", "batch_size", "pad")
        require_fractions(self, "tau")


class Contrast(nn.Module):
    """The objective: see the file."""

    def __init__(self, config: ContrastiveConfig, group: ObsGroup, encoder: ImageEncoder) -> None:
        super().__init__()
        require_room_to_move((group,), config.pad)
        self.config = config
        self.channel_axis = group.channel_axis or -1
        # normalised features are sqrt(F) long: the cosine at a temperature of 1 / sqrt(F)
        self.weight = nn.Parameter(torch.eye(encoder.out_dim) / math.sqrt(encoder.out_dim))
        self.slow = copy.deepcopy(encoder).requires_grad_(False)
        self._slow = flatten_parameters(self.slow.parameters())

    def loss(self, encoder: ImageEncoder, data: Tree, generator: torch.Generator) -> Tensor:
        """Return how badly each picture is found among those of the batch."""
        anchor, other = (self._moved(data["image"], generator) for _ in range(2))
        query, key = (F.layer_norm(x, x.shape[-1:]) for x in (encoder(anchor), self.slow(other)))
        return contrastive_loss(query, key, self.weight)

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        offsets = draw_offsets(len(images), generator, self.config.pad).to(images.device)
        return shift_images(images, offsets, self.channel_axis)

    def after_step(self, encoder: Tensor) -> None:
        """Let the slow encoder follow."""
        self._slow.lerp_(encoder, self.config.tau)


def make_contrastive(config: ContrastiveConfig, policy: Any, streams: RandomStreams) -> AuxiliaryLoss:
    """Build the plugin `contrastive`."""
    image, encoder = image_encoder(policy, "contrastive")
    objective = Contrast(config, policy.spec.obs[image], encoder)
    return AuxiliaryLoss("contrastive", objective, image, encoder, config, streams)
