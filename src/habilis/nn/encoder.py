"""From observation groups to one feature vector: vectors are normalised, images go through a convolutional network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from habilis.core.errors import ConfigError
from habilis.core.specs import ObsGroup
from habilis.core.types import Obs
from habilis.nn.init import init_, linear
from habilis.nn.normalizer import RunningNorm


class ImageEncoder(nn.Module):
    """The network of Mnih et al. (2015) for uint8 images `[..., H, W, C]` or `[..., C, H, W]`, to 512 features.

    The axis with at most 16 entries is taken for the channels, the last one where both could be.
    """

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.channels_last = shape[-1] <= 16
        channels, height, width = (shape[2], shape[0], shape[1]) if self.channels_last else shape
        layers: list[nn.Module] = []
        for out, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            layer = nn.utils.skip_init(nn.Conv2d, channels, out, kernel, stride)
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            init_(layer.weight, layer.bias, channels * kernel * kernel, generator, math.sqrt(2))
            layers += [layer, nn.ReLU()]
            channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        if min(height, width) < 1:
            raise ConfigError(f"an image of shape {shape} is too small for the encoder: enlarge it to 36 pixels a side")
        self.convolutions = nn.Sequential(*layers)
        self.project = linear(channels * height * width, 512, generator, gain=math.sqrt(2))

    def forward(self, image: Tensor) -> Tensor:
        """Encode images with any leading axes."""
        x = image.flatten(0, -4).to(self.project.weight.dtype) / 255
        if self.channels_last:
            x = x.movedim(-1, -3)
        features: Tensor = torch.relu(self.project(self.convolutions(x).flatten(1)))
        return features.view(*image.shape[:-3], 512)


class ObsEncoder(nn.Module):
    """Reads the groups `names` of an observation and gives `[..., out_dim]` features.

    Vector groups pass through a `RunningNorm` of their own where `normalize` is true; image groups through an
    `ImageEncoder`.
    """

    def __init__(
        self, groups: Mapping[str, ObsGroup], names: Sequence[str], normalize: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.normalizers = nn.ModuleDict()
        self.images = nn.ModuleDict()
        self.out_dim = 0
        for name in self.names:
            group = groups[name]
            if group.is_image:
                self.images[name] = ImageEncoder(group.shape, generator)
                self.out_dim += 512
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
        parts = [self.images[name](x) if name in self.images else x for name, x in normalized.items()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def update_normalizers(self, obs: Obs, valid: Tensor | None = None) -> None:
        """Take a batch of observations `[..., *shape]` into the statistics, leaving out rows where `valid` is false."""
        for name, normalizer in self.normalizers.items():
            assert isinstance(normalizer, RunningNorm)
            rows = obs[name].reshape(-1, *normalizer.mean.shape)
            normalizer.update(rows if valid is None else rows[valid.reshape(-1)])
