"""Episode statistics of our own: what an episode returned, how long it was, how it ended and what its terms came to.

They are counted from the steps themselves and not taken from what an environment says of itself, so that they mean
the same everywhere: rewards are summed raw and in float64, a dummy step belongs to no episode, and every number of
`Step.info` with one value an environment is reduced by its name:

- `success`, `success/<part>`, `diverged` and `termination/<term>`: the value at the step that ended the episode (an
  environment that means "ever succeeded" keeps the flag up until the end);
- `reward/<term>`, `cost` and `cost/<term>`: the sum over the episode, so that reward terms add up to the return;
- anything else (`tracking_error`, ...): the mean over the steps of the episode that told it.

A sum of which a step is not known (NaN), and a mean of none, is not known.

A simulation may diverge at the first step of an episode, which then is none: every such step is counted by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan, nan

import numpy as np
from torch import Tensor

from habilis.core.errors import EnvError
from habilis.core.types import NamedRows, State, Step

LONGEST_EPISODE = 100_000
"""Steps after which an episode is taken for one that never ends."""
DIVERGED = ("diverged", "termination/diverged")
"""By which of these `Step.info` says that a step is not valid because the simulation diverged."""


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


def reduction(name: str) -> str:
    """Return how the number `name` of `Step.info` becomes one for an episode: `last`, `sum` or `mean`."""
    if name in ("success", "diverged") or name.startswith(("success/", "termination/")):
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
        self.count = 0  # episodes that ended
        self.diverged = 0  # steps in which a simulation diverged
        self._names: tuple[str, ...] = ()  # the numbers of info, in the order of the rows of `_sums`
        self._keys = 0  # length of info when `_names` was made; an environment may show more later, never fewer
        self._returns = np.zeros(num_envs)
        self._sums = np.zeros((0, num_envs))  # [names, N]
        self._gaps = np.zeros((0, num_envs), dtype=np.int64)  # [names, N], steps that did not tell a number
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def update(self, step: Step) -> list[Episode]:
        """Add one step of all environments; return the episodes that ended in it, by environment index."""
        if len(step.info) != self._keys:
            self._adopt(step)
        reward, terms = step.reward.numpy(force=True), self._terms(step.info)
        valid = step.valid.numpy(force=True)
        stopped = step.terminated.numpy(force=True) | step.truncated.numpy(force=True)
        told = terms if isinstance(step.info, NamedRows) else self._without_gaps(terms, valid)
        if valid.all():
            self._returns += reward
            self._sums += told
        else:
            stopped |= ~valid
            self._returns += np.where(valid, reward, 0)
            self._sums += np.where(valid, told, 0)
            diverged = [terms[k] > 0 for k, name in enumerate(self._names) if name in DIVERGED]
            self.diverged += int((np.any(diverged, axis=0) & ~valid).sum())
        self._lengths += valid
        return self._finish(np.flatnonzero(stopped & (self._lengths > 0)), terms) if np.count_nonzero(stopped) else []

    def _adopt(self, step: Step) -> None:
        """Make room for the numbers that `step` brings."""
        self._keys = len(step.info)
        new = tuple(name for name, value in step.info.items() if value.dim() == 1 and name not in self._names)
        self._names += new
        self._sums = np.concatenate([self._sums, np.zeros((len(new), self.num_envs))])
        # a cost that was not told was none
        gaps = [np.where(name == "cost", 0, self._lengths) for name in new]
        self._gaps = np.concatenate([self._gaps, np.reshape(gaps, (len(new), self.num_envs)).astype(np.int64)])

    def _terms(self, info: Mapping[str, Tensor]) -> np.ndarray:
        """Return the numbers of `info`, `[names, N]`."""
        if isinstance(info, NamedRows) and info.names == self._names:
            return info.rows.numpy(force=True)
        if not self._names:
            return self._sums  # which has no rows
        try:
            rows = [info[name].numpy(force=True) for name in self._names]
        except KeyError as error:
            raise EnvError(
                f"info lacks {error} in this step: an environment must give the same keys every step"
            ) from None
        return np.concatenate(rows, dtype=np.float64).reshape(self._sums.shape)

    def _without_gaps(self, terms: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return `terms` with 0 for what this step does not tell, and count that."""
        unknown = np.isnan(terms)
        if not unknown.any():
            return terms
        self._gaps += unknown & valid
        return np.where(unknown, 0, terms)

    def _finish(self, ended: np.ndarray, values: np.ndarray) -> list[Episode]:
        lengths, totals, terms = self._lengths[ended], self._returns[ended], list(self._sums[:, ended])
        gaps = self._gaps[:, ended]
        for k, name in enumerate(self._names):
            kind = reduction(name)
            if kind == "last":
                terms[k] = values[k, ended]
            elif kind == "mean":
                steps = lengths - gaps[k]
                terms[k] = np.divide(terms[k], steps, out=np.full(len(ended), nan), where=steps > 0)
            else:
                terms[k] = np.where(gaps[k] > 0, nan, terms[k])
        numbers = [term.tolist() for term in terms]
        rows = zip(*numbers, strict=True) if numbers else ((),) * len(ended)
        columns = zip(ended.tolist(), totals.tolist(), lengths.tolist(), rows, strict=True)
        episodes = [
            Episode(env, total_reward, length, dict(zip(self._names, row, strict=True)))
            for env, total_reward, length, row in columns
        ]
        self._returns[ended] = 0
        self._sums[:, ended] = 0
        self._gaps[:, ended] = 0
        self._lengths[ended] = 0
        self.take(episodes)
        return episodes

    def take(self, episodes: Sequence[Episode]) -> None:
        """Add episodes that ended, here or in another process."""
        self.count += len(episodes)
        self.recent.extend(episodes)

    def reset(self) -> None:
        """Forget the episodes under way, because the environments were reset or made anew; `recent` stays.

        The numbers that they told are forgotten too: a new environment may show each of them later than the first.
        """
        self._names, self._keys = (), 0
        self._returns[:] = 0
        self._sums = np.zeros((0, self.num_envs))
        self._gaps = np.zeros((0, self.num_envs), dtype=np.int64)
        self._lengths[:] = 0

    def summary(self) -> dict[str, float]:
        """Return the scalars of the recent episodes (see the function `summary`); empty before the first ended.

        Where simulations diverged, `rollout/diverged_steps` is how often that was, from the beginning on.
        """
        return summary(self.recent) | ({"rollout/diverged_steps": self.diverged} if self.diverged else {})

    def state_dict(self) -> State:
        """Return the episodes under way and the recent ones."""
        return {
            "names": list(self._names),
            "sums": np.concatenate([self._returns[None], self._sums]),
            "gaps": self._gaps.copy(),
            "lengths": self._lengths.copy(),
            "recent": [asdict(episode) for episode in self.recent],
            "count": self.count,
            "diverged": self.diverged,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._names = tuple(state["names"])
        self._keys = 0
        self._returns, self._sums = state["sums"][0].copy(), state["sums"][1:].copy()
        self._lengths = state["lengths"].copy()
        self._gaps = np.array(state.get("gaps", np.zeros_like(self._sums, np.int64)))  # which older checkpoints lack
        self.count = state.get("count", 0)  # which checkpoints of older versions lack
        self.diverged = state.get("diverged", 0)  # likewise
        self.recent.clear()
        self.recent.extend(Episode(**episode) for episode in state["recent"])


def summary(episodes: Collection[Episode]) -> dict[str, float]:
    """Return the means over `episodes` under the names that people know; empty where there are none.

    `rollout/ep_rew_mean`, `rollout/ep_len_mean`, `rollout/success_rate`, `success/<part>`, `reward/<term>`,
    `termination/<term>` (the fraction that ended so), `rollout/ep_cost_mean`, and `info/<name>` for what else the
    environment tells. An episode of which a number is not known (NaN) does not count for it.
    """
    if not episodes:
        return {}
    count = len(episodes)
    scalars = {
        "rollout/ep_rew_mean": sum(episode.total_reward for episode in episodes) / count,
        "rollout/ep_len_mean": sum(episode.length for episode in episodes) / count,
    }
    known = {"success": "rollout/success_rate", "cost": "rollout/ep_cost_mean", "diverged": "termination/diverged"}
    for name in sorted({name for episode in episodes for name in episode.terms}):
        values = [episode.terms[name] for episode in episodes if not isnan(episode.terms.get(name, nan))]
        if values:
            kept = name.startswith(("reward/", "termination/", "success/", "cost/"))
            scalars[known.get(name, name if kept else f"info/{name}")] = sum(values) / len(values)
    return scalars
