"""The observations of a replay buffer: a ring of rows, each stored once, and the true last ones of episodes aside.

The successor of row t is row t + 1, except where an episode ended: its last observation lies in a side store that grows
with the number of episodes. Of stacked frames (`EnvSpec.frame_stack`) a row holds the newest alone; the stack is
rebuilt from the rows before it when it is read. Places are flat indices, `row * num_envs + environment`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from habilis.core.specs import DESIRED, EnvSpec
from habilis.core.tree import tree_index
from habilis.core.types import Obs, State
from habilis.data.hindsight import Goals


class ObservationRing:
    """Observations of `num_envs` environments side by side, `rows` of each.

    Args:
        spec: what is observed.
        rows: how many; a stack of k frames is rebuilt right where k - 1 rows before it are still there.
        num_envs: environments.
        device: where the data lies.
    """

    def __init__(self, spec: EnvSpec, rows: int, num_envs: int, device: str = "cpu") -> None:
        self.num_envs = num_envs
        self._frames = spec.frame_stack
        self._axes = {name: axis for name in spec.obs if (axis := spec.obs[name].channel_axis) and self._frames > 1}
        shape = (rows, num_envs)
        self.stores = {
            name: torch.zeros(*shape, *spec.frame(name).shape, dtype=getattr(torch, group.dtype), device=device)
            for name, group in spec.obs.items()
        }
        self._places = {name: store.flatten(0, 1) for name, store in self.stores.items()}
        self.final_slot = torch.full(shape, -1, dtype=torch.int32, device=device)
        # where the stack is one frame repeated, as when an episode starts: no frame before it is needed
        self.first = torch.zeros(shape if self._axes else (0, num_envs), dtype=torch.bool, device=device)
        self._final = {name: store[0, :0].clone() for name, store in self.stores.items()}
        self._free: list[int] = []

    @staticmethod
    def bytes_needed(spec: EnvSpec) -> int:
        """Return how many bytes one place takes."""
        frames = map(spec.frame, spec.obs)
        return sum(f.size * (1 if f.dtype == "uint8" else 4) for f in frames) + 4 + (spec.frame_stack > 1)

    def write(self, row: int, obs: Obs) -> None:
        """Store what N environments show, of stacked frames the newest."""
        newest = self._newest(obs)
        for name, store in self.stores.items():
            store[row] = newest[name]
        if self._axes:
            self.first[row] = True
        for name, axis in self._axes.items():
            stack, channels = obs[name], newest[name].shape[axis]
            rest = stack.shape[axis] - channels
            alike = stack.narrow(axis, 0, rest) == stack.narrow(axis, channels, rest)
            self.first[row] &= alike.flatten(1).all(1)

    def end(self, row: int, ended: Tensor, obs: Obs | None = None) -> None:
        """Keep the last observations of episodes whose last step is that of `row`.

        Args:
            row: the last step's.
            ended: `[K]` int64, the environments.
            obs: what all N environments had reached; None: what the next row shows.
        """
        if not ended.numel():
            return
        while len(self._free) < len(ended):
            held = len(next(iter(self._final.values())))
            room = max(64, held)
            self._free.extend(range(held + room - 1, held - 1, -1))
            self._final = {
                name: torch.cat([store, store.new_zeros(room, *store.shape[1:])]) for name, store in self._final.items()
            }
        slots = torch.tensor([self._free.pop() for _ in range(len(ended))], dtype=torch.long, device=ended.device)
        self.final_slot[row, ended] = slots.int()
        following = (row + 1) % len(self.final_slot)
        reached = tree_index(self.stores, following) if obs is None else self._newest(obs)
        for name, values in tree_index(reached, ended).items():
            self._final[name][slots] = values

    def release(self, row: int) -> None:
        """Give back the side store of a row about to be overwritten."""
        slots = self.final_slot[row]
        self._free.extend(slots[slots >= 0].tolist())
        self.final_slot[row] = -1

    def read(self, index: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the observations at places `[B]`, of the groups `names` or of all."""
        return {
            name: self._stack(name, index) if name in self._axes else self._places[name].index_select(0, index)
            for name in names or self._places
        }

    def successors(self, index: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the true successors of the steps at places `[B]`, of the groups `names` or of all."""
        successors = self.read((index + self.num_envs) % self.final_slot.numel(), names)
        slot = self.final_slot.take(index)
        at_end = (slot >= 0).nonzero().squeeze(-1)
        if at_end.numel():
            slots = slot.index_select(0, at_end)
            for name in successors:
                last = self._final[name].index_select(0, slots)
                if name in self._axes:
                    axis, channels = self._axes[name], last.shape[self._axes[name]]
                    shown = self._stack(name, index[at_end])
                    last = torch.cat([shown.narrow(axis, channels, shown.shape[axis] - channels), last], axis)
                successors[name].index_copy_(0, at_end, last)
        return successors

    @staticmethod
    def replace_goals(obs: dict[str, Tensor], goals: Goals) -> None:
        """Let observations that were read want the goals given in hindsight."""
        obs[DESIRED] = goals.given

    def _stack(self, name: str, index: Tensor) -> Tensor:
        """Rebuild the frames of a group as they were seen at places `[B]`."""
        store = self._places[name]
        frames = [store.index_select(0, index)]
        for _ in range(self._frames - 1):
            before = (index - self.num_envs) % self.final_slot.numel()
            index = torch.where(self.first.take(index), index, before)
            frames.append(store.index_select(0, index))
        return torch.cat(frames[::-1], self._axes[name])

    def _newest(self, obs: Obs) -> Obs:
        """Return an observation with the newest of stacked frames alone."""
        return {**obs, **{name: obs[name].chunk(self._frames, axis)[-1] for name, axis in self._axes.items()}}

    def state_dict(self, used: int) -> State:
        """Return the first `used` rows; the tensors are the ring's own."""
        return {
            "obs": {name: store[:used] for name, store in self.stores.items()},
            "final_obs": dict(self._final),
            "final_slot": self.final_slot[:used],
            "first": self.first[:used],
            "free": torch.tensor(self._free, dtype=torch.long),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        for name, store in self.stores.items():
            store[: len(state["obs"][name])] = state["obs"][name]
        self._final = {name: saved.clone().to(self.first.device) for name, saved in state["final_obs"].items()}
        self.final_slot.fill_(-1)[: len(state["final_slot"])] = state["final_slot"]
        if self._axes:
            self.first[: len(state["first"])] = state["first"]
        self._free = state["free"].tolist()
