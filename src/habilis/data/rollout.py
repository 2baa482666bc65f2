"""Time-major storage of one rollout: T steps of N environments, raw as they came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from habilis.core.actions import empty_actions
from habilis.core.batches import RolloutBatch
from habilis.core.specs import EnvSpec
from habilis.core.tree import Tree, tree_index
from habilis.core.types import Obs, PolicyStep, Step

BLOCK = 32
"""Steps that are written side by side: a write costs nearly the same for one of them."""


class RolloutBuffer:
    """Filled step by step, read whole, and filled again.

    Observations are stored once: the successor of step t is row t + 1, except where an episode ended, whose true last
    observation is kept aside.
    """

    starts_anew = False
    """Whether every rollout begins with new episodes."""
    wanted = None
    """Which environments are of use, `[N]` bool; None: all."""

    def __init__(self, spec: EnvSpec, n_steps: int, num_envs: int, device: str = "cpu") -> None:
        self.n_steps = n_steps
        self.device = torch.device(device)
        shape = (n_steps, num_envs)
        self.obs = {
            name: torch.zeros(n_steps + 1, num_envs, *group.shape, dtype=getattr(torch, group.dtype), device=device)
            for name, group in spec.obs.items()
        }
        self.actions = empty_actions(spec, shape, device)
        self.log_probs = torch.zeros(shape, device=device)
        self.rewards = torch.zeros(shape, device=device)
        self.terminated, self.truncated, self.valid = (
            torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(3)
        )
        self._final: list[Final] = []
        self._held: list[tuple[PolicyStep, Step]] = []  # the last steps, not yet written
        self._memory: Tree | None = None
        self._t = 0

    @property
    def full(self) -> bool:
        """Whether the rollout is complete."""
        return self._t == self.n_steps

    def start(self, obs: Obs, memory: Tree | None = None) -> None:
        """Begin a rollout at `obs`; `memory` is what the policy remembers of the episodes under way."""
        self._memory = memory
        self._final.clear()
        self._held.clear()
        self._t = 0
        for name, store in self.obs.items():
            store[0] = obs[name]

    def add(self, policy_step: PolicyStep, step: Step) -> None:
        """Store what was done and what came of it."""
        if step.next_obs is not step.obs:
            self._final.append(final_successors(self._t, step))
        self._held.append((policy_step, step))
        self._t += 1
        if self.full or len(self._held) == BLOCK:
            self._write()

    def _write(self) -> None:
        """Write down the steps that are held."""
        acted, steps = zip(*self._held, strict=True)
        self._held.clear()
        first, end = self._t - len(steps), self._t
        for name, store in self.obs.items():
            store[first + 1 : end + 1] = torch.stack([step.obs[name] for step in steps])
        self.actions[first:end] = torch.stack([policy_step.action for policy_step in acted])
        self.log_probs[first:end] = torch.stack([policy_step.log_prob for policy_step in acted])
        self.rewards[first:end] = torch.stack([step.reward for step in steps])
        self.terminated[first:end] = torch.stack([step.terminated for step in steps])
        self.truncated[first:end] = torch.stack([step.truncated for step in steps])
        self.valid[first:end] = torch.stack([step.valid for step in steps])

    def batch(self) -> RolloutBatch:
        """Return the full rollout; its tensors are the buffer's own and change with the next one."""
        assert self.full, "a rollout is read when it is full"
        empty = {name: store[0, :0] for name, store in self.obs.items()}
        return RolloutBatch(
            self.obs,
            self.actions,
            self.log_probs,
            self.rewards,
            self.terminated,
            self.truncated,
            self.valid,
            *join_final(self._final, empty, self.device),
            self._memory,
        )


Final = tuple[Tensor, Tensor, dict[str, Tensor]]
"""`(t, n, successors)` of the episodes that ended in one step: each `[k]` and `[k, ...]`."""


def final_successors(t: int, step: Step) -> Final:
    """Return the true last observations of the episodes that ended in step `t`."""
    ended = step.done.nonzero().squeeze(-1)
    return torch.full_like(ended, t), ended, tree_index(step.next_obs, ended)


def join_final(
    parts: Sequence[Final], empty: Obs, device: torch.device
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Return the fields `final_index` and `final_obs` of a rollout; `empty` has no rows."""
    none = torch.zeros(0, dtype=torch.long, device=device)
    index = torch.cat([none, *(t for t, _, _ in parts)]), torch.cat([none, *(n for _, n, _ in parts)])
    return index, {name: torch.cat([rows, *(obs[name] for _, _, obs in parts)]) for name, rows in empty.items()}
