"""The policy of SAC: encoder, trunk and a tanh-squashed normal distribution with state-dependent deviation."""

from __future__ import annotations

from typing import Any

import torch

from habilis.core.specs import BoxAction, EnvSpec, require_action
from habilis.nn.critics import IMAGE_ENCODER
from habilis.nn.heads import SquashedGaussianHead, make_sde
from habilis.nn.memory import make_encoder
from habilis.nn.network import make_trunk, policy_network
from habilis.policies.smoothness import require_smoothness
from habilis.policies.stochastic import StochasticPolicy

SDE_STD = 1.0
"""First deviation of state-dependent noise before squashing, where every feature is 1 or -1."""


def make_policy(spec: EnvSpec, config: Any, generator: torch.Generator) -> StochasticPolicy:
    """Build the policy for an environment by the fields that `SACConfig` has.

    Raises:
        ConfigError: there are choices among the actions, or actions without bounds, or nothing to be smooth over.
    """
    require_action(spec, BoxAction, "SAC", bounded=True)
    assert isinstance(spec.action, BoxAction)
    c = config
    require_smoothness(c.smoothness, spec, memory=c.memory.used, n_steps=c.n_steps)
    encoder = make_encoder(
        spec.obs, spec.policy_groups, c.normalize_obs, c.memory, generator, IMAGE_ENCODER, stored=True
    )
    trunk = make_trunk(policy_network(c), encoder.out_dim, generator)
    sde = make_sde(trunk.out_dim, spec.action.dim, SDE_STD, c)
    head = SquashedGaussianHead(trunk.out_dim, spec.action.dim, generator, sde)
    return StochasticPolicy(spec, encoder, trunk, head, c.action)
