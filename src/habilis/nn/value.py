"""The value network V(s): encoder, trunk and a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from habilis.core.types import Obs
from habilis.nn.encoder import ObsEncoder
from habilis.nn.init import linear
from habilis.nn.mlp import MLP


class ValueNetwork(nn.Module):
    """V `[...]` of observation groups `[..., *shape]`; encoder and trunk may be a policy's, which then are shared."""

    def __init__(self, encoder: ObsEncoder, trunk: MLP, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk = trunk
        self.head = linear(trunk.out_dim, 1, generator, gain=1.0)

    def forward(self, normalized: Obs) -> Tensor:
        """Evaluate what `encoder.normalize` returned."""
        return self.from_features(self.trunk(self.encoder.features(normalized)))

    @torch.no_grad()
    def evaluate(self, obs: Obs) -> Tensor:
        """Return V of raw observations, without gradients."""
        return self(self.encoder.normalize(obs))  # type: ignore[no-any-return]

    def from_features(self, features: Tensor) -> Tensor:
        """Evaluate what the trunk returned."""
        return self.head(features).squeeze(-1)  # type: ignore[no-any-return]
