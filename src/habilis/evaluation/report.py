"""From run directories to one self-contained HTML page: what was trained, how well it does, and how it came to it.

Runs of one algorithm in one environment whose configurations differ in nothing but the seed (and where they were
written) are one group. A group's line is the interquartile mean over its runs and its band the 95% bootstrap interval
of that, as far as all of its runs have come; each run is a faint line of its own. This module finds out what the page
says; `report_page` says it in HTML, and `report_template.html` is its look and its charts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from habilis.core.errors import ConfigError
from habilis.core.files import replace_text
from habilis.evaluation import report_page
from habilis.evaluation.runs import Curve, RunRecord, read_run
from habilis.evaluation.statistics import bootstrap_interval, iqm, mean, wilson_interval

POINTS = 240
"""Points of a curve on the page; longer ones are averaged in pieces."""

SECTIONS = (
    ("Learning", ("evaluation/", "eval/", "rollout/")),
    ("Reward terms", ("reward/",)),
    ("How episodes end", ("termination/", "success/")),
    ("Measures", ("info/", "cost/")),
    ("Optimisation", ("train/",)),
    ("Speed", ("time/",)),
    ("More", ("",)),
)
"""Titles, and what the names of their curves start with; a curve is shown in the first section that fits."""

FIRST = (
    "evaluation/return",
    "rollout/ep_rew_mean",
    "evaluation/success_rate",
    "rollout/success_rate",
    "evaluation/episode_length",
    "rollout/ep_len_mean",
)
"""What a reader looks for first; other curves follow by name."""

COUNTERS = ("time/wall", "time/iterations", "train/gradient_steps")
"""Straight lines, not worth a chart."""

FRACTIONS = ("evaluation/success_rate", "eval/success_rate", "rollout/success_rate", "success/", "termination/")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in the seed alone."""

    label: str
    colour: int
    runs: tuple[RunRecord, ...]

    @property
    def env(self) -> str:
        """Id of the environment."""
        return self.runs[0].env

    @cached_property
    def scores(self) -> np.ndarray:
        """`[runs]`: mean deterministic return of each run's last evaluation, of those that were evaluated."""
        return np.array([run.evaluations[-1].deterministic.mean for run in self.runs if run.evaluations])

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95% bootstrap interval of the mean of `scores`; of one run, over its episodes; None of one episode."""
        if len(self.scores) == 1:
            return next(run.evaluations[-1].deterministic.interval for run in self.runs if run.evaluations)
        return bootstrap_interval(self.scores, np.random.default_rng(0), statistic=mean)

    @cached_property
    def success(self) -> tuple[float, tuple[float, float]] | None:
        """Success rate of the last evaluations' episodes together, with its Wilson interval."""
        finals = [run.evaluations[-1].deterministic.successes for run in self.runs if run.evaluations]
        known = [values for values in finals if values is not None]
        if not known:
            return None
        episodes = np.concatenate(known)
        return float(episodes.mean()), wilson_interval(float(episodes.sum()), len(episodes))


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the page on `runs` to `output` and return its path.

    Args:
        runs: run directories, finished or not.
        output: an HTML file, or a directory for `report.html`.

    Raises:
        ConfigError: if there are no runs, or one of them is not a run directory.
    """
    if not runs:
        raise ConfigError("a report needs at least one run: give the directory of a run")
    output = Path(output)
    if output.is_dir() or not output.suffix:
        output = output / "report.html"
    once = {Path(path).resolve(): path for path in runs}
    groups = group_runs([read_run(path) for path in once.values()])
    charts = {env: environment_charts(mine) for env, mine in by_environment(groups).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, report_page.page(groups, charts, output.parent))
    return output


def group_runs(records: Iterable[RunRecord]) -> list[Group]:
    """Return the groups in the order of their first runs, with labels that tell them apart."""
    together: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        method = json.dumps(record.method, sort_keys=True, default=str)
        together.setdefault((record.env, record.algorithm, method), []).append(record)
    groups = []
    for colour, ((env, algorithm, _), runs) in enumerate(together.items()):
        rivals = [
            others[0].method
            for (other_env, other_algorithm, _), others in together.items()
            if (other_env, other_algorithm) == (env, algorithm) and others is not runs
        ]
        label = f"{report_page.title_of(algorithm)} {_details(runs[0].method, rivals)}".strip()
        groups.append(Group(label, colour, tuple(sorted(runs, key=lambda run: (run.seed is None, run.seed or 0)))))
    return groups


def _details(mine: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> str:
    """Return the first values of a configuration in which it differs from others: three, or as many as tell all."""
    telling = [key for key in mine if any(rival.get(key) != mine[key] for rival in rivals)]
    count = min(3, len(telling))
    while count < len(telling) and any(all(rival.get(k) == mine[k] for k in telling[:count]) for rival in rivals):
        count += 1
    return ", ".join(f"{key.split('.')[-1]}={mine[key]}" for key in telling[:count])


def by_environment(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups of each environment."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.env, []).append(group)
    return found


def environment_charts(groups: Sequence[Group]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the sections that have charts: their titles, and the data of each chart as a JSON tree."""
    curves = {run.path: run_curves(run) for group in groups for run in group.runs}
    names = list(dict.fromkeys(name for mine in curves.values() for name in mine if name not in COUNTERS))
    names.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    furthest = max((run.steps for group in groups for run in group.runs), default=0)
    sections = []
    for title, prefixes in SECTIONS:
        mine = [name for name in names if name.startswith(prefixes)]
        names = [name for name in names if name not in mine]
        made = [chart(name, groups, curves, furthest) for name in mine]
        if charts := [one for one in made if one is not None]:
            sections.append((title, charts))
    return sections


