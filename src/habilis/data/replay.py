"""Replay: a time-major ring of transitions of N environments, n-step returns assembled at sampling.

Transitions are drawn uniformly, or by the priorities that the buffer is given; they get other goals where it is given
hindsight, and show what led to them where it is given windows. Observations are stored once (`data/observations.py`),
and of stacked frames only the newest. A million transitions of HalfCheetah take 103 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import empty_actions
from habilis.core.batches import TransitionBatch
from habilis.core.errors import ConfigError
from habilis.core.specs import ACHIEVED, DESIRED, EnvSpec
from habilis.core.types import Obs, State, Step
from habilis.data.columns import Column, Places, located
from habilis.data.hindsight import Goals, Hindsight
from habilis.data.observations import ObservationRing
from habilis.data.priorities import Priorities
from habilis.data.windows import Windows
from habilis.functional.n_step import n_step_return

PARTS = {
    "priorities": "has no priorities: resume with uniform sampling, as in the run",
    "hindsight": "knows no episodes: resume without hindsight, as in the run",
    "windows": "has no memory: resume without memory, as in the run",
}
"""What a buffer may be given, and what is to be done about a saved one that was not."""

DRAWN_TOGETHER = 1024
"""Observations drawn at once for several batches: most of the time of drawing few does not hang on their number."""


class ReplayBuffer:
    """A ring of the last `capacity` transitions.

    Args:
        spec: what a transition consists of.
        capacity: transitions held, over all environments.
        num_envs: environments that write side by side.
        generator: source of the sampled indices.
        n_steps: rewards summed before bootstrapping.
        gamma: discount.
        device: where the data lies.
        priorities: what decides how often a transition is drawn; None for all of them alike.
        hindsight: what gives sampled transitions other goals; None leaves them as they were.
        windows: what shows the steps before each sampled one as well, and what the policy remembered; None: neither.
    """

    def __init__(
        self,
        spec: EnvSpec,
        capacity: int,
        num_envs: int,
        *,
        generator: np.random.Generator,
        n_steps: int = 1,
        gamma: float = 0.99,
        device: str = "cpu",
        priorities: Priorities | None = None,
        hindsight: Hindsight | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.held = -(-capacity // num_envs)
        if self.held < n_steps:
            raise ConfigError(
                f"a replay buffer of {capacity} transitions holds {self.held} of each of {num_envs} environments, "
                f"fewer than {n_steps}-step targets need: raise buffer_size"
            )
        steps = 1 if windows is None else windows.length
        # the newest row has its observation already, its action not yet; the oldest show frames and steps before them
        self.rows = self.held + spec.frame_stack + steps - 1
        self._together = max(1, DRAWN_TOGETHER // steps)
        self.num_envs = num_envs
        self.n_steps = n_steps
        self.gamma = gamma
        self._generator = generator
        self.device = torch.device(device)
        self.observations = ObservationRing(spec, self.rows, num_envs, device)
        places = self.observations.places
        self.actions = Column(empty_actions(spec, (places,), device))
        self.rewards = Column(torch.zeros(places, device=device))
        self.terminated = Column(torch.zeros(places, dtype=torch.bool, device=device))
        self.done = np.zeros((self.rows, num_envs), np.bool_)
        self.valid = np.zeros_like(self.done)
        self._added = 0
        self._all_valid = True
        self.priorities = priorities
        if priorities is not None:
            priorities.reserve(places)
        self.hindsight = hindsight
        if hindsight is not None:
            hindsight.reserve(self.rows, self.held, num_envs)
        self.windows = windows
        if windows is not None:
            windows.reserve(self.observations)
        self._shown = windows or self.observations

    def __len__(self) -> int:
        return min(self._added, self.held) * self.num_envs

    @staticmethod
    def bytes_needed(spec: EnvSpec, capacity: int) -> int:
        """Return how many bytes `capacity` transitions take, without what is kept aside and what other parts keep."""
        action = empty_actions(spec, (1,), "cpu")
        return capacity * (ObservationRing.bytes_needed(spec) + action.numel() * action.element_size() + 4 + 3)

    @property
    def _head(self) -> int:
        """The newest row."""
        return self._added % self.rows

    def start(self, obs: Obs) -> None:
        """Set the observation that the next action answers.

        Transitions already held stay: an episode under way (environments that could not save their state, after a
        resume) ends there as truncated, with the observation it had reached.
        """
        if self._added:
            newest = (self._head - 1) % self.rows
            # those whose last observation is not kept aside: under way, or ended in an environment that resets later
            self.observations.end(newest, (self.observations.final_slot[newest] < 0).nonzero()[0])
            self.done[newest] = True
            if self.hindsight is not None:
                self.hindsight.cut(newest)
        self.observations.write(self._head, obs)
        if self.windows is not None:
            self.windows.start(self._head)

    def add(self, action: Tensor, step: Step, memory: Tensor | None = None) -> None:
        """Store one transition of each environment.

        Args:
            action: `[N, ...]` in the policy's units.
            step: what came of it.
            memory: `[N, memory_dim]`: what the policy had remembered, for windows; None for nothing.
        """
        row, following = self._head, (self._head + 1) % self.rows
        leaving = (row - self.held) % self.rows
        if self._added >= self.rows - 1:
            self.observations.release(following)
        if self.hindsight is not None:
            self.hindsight.add(row, step, self.observations.shown(row, DESIRED))
        if self.windows is not None:
            self.windows.add(row, step, memory)
        places = self.observations.of(row)
        self.actions[places] = action
        self.rewards[places] = step.reward
        self.terminated[places] = step.terminated
        valid, done = step.valid.numpy(force=True), step.done.numpy(force=True)
        self.valid[row], self.valid[leaving], self.done[row] = valid, False, done
        if step.next_obs is not step.obs:
            self.observations.end(row, done.nonzero()[0], step.next_obs)
        self.observations.write(following, step.obs)
        self._all_valid = self._all_valid and bool(valid.all())
        if self.priorities is not None:
            envs = np.arange(self.num_envs)
            self.priorities.enter(row * self.num_envs + envs, valid)
            self.priorities.leave(leaving * self.num_envs + envs)
        self._added += 1

    def sample(self, batch_size: int) -> TransitionBatch:
        """Draw transitions, with replacement, from those that may be learnt from: uniformly or by their priorities."""
        by, n = self.priorities, batch_size
        index, weight, number = (self._draw(n), None, None) if by is None else self._draw_by_priority(n, by)
        obs = self._shown.read(index)
        action = self.actions.take(located(index, self.device))
        goals = None if self.hindsight is None else self._choose_goals(index, self.hindsight)
        if self.n_steps == 1:
            reward, terminated = self._outcomes(index, goals)
            last, discount = index, torch.full_like(reward, self.gamma)
        else:
            reward, discount, last, terminated = self._n_step(index, goals)
        next_obs = self._shown.successors(last)
        if goals is not None:
            self._shown.replace_goals(obs, goals)
            self._shown.replace_goals(next_obs, goals)
        return TransitionBatch(obs, action, reward, terminated, next_obs, discount, weight, number)

    def batches(self, batch_size: int, count: int) -> Iterator[TransitionBatch]:
        """Yield `count` batches as `sample` does, drawn together where no priorities change between them."""
        together = 1 if self.priorities is not None else max(1, self._together // batch_size)
        while count > 0:
            drawn = min(count, together)
            count -= drawn
            yield from self.sample(batch_size * drawn).split(batch_size) if drawn > 1 else [self.sample(batch_size)]

    def update_priorities(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of a sampled batch by its temporal differences.

        Args:
            index: `[B]` int64, the batch's `index`; what was overwritten since it was drawn is passed over.
            td_error: `[B]`, of either sign; where it is not finite the priority stays as it was.
        """
        assert self.priorities is not None, "a buffer without priorities gives batches without an index"
        number = index.numpy(force=True)
        held = number >= (self._added - self.held) * self.num_envs
        self.priorities.update(number[held] % self.valid.size, td_error.numpy(force=True)[held])

    def anneal(self, progress: float) -> None:
        """Set what changes over the run, for `progress` in [0, 1] of it: how far importance weights correct."""
        if self.priorities is not None:
            self.priorities.anneal(progress)

    def _draw(self, batch_size: int) -> Places:
        """Draw the places of valid transitions, `[batch_size]` int64."""
        places = self._draw_any(batch_size)
        if not self._all_valid:
            while (refused := ~self.valid.take(places)).any():
                if refused.all() and not self.valid.any():
                    raise ConfigError("the replay buffer holds no transition to learn from: every step was invalid")
                places[refused] = self._draw_any(int(refused.sum()))
        return places

    def _draw_any(self, count: int) -> Places:
        if not self._added:
            raise ConfigError("the replay buffer is empty: add steps before sampling")
        oldest = self._added * self.num_envs - len(self)
        return (oldest + self._generator.integers(len(self), size=count)) % self.valid.size

    def _draw_by_priority(self, batch_size: int, priorities: Priorities) -> tuple[Places, Tensor, Tensor]:
        """Draw places `[batch_size]` by priority; return them, importance weights, and the transitions' numbers.

        Transitions are numbered as they came, environments side by side: unlike a place, a number is used only once.
        """
        if not priorities.tree.total:
            raise ConfigError("the replay buffer holds no transition to learn from: add valid steps before sampling")
        places, weight = priorities.draw(batch_size, self._generator)
        oldest = (self._added - self.held) * self.num_envs
        number = oldest + (places - oldest) % self.valid.size
        return places, torch.from_numpy(weight).to(self.device), torch.from_numpy(number).to(self.device)

    def _choose_goals(self, index: Places, hindsight: Hindsight) -> Goals:
        """Choose goals of what episodes reached, for transitions at places `[B]`."""
        oldest, newest = (self._added - len(self) // self.num_envs) % self.rows, (self._head - 1) % self.rows
        source = hindsight.draw(index, oldest, newest)
        wanted = self.observations.read(index, (DESIRED,))[DESIRED]
        return hindsight.replace(wanted, self.observations.successors(source, (ACHIEVED,))[ACHIEVED])

    def _outcomes(self, places: Places, goals: Goals | None) -> tuple[Tensor, Tensor]:
        """Return rewards and terminations of the steps at `[B]` or `[n, B]`, in hindsight of B transitions' goals."""
        at = located(places, self.device)
        reward, terminated = self.rewards.take(at), self.terminated.take(at)
        if goals is None or self.hindsight is None:
            return reward, terminated
        achieved = self.observations.successors(places.flatten(), (ACHIEVED,))[ACHIEVED]
        return self.hindsight.judge(goals, achieved.unflatten(0, places.shape), reward, terminated)

    def _n_step(self, index: Places, goals: Goals | None) -> tuple[Tensor, Tensor, Places, Tensor]:
        """Sum rewards from places `[B]` on, up to an episode's end, the newest step or a step that is not valid."""
        window = (index + np.arange(self.n_steps + 1)[:, None] * self.num_envs) % self.valid.size
        # the newest row is never valid, so what is written there next ends a window as well
        stop = torch.from_numpy(self.done.take(window[:-1]) | ~self.valid.take(window[1:])).to(self.device)
        rewards, terminated = self._outcomes(window[:-1], goals)
        # another goal may end the episode sooner
        reward, discount, last, ended = n_step_return(rewards, terminated, stop | terminated, self.gamma)
        return reward, discount, window[last.numpy(force=True), np.arange(len(index))], ended

    def state_dict(self) -> State:
        """Return what is held, and nothing of the room that is still empty; most of it is the buffer's own memory."""
        used = min(self._added + 1, self.rows)
        priorities = self.priorities
        return {
            "rows": self.rows,
            "num_envs": self.num_envs,
            "head": self._head,
            "size": used - 1,
            "all_valid": self._all_valid,
            **self.observations.state_dict(used),
            "priorities": None if priorities is None else priorities.state_dict(used * self.num_envs),
            "hindsight": None if self.hindsight is None else self.hindsight.state_dict(used),
            "windows": None if self.windows is None else self.windows.state_dict(used),
            **self._columns(used),
        }

    def _columns(self, used: int) -> dict[str, Tensor | np.ndarray]:
        """Return the first `used` rows of what is held besides observations: the memory itself."""
        columns = {"actions": self.actions, "rewards": self.rewards, "terminated": self.terminated}
        rows = {name: column.by_row(self.num_envs, used) for name, column in columns.items()}
        return {**rows, "done": self.done[:used], "valid": self.valid[:used]}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigError: the sizes differ, or this buffer was given priorities, hindsight or windows and that one not.
        """
        if (state["rows"], state["num_envs"]) != (self.rows, self.num_envs):
            raise ConfigError(
                f"the saved replay buffer has {state['rows']} rows of {state['num_envs']} environments and this one "
                f"{self.rows} of {self.num_envs}: resume with the buffer_size, num_envs, frame_stack and memory.window "
                "of the run"
            )
        parts = {name: part for name in PARTS if (part := getattr(self, name)) is not None}
        for name in parts:
            if state.get(name) is None:
                raise ConfigError(f"the saved replay buffer {PARTS[name]}")
        # how often the ring has turned before is of no account: no batch drawn then waits for its priorities
        self._added = state["head"] + (self.rows if state["size"] == self.rows - 1 else 0)
        self._all_valid = state["all_valid"]
        self.observations.load_state_dict(state)
        self.valid.fill(False)
        for name, rows in self._columns(len(state["valid"])).items():
            rows[:] = state[name]
        for name, part in parts.items():
            part.load_state_dict(state[name])
