"""The words and tables of a report in HTML; see `report`."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from habilis.evaluation.report_grid import policy_section

if TYPE_CHECKING:
    from habilis.evaluation.evaluator import EvaluationResult
    from habilis.evaluation.report import Group
    from habilis.evaluation.runs import RunRecord

LARGEST_VIDEO = 16_000_000
"""Bytes up to which a film is put into the page; a larger one is linked."""

TRAINED = "rollout/ep_rew_mean"

TITLES = {
    "evaluation/return": "Return in evaluation",
    "evaluation/success_rate": "Success in evaluation",
    "evaluation/episode_length": "Episode length in evaluation",
    TRAINED: "Return while training",
    "rollout/ep_len_mean": "Episode length while training",
    "rollout/success_rate": "Success while training",
    "rollout/ep_cost_mean": "Cost of an episode while training",
    "time/fps": "Env steps a second",
}

COLOURS = 8
"""Of the template; they come again, dashed."""

_SPELLED = "Actor Critic CrossQ Discrete Double DroQ Dueling Expected Fast Learning Noisy Rainbow SimBa Step"
WORDS = {word.lower(): word for word in _SPELLED.split()}
"""Parts of algorithms' names that are not written in capitals."""

Charts = Mapping[str, Sequence[tuple[str, list[dict[str, Any]]]]]


def page(groups: Sequence[Group], charts: Charts, folder: Path) -> str:
    """Return the whole page.

    Args:
        groups: what is reported on, in order.
        charts: for each environment its sections of charts.
        folder: where the page will lie; films too large for it are linked from there.
    """
    envs = list(charts)
    algorithms = dict.fromkeys(title_of(group.runs[0].algorithm) for group in groups)
    title = f"{' and '.join(algorithms)} on {', '.join(envs)}"
    body = [
        f'<header><p class="mark">habilis <span>report</span></p><h1>{escape(title)}</h1>{_status(groups)}</header>'
    ]
    for env in envs:
        mine = [group for group in groups if group.env == env]
        if len(envs) > 1:
            body.append(f'<h2 class="env">{escape(env)}</h2>')
        body.append(_environment(mine, charts[env], folder))
    body.append(_configuration(groups))
    template = files("habilis.evaluation").joinpath("report_template.html").read_text(encoding="utf-8")
    return template.replace("<!--title-->", escape(title)).replace("<!--body-->", "\n".join(body))


def _environment(groups: Sequence[Group], sections: Sequence[tuple[str, list[dict[str, Any]]]], folder: Path) -> str:
    """Return all that is said of one environment: the figures, the first chart and the films, then the details."""
    parts = [_figures(groups)]
    remaining = dict(sections)
    learning = remaining.pop("Learning", [])
    films = "".join(_film(group, folder, alone=len(groups) == 1) for group in groups)
    if learning or films:
        hero = _chart(_hero(learning), "hero") if learning else ""
        parts.append(f'<div class="first{" with-film" if films and hero else ""}">{hero}<div>{films}</div></div>')
    parts.append(_legend(groups))
    for group in groups:
        parts.append(policy_section(group.runs[0], group.label if len(groups) > 1 else ""))
    if table := _evaluations(groups):
        parts.append(f"<section><h2>Evaluation</h2>{table}</section>")
    others = [chart for chart in learning if chart is not _hero(learning)]
    for title, charts in ([("Learning", others)] if others else []) + list(remaining.items()):
        drawn = "".join(_chart(chart) for chart in charts)
        parts.append(f'<section><h2>{title}</h2><div class="charts">{drawn}</div></section>')
    return "\n".join(parts)


