"""From observation groups to one feature vector: vectors are normalised, images go through a convolutional network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.acceleration import hidden_layers
from habilis.core.config import require
from habilis.core.errors import ConfigError
from habilis.core.specs import ObsGroup
from habilis.core.types import Obs
from habilis.nn.init import conv, linear
from habilis.nn.normalizer import RunningNorm

ImageEncoderKind = Literal["nature", "impala", "drq"]
"""The convolutional networks that an `ImageEncoder` can be."""

NATURE_LAYERS = {
    36: ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    20: ((32, 3, 2), (64, 3, 2), (64, 3, 1)),
    9: ((16, 3, 1), (16, 3, 1), (16, 3, 1)),
}
"""(channels, kernel, stride) of each layer by the least side of an image: that of the paper, and two for small ones. In
the smallest a pixel is an object, and a stride would blur where it is."""


def require_images(kind: ImageEncoderKind, groups: Mapping[str, ObsGroup]) -> None:
    """Raise `ConfigError` where an encoder of images is asked for and nothing that is observed is one."""
    seen = any(group.is_image for group in groups.values())
    require(seen or kind == "nature", f"image_encoder {kind!r} is for images, and none is observed: leave it out")


class ImageEncoder(nn.Module):
    """Turns uint8 images `[..., *group.shape]` into `[..., out_dim]` features.

    "nature" is the network of Mnih et al. (2015), 512 features; images of fewer than 36 pixels a side, which its
    kernels do not fit, get kernels of 3 (`NATURE_LAYERS`). "impala" is the large network of Espeholt et al. (2018,
    figure 3) without its memory, 256 features: three stages of a convolution, pooling and two residual blocks, for
    images of any size. "drq" is in the manner of DrQ-v2 (Yarats et al. 2022), 50 features between -1 and 1 from a layer
    that normalises them, which critics of actions learn from much sooner; three strides in place of its one, and fewer
    channels, make it a tenth of the work.
    """

    def __init__(self, group: ObsGroup, kind: ImageEncoderKind, generator: torch.Generator) -> None:
        super().__init__()
        self.channels_last = group.channel_axis == -1
        channels, *size = (group.shape[2], *group.shape[:2]) if self.channels_last else group.shape
        build, self.out_dim = {"nature": (_nature, 512), "impala": (_impala, 256), "drq": (_drq, 50)}[kind]
        layers, features = build(channels, size, generator)
        self.convolutions = nn.Sequential(*layers)
        self.project = linear(features, self.out_dim, generator, gain=math.sqrt(2))
        self.out = nn.Sequential(nn.LayerNorm(self.out_dim), nn.Tanh()) if kind == "drq" else nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        """Encode images with any leading axes."""
        # in place: memory for a second copy of a batch of floats takes longer to get than the division
        x = image.flatten(0, -4).to(self.project.weight.dtype).div_(255)
        if self.channels_last:
            x = x.movedim(-1, -3)
        # the layout in memory that processors convolve fastest, whatever the order of the axes
        x = x.contiguous(memory_format=torch.channels_last)
        with hidden_layers(x.device):
            x = self.convolutions(x)
        features: Tensor = self.out(self.project(x.flatten(1).to(self.project.weight.dtype)))
        return features.view(*image.shape[:-3], self.out_dim)


class ImpalaStage(nn.Module):
    """A convolution, pooling to half the size (rounded up), and two residual blocks: `[B, C, H, W]` to features."""

    def __init__(self, channels: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.conv = conv(channels, out, 3, generator, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.residuals = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                conv(out, out, 3, generator, padding=1),
                nn.ReLU(),
                conv(out, out, 3, generator, padding=1),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the stage."""
        x = self.pool(self.conv(x))
        for residual in self.residuals:
            x = x + residual(x)
        return x


