"""Episode statistics of our own: what an episode returned, how long it was, how it ended and what its terms came to.

They are counted from the steps themselves and not taken from what an environment says of itself, so that they mean
the same everywhere: rewards are summed raw and in float64, a dummy step belongs to no episode, and every number of
`Step.info` with one value an environment is reduced by its name:

- `success` and `termination/<term>`: the value at the step that ended the episode (an environment that means "ever
  succeeded" keeps the flag up until the end);
- `reward/<term>`, `cost` and `cost/<term>`: the sum over the episode, so that reward terms add up to the return;
- anything else (`tracking_error`, ...): the mean over the steps of the episode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from habilis.core.errors import EnvError
from habilis.core.types import State, Step


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode that ended."""

    env: int
    """Index of the environment it ran in."""
    total_reward: float
    """Its return: the undiscounted sum of the raw reward."""
    length: int
    """Number of its valid steps."""
    terms: dict[str, float] = field(default_factory=dict)
    """What each number of `Step.info` came to, reduced by its name as the module says."""

    @property
    def success(self) -> float | None:
        """1 or 0 where the environment says whether an episode succeeded, else None."""
        return self.terms.get("success")


def reduction(name: str) -> str:
    """Return how the number `name` of `Step.info` becomes one for an episode: `last`, `sum` or `mean`."""
    if name == "success" or name.startswith("termination/"):
        return "last"
    return "sum" if name == "cost" or name.startswith(("reward/", "cost/")) else "mean"


class EpisodeTracker:
    """Follows the episodes of N environments.

    An episode ends where `Step.done` says so, or at a step that is not valid (a simulation that diverged), which adds
    nothing to it; a step that is not valid between two episodes (a dummy) belongs to neither.

    Args:
        num_envs: N.
        window: number of episodes in `recent`, over which `summary` averages.
    """

    def __init__(self, num_envs: int, window: int = 100) -> None:
        self.num_envs = num_envs
        self.recent: deque[Episode] = deque(maxlen=window)
        self._names: list[str] | None = None  # the numbers of info, known from the first step on
        self._sums = torch.zeros(1, num_envs, dtype=torch.float64)  # [1 + names, N]: the reward, then `_names`
        self._lengths = torch.zeros(num_envs, dtype=torch.int64)

    def update(self, step: Step) -> list[Episode]:
        """Add one step of all environments; return the episodes that ended in it, by environment index."""
        if self._names is None:
            self._names = sorted(name for name, value in step.info.items() if value.dim() == 1)
            self._sums = torch.zeros(1 + len(self._names), self.num_envs, dtype=torch.float64)
        if self._sums.device != step.reward.device:
            self._sums = self._sums.to(step.reward.device)
            self._lengths = self._lengths.to(step.reward.device)
        try:
            values = torch.stack([step.reward, *[step.info[name] for name in self._names]])
        except KeyError as error:
            raise EnvError(
                f"info lacks {error} in this step: an environment must give the same keys every step"
            ) from None
        self._sums += torch.where(step.valid, values, 0)
        self._lengths += step.valid
        ended = ((step.done | ~step.valid) & (self._lengths > 0)).nonzero().squeeze(1)
        return self._finish(ended, values) if ended.numel() else []

    def _finish(self, ended: Tensor, values: Tensor) -> list[Episode]:
        names = self._names or []
        episodes = []
        columns = zip(
            ended.tolist(),
            self._lengths[ended].tolist(),
            self._sums[:, ended].T.tolist(),
            values[1:, ended].T.tolist(),
            strict=True,
        )
        for env, length, (total_reward, *sums), last in columns:
            by_kind = {"sum": sums, "last": last, "mean": [value / length for value in sums]}
            terms = {name: by_kind[reduction(name)][k] for k, name in enumerate(names)}
            episodes.append(Episode(env, total_reward, length, terms))
        self._sums[:, ended] = 0
        self._lengths[ended] = 0
        self.recent.extend(episodes)
        return episodes

    def reset(self) -> None:
        """Forget the episodes under way, because the environments were reset; `recent` stays."""
        self._sums.zero_()
        self._lengths.zero_()

    def summary(self) -> dict[str, float]:
        """Return the scalars of the recent episodes (see the function `summary`); empty before the first ended."""
        return summary(self.recent)

    def state_dict(self) -> State:
        """Return the episodes under way and the recent ones."""
        return {
            "names": self._names,
            "sums": self._sums.clone(),
            "lengths": self._lengths.clone(),
            "recent": [asdict(episode) for episode in self.recent],
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._names = None if state["names"] is None else list(state["names"])
        self._sums = state["sums"].clone()
        self._lengths = state["lengths"].clone()
        self.recent.clear()
        self.recent.extend(Episode(**episode) for episode in state["recent"])


def summary(episodes: Collection[Episode]) -> dict[str, float]:
    """Return the means over `episodes` under the names that people know; empty where there are none.

    `rollout/ep_rew_mean`, `rollout/ep_len_mean`, `rollout/success_rate`, `reward/<term>`, `termination/<term>` (the
    fraction that ended so), `rollout/ep_cost_mean`, and `info/<name>` for what else the environment tells.
    """
    if not episodes:
        return {}
    count = len(episodes)
    scalars = {
        "rollout/ep_rew_mean": sum(episode.total_reward for episode in episodes) / count,
        "rollout/ep_len_mean": sum(episode.length for episode in episodes) / count,
    }
    known = {"success": "rollout/success_rate", "cost": "rollout/ep_cost_mean"}
    for name in next(iter(episodes)).terms:
        kept = name.startswith(("reward/", "termination/", "cost/"))
        scalar = known.get(name, name if kept else f"info/{name}")
        scalars[scalar] = sum(episode.terms[name] for episode in episodes) / count
    return scalars
