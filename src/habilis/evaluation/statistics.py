"""What may honestly be said of a few scores: robust means, and intervals that show how little is known.

The interquartile mean, the stratified bootstrap and the probability of improvement are those of Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice"; the interval for proportions is Wilson's
(1927), which stays inside [0, 1] and is honest at 0 and at 1. Scores are `[n]`, or `[runs, tasks]` where several tasks
are looked at together.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from habilis.core.errors import ConfigError


class Statistic(Protocol):
    """A function that reduces scores along an axis, like `numpy.mean`."""

    def __call__(self, scores: np.ndarray, axis: int = -1) -> Any:
        """Reduce `axis`."""
        ...


def mean(scores: np.ndarray, axis: int = -1) -> Any:
    """Return the mean along `axis`."""
    return np.mean(scores, axis=axis)


def median(scores: np.ndarray, axis: int = -1) -> Any:
    """Return the median along `axis`."""
    return np.median(scores, axis=axis)


def iqm(scores: np.ndarray, axis: int = -1) -> Any:
    """Return the interquartile mean along `axis`: the mean of what is left without the n // 4 lowest and highest."""
    ordered = np.sort(scores, axis=axis)
    n = ordered.shape[axis]
    return np.take(ordered, np.arange(n // 4, n - n // 4), axis=axis).mean(axis=axis)


def bootstrap_interval(
    scores: ArrayLike,
    generator: np.random.Generator,
    *,
    statistic: Statistic = mean,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Return the stratified percentile bootstrap interval of `statistic` over all scores.

    Args:
        scores: `[n]`, or `[runs, tasks]`; each task is resampled within itself.
        generator: the stream that resamples.
        statistic: `mean`, `median`, `iqm` or another such function.
        confidence: the probability that the interval is to cover.
        resamples: number of resamples.

    Raises:
        ConfigError: if there are no scores.
    """
    strata = _strata(scores)
    runs = generator.integers(strata.shape[0], size=(resamples, *strata.shape))
    resampled = strata[runs, np.arange(strata.shape[1])].reshape(resamples, -1)
    low, high = np.quantile(statistic(resampled), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson_interval(successes: float, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a probability of which `successes` of `trials` were seen.

    Raises:
        ConfigError: if there are no trials.
    """
    if trials < 1:
        raise ConfigError("a proportion needs at least one trial to have an interval, got none: run some episodes")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / trials
    centre = p + z**2 / (2 * trials)
    half = z * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
    scale = 1 + z**2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _strata(scores: ArrayLike) -> np.ndarray:
    """Return the scores as `[runs, tasks]`."""
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0:
        raise ConfigError("a statistic needs at least one score, got none: run some episodes")
    return array[:, None] if array.ndim == 1 else array
