"""An encoder of images that can paint them again (Yarats et al. 2021, SAC-AE, arXiv 1910.01741).

A decoder of transposed convolutions learns to give back the picture from its features, and the encoder with it to keep
in them what the picture shows. The features are kept short instead of noisy (Ghosh et al. 2020). Deviations from
SAC-AE: pixels keep their 8 bits, the decoder's weights are not decayed, and its layers double the size of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from habilis.core.config import coerce_fields, require_not_negative, require_positive
from habilis.core.random import RandomStreams
from habilis.core.specs import ObsGroup
from habilis.core.tree import Tree
from habilis.functional.representation import reconstruction_loss
from habilis.nn.encoder import ImageEncoder
from habilis.nn.init import init_, linear
from habilis.plugins.auxiliary import AuxiliaryLoss, image_encoder

CHANNELS = (64, 32, 16)
"""Of the layers of the decoder, each of which doubles height and width, before the image's own."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How pictures are painted again."""

    learning_rate: float = 1e-3
    """Adam's step size, of the encoder and of the decoder."""
    batch_size: int = 256
    """Steps of a rollout in a gradient step; batches out of replay are taken whole."""
    feature_penalty: float = 1e-6
    """Weight of half the squared length of the features."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require_positive(self, "learning_rate", "batch_size")
        require_not_negative(self, "feature_penalty")


class Decoder(nn.Module):
    """Turns features `[B, features]` into an image `[B, *group.shape]` of values around 0 to 1."""

    def __init__(self, group: ObsGroup, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.channels_last = group.channel_axis == -1
        channels, *size = (group.shape[2], *group.shape[:2]) if self.channels_last else group.shape
        self.size = size
        self.start = [-(-side // 2 ** len(CHANNELS)) for side in size]
        self.expand = linear(features, CHANNELS[0] * self.start[0] * self.start[1], generator)
        layers: list[nn.Module] = []
        for before, after in zip(CHANNELS, (*CHANNELS[1:], channels), strict=True):
            layer = nn.ConvTranspose2d(before, after, 4, 2, 1)
            assert layer.bias is not None
            init_(layer.weight, layer.bias, before * 4, generator, None)
            layers += [nn.ReLU(), layer]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Decode; what an odd size has too much at the right and the bottom is cut off."""
        image: Tensor = self.layers(self.expand(features).view(len(features), CHANNELS[0], *self.start))
        image = image[:, :, : self.size[0], : self.size[1]]
        return image.movedim(1, -1) if self.channels_last else image


class Reconstruction(nn.Module):
    """The objective: see the file."""

    def __init__(
        self, config: ReconstructionConfig, group: ObsGroup, features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(group, features, generator)

    def loss(self, encoder: ImageEncoder, data: Tree, generator: torch.Generator) -> Tensor:
        """Return the error of the picture that the decoder paints."""
        features = encoder(data["image"])
        return reconstruction_loss(self.decoder(features), data["image"], features, self.config.feature_penalty)

    def after_step(self, encoder: Tensor) -> None:
        """Do nothing."""


def make_reconstruction(config: ReconstructionConfig, policy: Any, streams: RandomStreams) -> AuxiliaryLoss:
    """Build the plugin `reconstruction`."""
    image, encoder = image_encoder(policy, "reconstruction")
    objective = Reconstruction(
        config, policy.spec.obs[image], encoder.out_dim, streams.torch("plugin/reconstruction/init")
    )
    return AuxiliaryLoss("reconstruction", objective, image, encoder, config, streams)