def _nature(channels: int, size: Sequence[int], generator: torch.Generator) -> tuple[list[nn.Module], int]:
    """Return the layers of the network "nature" and the number of features that come out."""
    least = next((least for least in NATURE_LAYERS if min(size) >= least), None)
    if least is None:
        raise ConfigError(
            f'an image of {" x ".join(map(str, size))} pixels is too small for the image encoder "nature", which needs '
            f'{min(NATURE_LAYERS)}: choose "impala", or enlarge it'
        )
    layers: list[nn.Module] = []
    for out, kernel, stride in NATURE_LAYERS[least]:
        layers += [conv(channels, out, kernel, generator, stride=stride, gain=math.sqrt(2)), nn.ReLU()]
        channels, size = out, [(side - kernel) // stride + 1 for side in size]
    return layers, channels * math.prod(size)


def _impala(channels: int, size: Sequence[int], generator: torch.Generator) -> tuple[list[nn.Module], int]:
    """Return the layers of the network "impala" and the number of features that come out."""
    layers: list[nn.Module] = []
    for out in (16, 32, 32):
        layers.append(ImpalaStage(channels, out, generator))
        channels, size = out, [-(-side // 2) for side in size]
    return [*layers, nn.ReLU()], channels * math.prod(size)


def _drq(channels: int, size: Sequence[int], generator: torch.Generator) -> tuple[list[nn.Module], int]:
    """Return the layers of the network "drq" and the number of features that come out."""
    if min(size) < 7:
        raise ConfigError(
            f'an image of {" x ".join(map(str, size))} pixels is too small for the image encoder "drq", which needs 7'
        )
    stride = 2 if min(size) >= 15 else 1
    layers: list[nn.Module] = []
    for out in (16, 32, 32):
        layers += [conv(channels, out, 3, generator, stride=stride, gain=math.sqrt(2)), nn.ReLU()]
        channels, size = out, [(side - 3) // stride + 1 for side in size]
    return layers, channels * math.prod(size)


class ObsEncoder(nn.Module):
    """Reads the groups `names` of an observation and gives `[..., out_dim]` features.

    Vector groups pass through a `RunningNorm` of their own where `normalize` is true; image groups, uint8 up to there,
    through an `ImageEncoder`.
    """

    def __init__(
        self,
        groups: Mapping[str, ObsGroup],
        names: Sequence[str],
        normalize: bool,
        generator: torch.Generator,
        image_encoder: ImageEncoderKind = "nature",
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.normalizers = nn.ModuleDict()
        self.images = nn.ModuleDict()
        self.out_dim = 0
        for name in self.names:
            group = groups[name]
            if group.is_image:
                encoder = self.images[name] = ImageEncoder(group, image_encoder, generator)
                self.out_dim += encoder.out_dim
            else:
                if normalize:
                    self.normalizers[name] = RunningNorm(group.shape)
                self.out_dim += group.size

    def forward(self, obs: Obs) -> Tensor:
        """Normalise and join the features of every group."""
        return self.features(self.normalize(obs))

    def normalize(self, obs: Obs) -> dict[str, Tensor]:
        """Return the groups this encoder reads, vectors normalised: computed once for many minibatches."""
        normalizers = self.normalizers
        return {name: normalizers[name](obs[name]) if name in normalizers else obs[name] for name in self.names}

    def denormalize(self, normalized: Obs) -> dict[str, Tensor]:
        """Return raw observations for normalised ones: what a checker draws to try the range a policy was made for."""
        return {
            name: self.normalizers[name].invert(x) if name in self.normalizers else x  # type: ignore[operator]
            for name, x in normalized.items()
        }

    def features(self, normalized: Obs) -> Tensor:
        """Join the features of normalised groups."""
        parts = list(self.see(normalized).values())
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def see(self, obs: Obs) -> dict[str, Tensor]:
        """Return the groups with the features of those images in place that this encoder reads.

        A group that is no longer uint8 has been seen already and passes: so that several networks can read the features
        of one, whether these have a gradient or not.
        """
        images = self.images
        return {name: images[name](x) if name in images and x.dtype == torch.uint8 else x for name, x in obs.items()}

    def update_normalizers(self, obs: Obs, valid: Tensor | None = None) -> None:
        """Take observations `[..., *shape]` into the statistics of their groups, but for rows that are not `valid`."""
        for name in self.normalizers.keys() & obs.keys():
            normalizer = self.normalizers[name]
            assert isinstance(normalizer, RunningNorm)
            rows = obs[name].reshape(-1, *normalizer.mean.shape)
            normalizer.update(rows if valid is None else rows[valid.reshape(-1)])
