"""Hindsight: what an episode reached becomes the goal it had wanted (Andrychowicz et al. 2017, arXiv 1707.01495).

Nothing is stored twice: goals are replaced when transitions are sampled. `Hindsight` knows where in the ring of a
`ReplayBuffer` each episode begins and ends, draws for a transition a step of its episode whose outcome becomes the
goal, and judges rewards and endings anew. Of n + 1 transitions n get another goal, so that the batch is in expectation
what storing n copies of each transition would give. All of it works on whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from habilis.core.config import require
from habilis.core.errors import EnvError
from habilis.core.protocols import GoalEnv
from habilis.core.specs import ACHIEVED, GoalSelection
from habilis.core.tree import beside
from habilis.core.types import State, Step
from habilis.data.columns import Places

UNDER_WAY = -1
"""Steps left in an episode that has not ended yet."""

CHECKED = 100
"""Rows of steps, at first, whose rewards are held to what the environment says of their goals."""


@dataclass(frozen=True, slots=True)
class Goals:
    """The goals of B sampled transitions."""

    replaced: Tensor
    """`[B]` bool: those whose goal is not the one that was wanted at the time."""
    wanted: Tensor
    """`[B, *goal]`: what was wanted at the time."""
    given: Tensor
    """`[B, *goal]`: what is wanted now."""


class Hindsight:
    """Draws goals for transitions of a replay buffer, and judges their rewards and endings by them.

    Args:
        env: environments with goals, which say what reaching one pays.
        strategy: which steps the goals come from: "final" takes the last of the episode, "future" the transition's own
            or any after it, "episode" any. The last of an episode under way is its newest.
        n_sampled_goal: transitions with another goal for each one that keeps its own.
        generator: source of the draws.

    Raises:
        ConfigError: the environment has no goals, or the rest does not fit.
        EnvError: it does not say what reaching one pays.
    """

    def __init__(
        self, env: GoalEnv, *, strategy: GoalSelection, n_sampled_goal: int = 4, generator: np.random.Generator
    ) -> None:
        require(strategy != "none", "hindsight needs a goal_selection_strategy: final, future or episode")
        require(n_sampled_goal > 0, f"n_sampled_goal must be positive, got {n_sampled_goal}")
        require(
            env.spec.has_goals,
            f"{env.spec.id} has no goals to learn about in hindsight: it must observe a Dict of observation, "
            "achieved_goal and desired_goal",
        )
        require(
            env.spec.frame_stack == 1 or not env.spec.obs[ACHIEVED].is_image,
            f"{env.spec.id} has pictures for goals, which are single frames, and frame_stack {env.spec.frame_stack} "
            "would stack them: leave frame_stack at 1",
        )
        if getattr(env, "compute_reward", None) is None:
            raise EnvError(
                f"{env.spec.id} does not say what reaching a goal pays: give it compute_reward(achieved_goal, "
                "desired_goal, info), as Gymnasium-Robotics has"
            )
        self._id = env.spec.id
        self._reward, self._terminated = env.compute_reward, getattr(env, "compute_terminated", None)
        self._strategy = strategy
        self._share = n_sampled_goal / (n_sampled_goal + 1)
        self._generator = generator
        self._to_check, self._seen, self._wrong = CHECKED, 0, 0

    @staticmethod
    def bytes_needed(capacity: int) -> int:
        """Return how many bytes it takes to know the episodes of `capacity` transitions."""
        return 8 * capacity

    def reserve(self, rows: int, held: int, num_envs: int) -> None:
        """Make room for a ring of `rows`, of which `held` have transitions: what a buffer does when it is made."""
        self._held = held
        self._since = np.zeros((rows, num_envs), dtype=np.int32)
        self._left = np.full_like(self._since, UNDER_WAY)
        self._length = np.zeros(num_envs, dtype=np.int32)  # of the episodes under way

    def add(self, row: int, step: Step, desired: Tensor) -> None:
        """Follow the episodes by one step of each environment.

        Args:
            row: where it is stored.
            step: what came of it.
            desired: `[N, *goal]`, the goals before it.

        Raises:
            EnvError: rewards or endings are not what the environment says that goals pay.
        """
        self._check(step, desired.to(step.reward.device))
        self._since[row] = self._length
        self._left[row] = UNDER_WAY
        valid = step.valid.numpy(force=True)
        self._length += valid
        for env in np.flatnonzero(step.done.numpy(force=True) | ~valid):
            # a step that is not valid belongs to no episode and ends the one before it
            self._close(row if valid[env] else row - 1, int(env))

    def cut(self, row: int) -> None:
        """End all episodes under way at `row`: new ones were begun without a last step."""
        for env in range(len(self._length)):
            self._close(row, env)

    def _close(self, row: int, env: int) -> None:
        """Count back from the last step of an episode, at `row`."""
        steps = np.arange(min(self._length[env], self._held))
        self._left[(row - steps) % len(self._left), env] = steps
        self._length[env] = 0

    def _check(self, step: Step, desired: Tensor) -> None:
        """Hold rewards and endings to what the environment says that goals pay."""
        if self._terminated is None and (step.terminated & step.valid).any():
            raise EnvError(
                f"{self._id} terminated an episode and does not say which goals do: give it compute_terminated("
                "achieved_goal, desired_goal, info), which is False throughout where no goal does"
            )
        if self._to_check == 0:
            return
        self._to_check -= 1
        difference = (self._reward(step.next_obs[ACHIEVED], desired) - step.reward).abs()
        self._seen += int(step.valid.sum())
        self._wrong += int((step.valid & ~(difference <= 1e-4 * (1 + step.reward.abs()))).sum())
        # where float32 rounds a distance across a threshold, one in a million differs
        if self._to_check == 0 and self._wrong > 0.01 * self._seen:
            raise EnvError(
                f"{self._id} paid something else than its compute_reward in {self._wrong} of {self._seen} steps: "
                "hindsight needs rewards that follow from the goals alone, under the wrappers as well"
            )

    def draw(self, index: Places, oldest: int, newest: int) -> Places:
        """Draw the steps that goals come from, for transitions at places `[B]`.

        Args:
            index: `[B]` int64.
            oldest: the oldest row that holds a transition.
            newest: the newest.
        """
        rows, num_envs = self._left.shape
        row = index // num_envs
        left = self._left.take(index)
        left = np.where(left == UNDER_WAY, (newest - row) % rows, left)
        if self._strategy == "final":
            steps = left
        else:
            chance = self._generator.random(len(index))
            # of an episode partly overwritten, what is there
            since = np.minimum(self._since.take(index), (row - oldest) % rows) if self._strategy == "episode" else 0
            steps = (chance * (left + since + 1)).astype(np.int64) - since
        return (index + steps * num_envs) % self._left.size

    def replace(self, wanted: Tensor, achieved: Tensor) -> Goals:
        """Give most of the transitions the goal `achieved` instead of `wanted`, both `[B, *goal]`."""
        replaced = torch.from_numpy(self._generator.random(len(wanted)) < self._share).to(wanted.device)
        given = torch.where(beside(replaced, wanted), achieved, wanted)
        return Goals(replaced, wanted, given)

    def judge(self, goals: Goals, achieved: Tensor, reward: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        """Return what steps pay and whether they terminate under other goals.

        An ending that the goal wanted at the time does not explain, a fall say, stays one.

        Args:
            goals: of B transitions.
            achieved: `[B, *goal]`: what they reached, or `[n, B, *goal]`: what n steps from each did.
            reward: `[B]` or `[n, B]`: what they paid at the time.
            terminated: likewise: whether they terminated.
        """
        last = reward.dim() - 1
        flat = achieved.flatten(0, last)
        given, wanted = (x.expand_as(achieved).flatten(0, last) for x in (goals.given, goals.wanted))
        reward = torch.where(goals.replaced, self._reward(flat, given).view_as(reward), reward)
        if self._terminated is not None:
            ends = self._terminated(flat, given) | (terminated.flatten() & ~self._terminated(flat, wanted))
            terminated = torch.where(goals.replaced, ends.view_as(terminated), terminated)
        return reward, terminated

    def state_dict(self, used: int) -> State:
        """Return where the episodes of the first `used` rows lie."""
        return {"since": self._since[:used], "left": self._left[:used], "length": self._length.copy()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        for name, column in (("since", self._since), ("left", self._left)):
            column[: len(state[name])] = state[name]
        self._length[:] = np.asarray(state["length"])