def run_curves(run: RunRecord) -> dict[str, Curve]:
    """Return the curves of a run; those of its evaluations from their files, which say more than the log."""
    if not run.evaluations:
        return dict(run.curves)
    steps = np.array([evaluation.step for evaluation in run.evaluations])
    results = [evaluation.deterministic for evaluation in run.evaluations]
    curves = {"evaluation/return": Curve(steps, np.array([result.mean for result in results]))}
    if all(result.success_rate is not None for result in results):
        curves["evaluation/success_rate"] = Curve(steps, np.array([result.success_rate for result in results], float))
    curves["evaluation/episode_length"] = Curve(steps, np.array([result.mean_length for result in results]))
    return curves | {name: curve for name, curve in run.curves.items() if not name.startswith("eval/")}


def chart(
    name: str, groups: Sequence[Group], curves: dict[Path, dict[str, Curve]], furthest: int
) -> dict[str, Any] | None:
    """Return what the page needs to draw the curve `name`, or None where no run has a point of it."""
    lines: list[dict[str, Any]] = []
    not_finite = 0
    for group in groups:
        mine = [curves[run.path][name] for run in group.runs if name in curves[run.path]]
        not_finite += sum(curve.not_finite for curve in mine)
        mine = [_thin(curve) for curve in mine if len(curve.steps)]
        if mine:
            lines.append({"label": group.label, "colour": group.colour, **_spread(mine)})
    if not lines:
        return None
    low, high, cut = _limits(name, lines)
    return {"name": name, "lines": lines, "x": [0, furthest], "y": [low, high], "cut": cut, "not_finite": not_finite}


def _spread(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the line over some runs, its band, and the runs: lists of rounded numbers."""
    runs = [{"x": _ints(curve.steps), "y": _rounded(curve.values)} for curve in curves]
    start, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if len(curves) == 1 or start > end:  # alone, or never at the same step
        return {**max(runs, key=lambda run: run["x"][-1]), "runs": runs[1:] and runs}
    grid = np.unique(np.concatenate([curve.steps for curve in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > POINTS:
        grid = np.linspace(start, end, POINTS)
    values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves])  # [runs, points]
    drawn = np.random.default_rng(0).integers(len(curves), size=(500, len(curves)))
    low, high = np.quantile(iqm(values[drawn], axis=1), [0.025, 0.975], axis=0)
    middle = iqm(values, axis=0)
    return {"x": _ints(grid), "y": _rounded(middle), "low": _rounded(low), "high": _rounded(high), "runs": runs}


def _thin(curve: Curve) -> Curve:
    """Return the curve with at most `POINTS` points, each the mean of a piece of it."""
    if len(curve.steps) <= POINTS:
        return curve
    pieces = np.linspace(0, len(curve.steps), POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*pieces, len(curve.steps)])
    return Curve(np.add.reduceat(curve.steps, pieces) // sizes, np.add.reduceat(curve.values, pieces) / sizes)


def _limits(name: str, lines: Sequence[dict[str, Any]]) -> tuple[float, float, bool]:
    """Return the ends of the vertical axis, and whether a few extreme values lie beyond them."""
    if name.startswith(FRACTIONS):
        return 0.0, 1.0, False
    values = np.concatenate([[*line["y"], *(v for run in line["runs"] for v in run["y"])] for line in lines])
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = (float(v) for v in np.quantile(values, [0.02, 0.98]))
    cut = high - low > 5 * (inner_high - inner_low) > 0
    if cut:
        low, high = inner_low, inner_high
    if name.startswith("time/") and low > 0:
        low = 0.0
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin, cut


def _ints(values: np.ndarray) -> list[int]:
    return [int(value) for value in values]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
