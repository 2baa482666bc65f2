"""Continuous critics Q(s, a): one encoder, and an ensemble of networks that is computed as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from habilis.core.specs import EnvSpec
from habilis.core.types import Obs
from habilis.nn.encoder import ObsEncoder
from habilis.nn.mlp import Activation, EnsembleMLP


class Critics(nn.Module):
    """Q(s, a) of every critic at once: `[B, ...], [B, dim] -> [critics, B]`.

    Args:
        encoder: reads the observation; owns the normaliser.
        action_dim: number of values in an action.
        copies: how many critics.
        hidden: widths of the hidden layers of each.
        activation: of the hidden layers.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        encoder: ObsEncoder,
        action_dim: int,
        copies: int,
        hidden: Sequence[int],
        activation: Activation,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.q = EnsembleMLP(copies, encoder.out_dim + action_dim, hidden, 1, activation, generator)

    def forward(self, obs: Obs, action: Tensor) -> Tensor:
        """Evaluate raw observations and actions in the policy's units."""
        return self.q(torch.cat([self.encoder(obs), action], -1)).squeeze(-1)  # type: ignore[no-any-return]


def critic_encoder(spec: EnvSpec, normalize_obs: bool, generator: torch.Generator) -> ObsEncoder:
    """Return an encoder of what critics read: the privileged group `critic` where there is one, and what is wanted."""
    return ObsEncoder(spec.obs, spec.critic_groups, normalize_obs, generator)
