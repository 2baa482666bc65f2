"""Bit flipping: the smallest task of which nothing is learnt without hindsight (Andrychowicz et al. 2017, section 3.1).

A row of n bits is to become another one, both drawn at random; an action flips one bit. A step pays 0 where the rows
are equal after it, which ends the episode, else -1; n steps truncate it. Observed: the bits as they are, which are also
the goal achieved, and the bits that are wanted, zeros and ones. By chance the goal is reached in about one episode of
2^n / n, so that from a dozen bits on a learner meets no reward to learn from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from habilis.core.actions import require_choices
from habilis.core.config import require
from habilis.core.random import derive_seed
from habilis.core.specs import ACHIEVED, DESIRED, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step


class BitFlip:
    """N rows of bits on the CPU, with exact state.

    Args:
        id: what it is called.
        num_envs: N.
        seed: where the random stream of the bits starts.
        threads: not used: there is nothing to compute in parallel.
        bits: n.
    """

    def __init__(
        self, id: str, num_envs: int = 1, *, seed: int = 0, threads: int | None = None, bits: int = 12
    ) -> None:
        require(isinstance(bits, int) and bits > 0, f"bits must be a positive integer, got {bits}")
        self.num_envs = num_envs
        self._bits = bits
        row = ObsGroup((bits,))
        self.spec = EnvSpec(
            id=id,
            obs={"policy": row, ACHIEVED: row, DESIRED: row},
            action=DiscreteAction(bits),
            max_episode_steps=bits,
            saves_state=True,
            backend="native",
        )
        self._generator = torch.Generator()
        self.reset(seed)

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Pay 0 where all bits are right, else -1."""
        return torch.where(self.compute_terminated(achieved, desired), 0.0, -1.0)

    def compute_terminated(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """End the episode where all bits are right."""
        return (achieved == desired).all(-1)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, the random stream starts from it."""
        if seed is not None:
            self._generator.manual_seed(derive_seed(seed, "bits"))
        self._now, self._wanted = self._draw()
        self._time = torch.zeros(self.num_envs, dtype=torch.int64)
        return self._observe()

    def step(self, action: Tensor) -> Step:
        """Flip the bit `[N]` of each row."""
        require_choices(self.spec, action, self.num_envs)
        place = action.unsqueeze(1)
        self._now = self._now.scatter(1, place, 1 - self._now.gather(1, place))
        self._time = self._time + 1
        terminated = self.compute_terminated(self._now, self._wanted)
        truncated = (self._time >= self._bits) & ~terminated
        done = terminated | truncated
        reward = self.compute_reward(self._now, self._wanted)
        obs = next_obs = self._observe()
        if done.any():
            now, wanted = self._draw()
            self._now = torch.where(done[:, None], now, self._now)
            self._wanted = torch.where(done[:, None], wanted, self._wanted)
            self._time = torch.where(done, 0, self._time)
            obs = self._observe()
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            valid=torch.ones_like(done),
            info={"success": terminated},
        )

    def state_dict(self) -> State:
        """Return the bits, where each episode is, and the position of the random stream."""
        return {
            "now": self._now,
            "wanted": self._wanted,
            "time": self._time,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._now, self._wanted, self._time = state["now"], state["wanted"], state["time"]
        self._generator.set_state(state["generator"])

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Draw what the rows are and what they are to become, `[N, n]` each."""
        drawn = torch.randint(2, (2, self.num_envs, self._bits), generator=self._generator).float()
        return drawn[0], drawn[1]

    def _observe(self) -> Obs:
        return {"policy": self._now, ACHIEVED: self._now, DESIRED: self._wanted}
