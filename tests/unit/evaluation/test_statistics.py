"""Statistics against numbers worked out by hand, or taken once from SciPy and written down."""

from __future__ import annotations

import numpy as np
import pytest

from habilis.core.errors import ConfigError
from habilis.evaluation.statistics import (
    bootstrap_interval,
    iqm,
    mean,
    median,
    wilson_interval,
)


def rng():
    return np.random.default_rng(0)


def test_iqm_drops_a_quarter_at_each_end():
    assert iqm(np.array([100.0, 1.0, 2.0, 3.0])) == 2.5
    assert iqm(np.array([5.0, 9.0, -1.0])) == pytest.approx(13 / 3)  # too few to drop any
    assert iqm(np.array([0, 0, 1, 2, 3, 4, 50, 60.0])) == 2.5


def test_iqm_equals_scipy_trim_mean():
    """The right-hand sides are what scipy.stats.trim_mean(x, 0.25) of SciPy 1.17.1 returns."""
    assert iqm(np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3.0])) == pytest.approx(3.6666666666666665)
    assert iqm(np.array([2.7, -1, 8.2, 8.1, 0.5, 3.3, 14, 2, 9, 7, -6.5])) == pytest.approx(4.542857142857143)


def test_statistics_reduce_an_axis():
    scores = np.array([[1.0, 2.0, 3.0, 10.0], [4.0, 4.0, 4.0, 4.0]])
    np.testing.assert_allclose(mean(scores), [4.0, 4.0])
    np.testing.assert_allclose(median(scores), [2.5, 4.0])
    np.testing.assert_allclose(iqm(scores), [2.5, 4.0])
    np.testing.assert_allclose(iqm(scores, axis=0), [2.5, 3.0, 3.5, 7.0])


def test_bootstrap_interval_of_the_mean_is_the_normal_one_for_many_scores():
    scores = rng().normal(10.0, 2.0, size=400)
    low, high = bootstrap_interval(scores, rng())
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.03)
    assert high == pytest.approx(scores.mean() + half, abs=0.03)


def test_bootstrap_resamples_each_task_within_itself():
    """Two tasks without any spread of their own have no interval, however far apart they are."""
    scores = np.array([[0.0, 100.0]] * 5)
    assert bootstrap_interval(scores, rng()) == (50.0, 50.0)
    low, high = bootstrap_interval(scores.reshape(-1), rng())
    assert low < 30
    assert high > 70


def test_bootstrap_draws_the_runs_of_each_task_apart():
    """Where runs were drawn whole, the two tasks would always cancel out and the interval vanish."""
    low, high = bootstrap_interval([[0.0, 1.0], [1.0, 0.0]], rng())
    assert low < 0.5 < high


def test_bootstrap_takes_the_statistic_and_the_confidence():
    scores = [0.0] * 19 + [1000.0]
    assert bootstrap_interval(scores, rng(), statistic=median) == (0.0, 0.0)
    wide, narrow = bootstrap_interval(range(50), rng()), bootstrap_interval(range(50), rng(), confidence=0.5)
    assert wide[0] < narrow[0] < 24.5 < narrow[1] < wide[1]


def test_bootstrap_is_drawn_from_the_given_generator():
    assert bootstrap_interval(range(20), rng()) == bootstrap_interval(range(20), rng())


def test_wilson_interval_by_hand():
    """9 of 10, z = 1.96: centre (0.9 + 0.19208) / 1.38416, half sqrt(0.009 + 0.0096040) * 1.96 / 1.38416."""
    low, high = wilson_interval(9, 10)
    assert low == pytest.approx(0.59585, abs=1e-5)
    assert high == pytest.approx(0.98212, abs=1e-5)
    assert wilson_interval(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson_interval(0, 10)[1] == pytest.approx(0.27753, abs=1e-5)
    assert wilson_interval(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)


def test_nothing_to_say_of_nothing():
    with pytest.raises(ConfigError, match="at least one score"):
        bootstrap_interval([], rng())
    with pytest.raises(ConfigError, match="at least one trial"):
        wilson_interval(0, 0)
