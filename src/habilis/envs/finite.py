"""Finite Markov decision processes as environments: every state and every outcome of an action listed in tables.

The state is observed as its one-hot code, as Gymnasium's `Discrete` observations are: networks read it as it is, and a
learner with a table reads the state's number from it (`ObsGroup.one_hot`). Nothing is hidden: `env.dynamics` gives the
transition and reward matrices, from which planning finds the truth that learning is held to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import require_choices
from habilis.core.errors import EnvError
from habilis.core.random import derive_seed
from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step


@dataclass(frozen=True, eq=False)
class Dynamics:
    """What each of A actions may lead to in each of S states: K outcomes with their probabilities."""

    next_state: Tensor
    """`[S, A, K]` int64."""
    reward: Tensor
    """`[S, A, K]` float32."""
    probability: Tensor
    """`[S, A, K]` float64, summing to 1 over the outcomes."""
    terminal: Tensor
    """`[S]` bool: an episode ends on reaching such a state. Each leads to itself, unpaid."""
    start: int
    """Where episodes start."""

    @property
    def transitions(self) -> Tensor:
        """`[S, A, S]` float64: probability of each next state."""
        states, actions, _ = self.next_state.shape
        matrix = torch.zeros(states, actions, states, dtype=torch.float64)
        return matrix.scatter_add_(2, self.next_state, self.probability)

    @property
    def rewards(self) -> Tensor:
        """`[S, A]` float64: expected reward."""
        return (self.probability * self.reward).sum(2)


class Drawing(Protocol):
    """How a finite process looks."""

    def picture(self, state: int) -> np.ndarray:
        """Return `[height, width, 3]` uint8 with the agent in `state`."""
        ...

    def text(self, state: int) -> str:
        """Return the same in lines of text."""
        ...


class FiniteEnv:
    """N copies of a finite process on the CPU, with exact state.

    Where it has a drawing, `info["success"]` says whether a step reached a terminal state.

    Args:
        id: what it is called.
        dynamics: its tables.
        num_envs: N.
        seed: where the random stream of the outcomes starts.
        max_episode_steps: steps after which an episode is truncated; None for no limit.
        control_dt: seconds that a step is shown for.
        drawing: how it looks, None for what cannot be pictured.
    """

    shows_ends = True
    """`render` shows where the last step led, the end of an episode included."""

    def __init__(
        self,
        id: str,
        dynamics: Dynamics,
        num_envs: int = 1,
        *,
        seed: int = 0,
        max_episode_steps: int | None = None,
        control_dt: float | None = None,
        drawing: Drawing | None = None,
    ) -> None:
        states, actions, outcomes = dynamics.next_state.shape
        self.dynamics = dynamics
        self.drawing = drawing
        self.num_envs = num_envs
        self.spec = EnvSpec(
            id=id,
            obs={"policy": ObsGroup((states,), one_hot=(states,))},
            action=DiscreteAction(actions),
            max_episode_steps=max_episode_steps,
            saves_state=True,
            backend="native",
            control_dt=control_dt,
        )
        self._shape = (actions, outcomes)
        self._next_state, self._reward = dynamics.next_state.flatten(), dynamics.reward.flatten()
        self._reached = dynamics.probability.cumsum(2).view(-1, outcomes)[:, :-1]
        self._codes = torch.eye(states)
        self._generator = torch.Generator()
        self.reset(seed)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, the random stream starts from it."""
        if seed is not None:
            self._generator.manual_seed(derive_seed(seed, "finite"))
        self._state = torch.full((self.num_envs,), self.dynamics.start)
        self._time = torch.zeros(self.num_envs, dtype=torch.int64)
        self._shown = self._state
        return self._observe()

    def step(self, action: Tensor) -> Step:
        """Apply one action `[N]` to each environment."""
        require_choices(self.spec, action, self.num_envs)
        actions, outcomes = self._shape
        row = self._state * actions + action
        if outcomes > 1:
            drawn = torch.rand(self.num_envs, 1, generator=self._generator, dtype=torch.float64)
            row = row * outcomes + (drawn >= self._reached[row]).sum(1)
        self._state = self._shown = self._next_state[row]
        self._time = self._time + 1
        terminated = self.dynamics.terminal[self._state]
        truncated = (self._time >= self.spec.step_limit) & ~terminated
        obs = next_obs = self._observe()
        done = terminated | truncated
        if done.any():
            self._state = torch.where(done, self.dynamics.start, self._state)
            self._time = torch.where(done, 0, self._time)
            obs = self._observe()
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=self._reward[row],
            terminated=terminated,
            truncated=truncated,
            valid=torch.ones_like(done),
            info={} if self.drawing is None else {"success": terminated},
        )

    def render(self) -> np.ndarray:
        """Return the picture of the first environment, `[height, width, 3]` uint8.

        Raises:
            EnvError: it has no drawing.
        """
        return self._drawn().picture(int(self._shown[0]))

    def text(self) -> str:
        """Return the first environment in lines of text.

        Raises:
            EnvError: it has no drawing.
        """
        return self._drawn().text(int(self._shown[0]))

    def _drawn(self) -> Drawing:
        if self.drawing is None:
            raise EnvError(f"{self.spec.id} cannot be pictured: its states have no places")
        return self.drawing

    def state_dict(self) -> State:
        """Return where each environment is, and the position of the random stream."""
        return {"state": self._state, "time": self._time, "generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._state = self._shown = state["state"]
        self._time = state["time"]
        self._generator.set_state(state["generator"])

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _observe(self) -> Obs:
        return {"policy": self._codes[self._state]}


def make_maximization_bias(
    id: str, num_envs: int = 1, *, seed: int = 0, threads: int | None = None, actions: int = 10
) -> FiniteEnv:
    """Make the chain on which a maximum over noisy estimates misleads (Sutton and Barto 2018, example 6.7).

    From the start A (state 0) the first half of the actions leads left to B (state 1), unpaid, and the other half ends
    the episode, unpaid. In B every action ends it with a reward of 0.9 or -1.1, each as often, -0.1 on average: so left
    is wrong, but the best-looking of B's actions looks better than nothing to whoever takes the maximum of estimates.
    The book pays normal noise of the same mean and variance, and has two actions in A.

    Args:
        id: what it is called.
        num_envs: N.
        seed: where the random stream starts.
        threads: not used: there is nothing to compute in parallel.
        actions: A, even.
    """
    next_state = torch.full((3, actions, 2), 2)
    next_state[0, : actions // 2] = 1
    reward = torch.zeros(3, actions, 2)
    reward[1] = torch.tensor([0.9, -1.1])
    half = torch.full((3, actions, 2), 0.5, dtype=torch.float64)
    return FiniteEnv(id, Dynamics(next_state, reward, half, torch.arange(3) == 2, 0), num_envs, seed=seed)
