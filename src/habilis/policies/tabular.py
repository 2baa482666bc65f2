"""The policy of a table: the number of the state, its row of action values, and the best of them.

Exploring, it takes any action with probability epsilon and else one of the best, each of equals as often. `forward` is
the greedy policy (the first of equals), which is what gets exported: a lookup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.specs import DiscreteAction, EnvSpec
from habilis.core.tree import Tree
from habilis.core.types import Obs, PolicyStep
from habilis.nn.states import ArrayStates, DictionaryStates
from habilis.policies.action_map import ActionMap
from habilis.policies.batch import fresh_generator, predict


class TabularPolicy(nn.Module):
    """Observation to the value of each action, and to the best of them.

    Args:
        spec: what the environment gives and takes: one choice among several.
        encoder: from observation groups to the number of a state.
        copies: tables, of which the mean counts: two for Double Q-learning.
        initial_value: of every entry.
    """

    values: Tensor
    """`[copies, states, actions]` float64."""
    visits: Tensor
    """`[copies, states, actions]` int64: how often each entry was updated."""
    exploration_level: Tensor
    """Probability of a random action, 0-d."""

    def __init__(
        self, spec: EnvSpec, encoder: ArrayStates | DictionaryStates, copies: int = 1, initial_value: float = 0.0
    ) -> None:
        super().__init__()
        assert isinstance(spec.action, DiscreteAction)
        self.spec = spec
        self.actions = spec.action.n
        self.encoder = encoder
        self.initial_value = initial_value
        self.action_map = ActionMap(spec.action)
        shape = (copies, encoder.capacity, self.actions)
        self.register_buffer("values", torch.full(shape, initial_value, dtype=torch.float64))
        self.register_buffer("visits", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("exploration_level", torch.ones(()))

    def rows(self, obs: Obs, *, add: bool = False) -> Tensor:
        """Return the number `[N]` of each observation's state; with `add`, new ones get a number and room."""
        rows = self.encoder.rows(obs, add=add)
        self._make_room()
        return rows

    def scores(self, obs: Obs) -> Tensor:
        """Return the value of every action, `[N, A]`: the mean over the tables."""
        return self._mean(self.encoder.rows(obs))

    def fresh_memory(self, rows: int) -> dict[str, Tensor]:
        """Return what `forward` takes when `rows` episodes begin: a table remembers nothing."""
        return {}

    def forward(self, obs: Obs, memory: Tree | None = None) -> tuple[Tensor, Tree | None]:
        """Return the best action `[N]` in the environment's units, the first of equals, and the memory as it is."""
        return self.action_map(self._mean(self.encoder(obs)).argmax(-1)), memory

    @torch.no_grad()
    def act(
        self, obs: Obs, memory: Any = None, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> PolicyStep:
        """Choose actions for a batch of observations.

        Args:
            obs: raw observation groups `[N, *shape]`.
            memory: handed back as it is.
            deterministic: take the first of the best actions instead of exploring.
            generator: source of the draw; None draws from the operating system's entropy, each time anew.
        """
        scores = self.scores(obs)
        if deterministic:
            action = scores.argmax(-1)
            return PolicyStep(action, self.action_map(action), memory=memory)
        if generator is None:
            generator = fresh_generator()
        explores = torch.rand(len(scores), 1, generator=generator) < self.exploration_level
        allowed = explores | (scores == scores.amax(-1, keepdim=True))
        action = torch.rand(scores.shape, generator=generator).masked_fill_(~allowed, -1.0).argmax(-1)
        return PolicyStep(action, self.action_map(action), memory=memory)

    def predict(
        self, obs: np.ndarray | Mapping[str, np.ndarray], memory: Any = None, *, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """NumPy in, NumPy out, for one observation or a batch of them.

        Args:
            obs: one observation or a batch, for the group "policy"; or a mapping of groups.
            memory: what the last call returned.
            deterministic: the best action, or exploration.

        Returns:
            The action, batched as the observation was, and the memory for the next call.
        """
        return predict(self, obs, memory, deterministic, torch.device("cpu"))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restore a state; a dictionary takes the size that it was saved with."""
        if isinstance(self.encoder, DictionaryStates):
            self.encoder.restore(state_dict["encoder.keys"])
            self.values, self.visits = (state_dict[name].clone() for name in ("values", "visits"))
        return super().load_state_dict(state_dict, strict, assign)

    def _mean(self, rows: Tensor) -> Tensor:
        return self.values[:, rows].mean(0)

    def _make_room(self) -> None:
        """Give the states that were met last their rows."""
        while self.values.shape[1] < self.encoder.capacity:
            self.values = torch.cat([self.values, torch.full_like(self.values, self.initial_value)], 1)
            self.visits = torch.cat([self.visits, torch.zeros_like(self.visits)], 1)
