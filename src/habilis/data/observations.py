"""The observations of a replay buffer: a ring of rows, each stored once, and the true last ones of episodes aside.

The successor of row t is row t + 1, except where an episode ended: its last observation lies in a side store that grows
with the number of episodes. Of stacked frames (`EnvSpec.frame_stack`) a row holds the newest alone; the stack is
rebuilt from the rows before it when it is read.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from habilis.core.specs import DESIRED, EnvSpec
from habilis.core.tree import beside
from habilis.core.types import Obs, State
from habilis.data.columns import Column, Places, located
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
        self.places = rows * num_envs
        self.device = torch.device(device)
        self._frames = spec.frame_stack
        self._axes = {name: axis for name in spec.obs if (axis := spec.obs[name].channel_axis) and self._frames > 1}
        self._shapes = {name: (spec.frame(name).shape, getattr(torch, group.dtype)) for name, group in spec.obs.items()}
        self.columns = self._room(self.places)
        self.final_slot = np.full((rows, num_envs), -1, dtype=np.int32)
        # where the stack is one frame repeated, as when an episode starts: no frame before it is needed
        self.first = np.zeros((rows if self._axes else 0, num_envs), dtype=np.bool_)
        self._final = self._room(0)
        self._free: list[int] = []

    def _room(self, places: int) -> dict[str, Column]:
        """Make room for as many observations."""
        return {
            name: Column(torch.zeros(places, *shape, dtype=dtype, device=self.device))
            for name, (shape, dtype) in self._shapes.items()
        }

    @staticmethod
    def bytes_needed(spec: EnvSpec) -> int:
        """Return how many bytes one place takes; an episode's last observation, which lies aside, takes no more."""
        frames = map(spec.frame, spec.obs)
        return sum(f.size * (1 if f.dtype == "uint8" else 4) for f in frames) + 4 + (spec.frame_stack > 1)

    def write(self, row: int, obs: Obs) -> None:
        """Store what N environments show, of stacked frames the newest."""
        newest = self._newest(obs)
        for name, column in self.columns.items():
            column[self.of(row)] = newest[name]
        if self._axes:
            self.first[row] = True
        for name, axis in self._axes.items():
            stack, channels = obs[name], newest[name].shape[axis]
            rest = stack.shape[axis] - channels
            alike = stack.narrow(axis, 0, rest) == stack.narrow(axis, channels, rest)
            self.first[row] &= alike.flatten(1).all(1).numpy(force=True)

    def shown(self, row: int, name: str) -> Tensor:
        """Return what a row holds of one group, `[N, *shape]`: the memory itself, no copy."""
        return self.columns[name].values[self.of(row)]

    def of(self, row: int) -> slice:
        """Return the places of a row."""
        return slice(row * self.num_envs, (row + 1) * self.num_envs)

    def end(self, row: int, ended: np.ndarray, obs: Obs | None = None) -> None:
        """Keep the last observations of episodes whose last step is that of `row`.

        Args:
            row: the last step's.
            ended: `[K]` int64, the environments.
            obs: what all N environments had reached; None: what the next row shows.
        """
        if not ended.size:
            return
        while len(self._free) < len(ended):
            self._make_room()
        slots = np.array([self._free.pop() for _ in range(len(ended))])
        self.final_slot[row, ended] = slots
        to, whose = located(slots, self.device), torch.from_numpy(ended).to(self.device)
        following = (row + 1) % len(self.final_slot)
        newest = None if obs is None else self._newest(obs)
        for name, column in self._final.items():
            reached = self.shown(following, name) if newest is None else newest[name]
            column[to] = reached[whose]

    def _make_room(self) -> None:
        """Let the side store grow to twice its size, but not far beyond one observation for each place."""
        held = len(next(iter(self._final.values())).values)
        room = max(64, min(held, self.places - held))
        self._free.extend(range(held + room - 1, held - 1, -1))
        grown = self._room(held + room)
        for name, column in self._final.items():
            grown[name][:held] = column.values
        self._final = grown

    def release(self, row: int) -> None:
        """Give back the side store of a row about to be overwritten."""
        slots = self.final_slot[row]
        self._free.extend(slots[slots >= 0].tolist())
        self.final_slot[row] = -1

    def read(self, places: Places, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the observations at places `[B]`, of the groups `names` or of all."""
        at = located(places, self.device)
        return {
            name: self._stack(name, places) if name in self._axes else self.columns[name].take(at)
            for name in names or self.columns
        }

    def successors(self, places: Places, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the true successors of the steps at places `[B]`, of the groups `names` or of all."""
        successors = self.read((places + self.num_envs) % self.places, names)
        slot = self.final_slot.take(places)
        at_end = (slot >= 0).nonzero()[0]
        if at_end.size:
            slots, rows = located(slot[at_end], self.device), located(at_end, self.device)
            for name, values in successors.items():
                last = self._final[name].take(slots)
                if name in self._axes:
                    axis, channels = self._axes[name], last.shape[self._axes[name]]
                    shown = self._stack(name, places[at_end])
                    last = torch.cat([shown.narrow(axis, channels, shown.shape[axis] - channels), last], axis)
                Column(values)[rows] = last
        return successors

    @staticmethod
    def replace_goals(obs: dict[str, Tensor], goals: Goals) -> None:
        """Let those observations that were read want the goals given in hindsight to which one was given."""
        obs[DESIRED] = torch.where(beside(goals.replaced, goals.given), goals.given, obs[DESIRED])

    def _stack(self, name: str, places: Places) -> Tensor:
        """Rebuild the frames of a group as they were seen at places `[B]`."""
        column = self.columns[name]
        frames = [column.take(located(places, self.device))]
        for _ in range(self._frames - 1):
            before = (places - self.num_envs) % self.places
            places = np.where(self.first.take(places), places, before)
            frames.append(column.take(located(places, self.device)))
        return torch.cat(frames[::-1], self._axes[name])

    def _newest(self, obs: Obs) -> Obs:
        """Return an observation with the newest of stacked frames alone."""
        return {**obs, **{name: obs[name].chunk(self._frames, axis)[-1] for name, axis in self._axes.items()}}

    def state_dict(self, used: int) -> State:
        """Return the first `used` rows; nearly all of it is the ring's own memory."""
        return {
            "obs": {name: column.by_row(self.num_envs, used) for name, column in self.columns.items()},
            "final_obs": {name: column.values for name, column in self._final.items()},
            "final_slot": self.final_slot[:used],
            "first": self.first[:used],
            "free": torch.tensor(self._free, dtype=torch.long),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        for name, column in self.columns.items():
            column.by_row(self.num_envs, len(state["obs"][name]))[:] = state["obs"][name]
        self._final = {name: Column(saved.clone().to(self.device)) for name, saved in state["final_obs"].items()}
        self.final_slot.fill(-1)
        self.final_slot[: len(state["final_slot"])] = state["final_slot"]
        if self._axes:
            self.first[: len(state["first"])] = state["first"]
        self._free = state["free"].tolist()