def _hero(charts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the chart that says most: evaluation where there are several, else the training return."""
    by_name = {chart["name"]: chart for chart in charts}
    evaluated = by_name.get("evaluation/return")
    if evaluated and max(len(line["x"]) for line in evaluated["lines"]) > 2:
        return evaluated
    return by_name.get(TRAINED) or charts[0]


def _status(groups: Sequence[Group]) -> str:
    runs = [(group.label, run) for group in groups for run in group.runs]
    notes = []
    for label, run in runs:
        if run.asked and run.steps < run.asked:
            who = f"{label}, seed {run.seed}: " if len(runs) > 1 else ""
            notes.append(f"{who}not finished, {count(run.steps)} of {count(run.asked)} env steps")
        lost = [name for name, curve in run.curves.items() if curve.not_finite and not len(curve.steps)]
        notes += [f"{name} was never finite" for name in lost]
    badges = "".join(f'<li class="warn">{escape(note)}</li>' for note in notes)
    number_of_runs = f"{len(runs)} runs" if len(runs) > 1 else "One run"
    seconds = sum(run.seconds or 0 for _, run in runs)
    took = f", {duration(seconds)} of training{' in all' if len(runs) > 1 else ''}" if seconds else ""
    return f'<p class="sub">{number_of_runs}{took}</p><ul class="badges">{badges}</ul>'


def _figures(groups: Sequence[Group]) -> str:
    """Return the figures of one group, large, or of several in a table: return, success, length, steps, time, speed."""
    figures = [_group_figures(group) for group in groups]
    if len(groups) == 1:
        tiles = "".join(
            f'<div class="tile"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
            for name, (value, note) in figures[0].items()
        )
        return f'<section class="figures"><dl>{tiles}</dl></section>'
    names = list(dict.fromkeys(name for mine in figures for name in mine))
    rows = [
        [_swatch(group) + escape(group.label), *map(_figure_cell, (mine.get(name, ("-", "")) for name in names))]
        for group, mine in zip(groups, figures, strict=True)
    ]
    return f'<section class="figures">{_table(["", *names], rows)}</section>'


def _figure_cell(figure: tuple[str, str]) -> str:
    return f'<b class="figure">{figure[0]}</b><small class="under">{figure[1]}</small>'


def _group_figures(group: Group) -> dict[str, tuple[str, str]]:
    """Return the figures that say most of a group, by name: the figure and what it is based on."""
    figures = {"Return": _return_figure(group)}
    finals = [run.evaluations[-1].deterministic for run in group.runs if run.evaluations]
    if group.success:
        rate, (low, high) = group.success
        figures["Success"] = f"{rate:.0%}", f"95%: {low:.0%} to {high:.0%}"
    if finals:
        length = float(np.mean([final.mean_length for final in finals]))
        figures["Episode length"] = number(length), "steps, in evaluation"
    each = "a run" if len(group.runs) > 1 else ""
    figures["Env steps"] = _range([run.steps for run in group.runs]), each
    seconds = [run.seconds for run in group.runs if run.seconds]
    if seconds:
        figures["Wall time"] = duration(float(np.mean(seconds))), each
    speeds = [np.median(run.curves["time/fps"].values) for run in group.runs if _has(run, "time/fps")]
    if speeds:
        figures["Speed"] = count(float(np.mean(speeds))), "env steps a second"
    return figures


def _return_figure(group: Group) -> tuple[str, str]:
    if len(group.scores):
        finals = [run.evaluations[-1].deterministic for run in group.runs if run.evaluations]
        seeds = len({run.seed for run in group.runs if run.evaluations})
        if len(finals) == 1:
            basis = f"{finals[0].episodes} episode{'' if finals[0].episodes == 1 else 's'}"
        else:
            basis = f"{seeds} seeds" if seeds == len(finals) else f"{len(finals)} runs; different seeds: {seeds}"
            steps = [run.evaluations[-1].step for run in group.runs if run.evaluations]
            basis += f", at {_range(steps)} env steps" if len(set(steps)) > 1 else ""
        spread = "" if group.interval is None else f"95%: {_interval(group.interval)}; "
        return number(float(group.scores.mean())), f"{spread}{basis}"
    trained = [run.curves[TRAINED].values[-1] for run in group.runs if _has(run, TRAINED)]
    if trained:
        return number(float(np.mean(trained))), "while training, not evaluated yet"
    return "-", "no episode has ended yet"


def _film(group: Group, folder: Path, *, alone: bool) -> str:
    """Return the newest film of a group's first run that has one."""
    path = next((run.videos[-1] for run in group.runs if run.videos), None)
    if path is None:
        return ""
    caption = escape(path.stem if alone else f"{group.label}: {path.stem}")
    if path.stat().st_size > LARGEST_VIDEO:
        link = escape(os.path.relpath(path, folder).replace(os.sep, "/"))
        return f'<figure class="film"><figcaption><a href="{link}">{caption}</a></figcaption></figure>'
    source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    player = f'<video controls loop muted autoplay playsinline src="{source}"></video>'
    return f'<figure class="film">{player}<figcaption>{caption}</figcaption></figure>'


def _chart(chart: Mapping[str, Any], kind: str = "") -> str:
    name = chart["name"]
    title = TITLES.get(name) or name.split("/", 1)[-1].replace("_", " ")
    notes = []
    if chart["cut"]:
        notes.append("a few extremes lie beyond the axis")
    if chart["not_finite"]:
        notes.append(f"values that were not finite: {chart['not_finite']}")
    data = json.dumps(chart, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    note = f"<p>{'; '.join(notes)}</p>" if notes else ""
    return (
        f'<figure class="chart {kind}"><figcaption><b>{escape(title)}</b><code>{escape(name)}</code></figcaption>'
        f'<svg role="img" aria-label="{escape(title)}"></svg><div class="tip" hidden></div>{note}'
        f'<script type="application/json">{data}</script></figure>'
    )


def _legend(groups: Sequence[Group]) -> str:
    names = "".join(f"<li>{_swatch(group)}{escape(group.label)}</li>" for group in groups) if len(groups) > 1 else ""
    several = any(len(group.runs) > 1 for group in groups)
    meaning = "<li>line: interquartile mean over seeds; band: its 95% bootstrap interval; faint: each seed</li>"
    return f'<ul class="legend">{names}{meaning if several else ""}</ul>'


def _evaluations(groups: Sequence[Group]) -> str:
    """Return the table of each run's last evaluation, and below it what else was measured in it."""
    rows = []
    for group in groups:
        for run in group.runs:
            if run.evaluations:
                last = run.evaluations[-1]
                which = f"<small>seed {escape(str(run.seed))}, {count(last.step)} steps</small>"
                stochastic = "-" if last.stochastic is None else number(last.stochastic.mean)
                who = f"{_swatch(group)}{escape(group.label)}{which}"
                rows.append([who, *_evaluation_cells(last.deterministic), stochastic])
    if not rows:
        return ""
    head = ["", "episodes", "mean", "95% interval", "IQM", "median", "std", "length", "success", "stochastic mean"]
    return _table(head, rows) + _terms(groups)


def _evaluation_cells(result: EvaluationResult) -> list[str]:
    success = "-"
    if result.success_rate is not None and result.success_interval is not None:
        low, high = result.success_interval
        success = f"{result.success_rate:.0%} <small>{low:.0%} to {high:.0%}</small>"
    return [
        str(result.episodes),
        f"<b>{number(result.mean)}</b>",
        "-" if result.interval is None else _interval(result.interval),
        number(result.iqm),
        number(result.median),
        number(result.std),
        number(result.mean_length),
        success,
    ]


def _interval(interval: tuple[float, float]) -> str:
    return f"{number(interval[0])} to {number(interval[1])}"


def _terms(groups: Sequence[Group]) -> str:
    """Return the table of the terms of the last deterministic evaluations, each group's mean over its runs."""
    means: dict[str, dict[int, float]] = {}
    for column, group in enumerate(groups):
        finals = [run.evaluations[-1].deterministic.terms for run in group.runs if run.evaluations]
        for name in dict.fromkeys(name for terms in finals for name in terms):
            values = np.concatenate([terms[name] for terms in finals if name in terms])
            if np.isfinite(values).any():
                means.setdefault(name, {})[column] = float(np.nanmean(values))
    if not means:
        return ""
    rows = [
        [f"<code>{escape(name)}</code>", *(number(row[c]) if c in row else "-" for c in range(len(groups)))]
        for name, row in means.items()
    ]
    head = ["mean of an episode, deterministic", *(escape(group.label) for group in groups)]
    unfolded = " open" if len(rows) <= 8 else ""
    return f"<details{unfolded}><summary>What else was measured</summary>{_table(head, rows)}</details>"


def _configuration(groups: Sequence[Group]) -> str:
    """Return what differs between the groups, then every value, folded."""
    keys = list(dict.fromkeys(key for group in groups for run in group.runs for key in run.config))
    values = {key: [_value(group, key) for group in groups] for key in keys}
    methods = [group.runs[0].method for group in groups]
    differing = [key for key in keys if any(method.get(key) != methods[0].get(key) for method in methods)]
    head = ["", *(_swatch(group) + escape(group.label) for group in groups)]

    def rows(chosen: Iterable[str]) -> list[list[str]]:
        mark = {True: ' class="differs"', False: ""}
        return [[f"<code{mark[key in differing]}>{escape(key)}</code>", *map(escape, values[key])] for key in chosen]

    different = f"<h3>What differs</h3>{_table(head, rows(differing))}" if differing else ""
    everything = f"<details><summary>Every value</summary>{_table(head, rows(keys))}</details>" if keys else ""
    origins = "".join(_origin(run) for group in groups for run in group.runs)
    return (
        f"<section><h2>Configuration</h2>{different}{everything}"
        f"<details><summary>Commands, versions and directories</summary>{origins}</details></section>"
    )


def _value(group: Group, key: str) -> str:
    """Return a group's value of a configuration key; where its runs differ (seeds), all of them."""
    values = [run.config.get(key, "-") for run in group.runs]
    return ", ".join(dict.fromkeys(value if isinstance(value, str) else json.dumps(value) for value in values))


def _origin(run: RunRecord) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    command = f"<pre>{escape(run.command)}</pre>" if run.command else ""
    return f'<div class="origin"><p><code>{escape(str(run.path))}</code></p>{command}<p>{escape(versions)}</p></div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _swatch(group: Group) -> str:
    again = "" if group.colour < COLOURS else " again"
    return f'<i class="swatch c{group.colour % COLOURS}{again}"></i>'


def _range(steps: Sequence[int]) -> str:
    """Return the least and the largest of some numbers of steps, or the one that all are."""
    return " to ".join(dict.fromkeys((count(min(steps)), count(max(steps)))))


def _has(run: RunRecord, name: str) -> bool:
    return name in run.curves and len(run.curves[name].values) > 0


def title_of(algorithm: str) -> str:
    """Return an algorithm's name as people write it: `PPO`, `Double DQN`."""
    return " ".join(WORDS.get(word, word.upper()) for word in algorithm.split("_"))


def number(value: float) -> str:
    """Return a number with as many digits as a reader wants: `5,123`, `81.4`, `0.0312`."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def count(value: float) -> str:
    """Return a count in thousands or millions: `940`, `12.5k`, `1M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # which three digits round to it
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Return a time as people say it: `42 s`, `9 min 5 s`, `3 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
