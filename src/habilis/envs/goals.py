"""Goals: what reaching one pays, by a known rule of distance or by an environment's own function.

Learning in hindsight asks these functions of many goals at once that were never wanted; see `GoalEnv`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from habilis.core.errors import EnvError
from habilis.core.protocols import GoalFunction


def distance_reward(achieved: Tensor, desired: Tensor, *, threshold: float, dense: bool = False) -> Tensor:
    """Pay -1 beyond `threshold` of the goal and 0 within it, as Gymnasium-Robotics does; dense: minus the distance.

    Args:
        achieved: `[B, k]`.
        desired: `[B, k]`.
        threshold: Euclidean distance up to which a goal is reached.
        dense: whether the distance itself counts.
    """
    distance = torch.linalg.vector_norm(achieved - desired, dim=-1)
    return -distance if dense else torch.where(distance > threshold, -1.0, 0.0)


def distance_rule(config: Any) -> GoalFunction | None:
    """Return what EnvPool pays for goals by the configuration of its robots, None where it is no rule of distance.

    It does not expose the function. Fetch and the reaching hand pay by distance alone; a hand that turns an object pays
    for angles, and a maze otherwise.
    """
    if not hasattr(config, "distance_threshold") or getattr(config, "hand_task", "reach") != "reach":
        return None
    return partial(distance_reward, threshold=config.distance_threshold, dense=config.reward_type == "dense")


class OwnFunction:
    """A Gymnasium environment's `compute_reward` or `compute_terminated`, asked of batches.

    Many take a batch as they are, some only one goal: which, is found out at the first call. The info that they are
    handed is empty.

    Args:
        name: what the function is called, for errors.
        function: `(achieved, desired, info)`, of one or of many.
        space: of a goal.
        dtype: of the answers.
    """

    def __init__(self, name: str, function: Callable[..., Any], space: spaces.Space, dtype: torch.dtype) -> None:
        if not isinstance(space, spaces.Box | spaces.MultiBinary):
            raise EnvError(
                f"{name} is asked of goals in a {type(space).__name__} space: hindsight needs goals in one array, "
                "a Box or MultiBinary space"
            )
        self._name, self._function, self._space, self._dtype = name, function, space, dtype
        self._takes_batches: bool | None = None

    def __call__(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Answer for `[B, *goal]` each: `[B]`.

        Raises:
            EnvError: the function raises for a single goal, or answers with more than a number.
        """
        goals = [self._goals(achieved), self._goals(desired)]
        if self._takes_batches is None:
            self._takes_batches = self._try_a_batch(*goals)
        answers = self._function(*goals, {}) if self._takes_batches else self._one_by_one(*goals)
        return torch.from_numpy(np.array(answers)).to(achieved.device, self._dtype)

    def _goals(self, rows: Tensor) -> np.ndarray:
        return rows.numpy(force=True).astype(self._space.dtype).reshape(len(rows), *self._space.shape)

    def _one_by_one(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        try:
            return np.array([float(self._function(*pair, {})) for pair in zip(achieved, desired, strict=True)])
        except Exception as error:
            raise EnvError(
                f"{self._name}(achieved_goal, desired_goal, info={{}}) raised {type(error).__name__}: {error}; in "
                "hindsight the reward must follow from the goals alone"
            ) from error

    def _try_a_batch(self, achieved: np.ndarray, desired: np.ndarray) -> bool:
        """Whether the function answers three goals as it answers each."""
        three = [np.concatenate([goals] * 3)[:3] for goals in (achieved, desired)]
        # every goal is tried against another one as well
        three[1][2] = achieved[0]
        singly = self._one_by_one(*three)
        try:
            together = np.asarray(self._function(*three, {}), np.float64)
        except Exception:  # a function of one goal may fail on three in any way
            return False
        return together.shape == singly.shape and np.allclose(together, singly)
