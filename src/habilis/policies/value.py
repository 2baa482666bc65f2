"""The value-based policy: encoder (with the normaliser), trunk and a value head, of which the best action is taken.

Exploring, it takes a random action with probability epsilon, or draws in proportion to `exp(score / temperature)`, or
acts by noisy weights. `forward` is the greedy policy from raw observation and memory to action and memory, which is
what gets exported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.config import require
from habilis.core.recording import Recorded
from habilis.core.specs import DiscreteAction, EnvSpec
from habilis.core.tree import Tree
from habilis.core.types import Obs, PolicyStep
from habilis.nn.distributions import Categorical
from habilis.nn.memory import Encoder
from habilis.nn.mlp import MLP
from habilis.nn.value_heads import ValueHead
from habilis.policies.action_map import ActionMap
from habilis.policies.batch import NOISE, encode, fresh_generator, fresh_memory, predict, remember, with_memory

Exploration = Literal["epsilon", "boltzmann", "noisy"]


class ValuePolicy(nn.Module):
    """Observation to the return of each action, and to the best of them.

    Args:
        spec: what the environment gives and takes: one choice among several.
        encoder: from observation groups to one vector; owns the normaliser and the memory.
        trunk: from that vector to features.
        head: from features to returns.
        exploration: how it acts where it is not to be deterministic.
    """

    exploration_level: Tensor
    """Probability of a random action, or temperature of the draw, 0-d."""

    def __init__(self, spec: EnvSpec, encoder: Encoder, trunk: MLP, head: ValueHead, exploration: Exploration) -> None:
        super().__init__()
        assert isinstance(spec.action, DiscreteAction)
        self.spec = spec
        self.actions = spec.action.n
        self.encoder = encoder
        self.trunk = trunk
        self.head = head
        self.exploration: Exploration = exploration
        self.action_map = ActionMap(spec.action)
        self.register_buffer("exploration_level", torch.ones(()))
        self._explore = Recorded(self._compute_explore, arrays=True)

    def values(self, obs: Obs, noise: Tensor | None = None, fractions: Tensor | None = None) -> Tensor:
        """Return what the head says of every action, `[B, A, K]`, for raw observations `[B, *shape]`."""
        return self.head(self.trunk(self.encoder(obs)), noise, fractions)

    def scores(self, obs: Obs, noise: Tensor | None = None) -> Tensor:
        """Return by what actions are ranked, `[B, A]`."""
        return self._rank(self.encoder(obs), noise)

    def at_risk(self, level: float) -> ValuePolicy:
        """Return a copy that acts by the mean of a share of the worst returns (CVaR), whatever it learnt for.

        Args:
            level: in (0, 1]; 1 is the mean of all.

        Raises:
            ConfigError: it has learnt no distribution, or the level is none.
        """
        require(0 < level <= 1, f"a risk level is a share of the worst returns, above 0 and at most 1, got {level}")
        policy = copy.deepcopy(self)
        policy.head.rank_by_risk(level)
        return policy

    def fresh_memory(self, rows: int) -> dict[str, Tensor]:
        """Return what `forward` takes when `rows` episodes begin."""
        return fresh_memory(self.encoder, rows)

    def forward(self, obs: Obs, memory: Tree | None = None) -> tuple[Tensor, Tree | None]:
        """Return the best action `[B]` in the environment's units, and the memory for the next step."""
        action, memory = self._best(obs, memory)
        return self.action_map(action), memory

    def _best(self, obs: Obs, memory: Tree | None) -> tuple[Tensor, Tree | None]:
        features, after = encode(self.encoder, with_memory(self.encoder, obs, memory))
        return self._rank(features).argmax(-1), remember(memory, after)

    def _rank(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.head.scores(self.head(self.trunk(features), noise))

    def act(
        self,
        obs: Obs,
        memory: Tree | None = None,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> PolicyStep:
        """Choose actions for a batch of observations; the normaliser's statistics stay as they are.

        Args:
            obs: raw observation groups `[N, *shape]`.
            memory: what was remembered of the steps before; None for fresh episodes.
            deterministic: take the best action instead of exploring.
            generator: source of the draw; None draws from the operating system's entropy, each time anew.
        """
        if deterministic:
            with torch.no_grad():
                action, memory = self._best(obs, memory)
            return PolicyStep(action, self.action_map(action), memory=memory)
        if generator is None:
            generator = fresh_generator(next(self.parameters()).device)
        noise = self.noise(len(obs[self.encoder.names[0]]), generator)
        step = self._explore({NOISE: noise} | with_memory(self.encoder, obs, memory))
        return PolicyStep(step["action"], self.action_map(step["action"]), memory=remember(memory, step))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what exploration turns into `rows` actions."""
        device = generator.device
        if self.exploration == "noisy":
            return torch.randn(rows, self.head.streams.noise_size, generator=generator, device=device)
        width = 2 if self.exploration == "epsilon" else self.actions
        return torch.rand(rows, width, generator=generator, device=device)

    def _compute_explore(self, data: Tree) -> dict[str, Tensor]:
        """Turn observations and noise into actions."""
        noise = data[NOISE]
        features, after = encode(self.encoder, data)
        if self.exploration == "noisy":
            return {"action": self._rank(features, noise).argmax(-1), **after}
        scores = self._rank(features)
        if self.exploration == "boltzmann":
            return {"action": Categorical(scores / self.exploration_level).sample(noise)[0], **after}
        chance, which = noise.unbind(-1)
        action = torch.where(chance < self.exploration_level, (which * self.actions).long(), scores.argmax(-1))
        return {"action": action, **after}

    def predict(
        self, obs: np.ndarray | Mapping[str, np.ndarray], memory: Tree | None = None, *, deterministic: bool = True
    ) -> tuple[np.ndarray, Tree | None]:
        """NumPy in, NumPy out, for one observation or a batch of them.

        Args:
            obs: one observation or a batch, for the group "policy"; or a mapping of groups.
            memory: what the last call returned.
            deterministic: the best action, or exploration.

        Returns:
            The action, batched as the observation was, and the memory for the next call.
        """
        return predict(self, obs, memory, deterministic, next(self.parameters()).device)
