"""Bring the pages up to date with the suites' results: the rows of their tables and their learning curves.

    python benchmarks/pages.py

A row of a table in `docs/` that a table `benchmarks/results/<suite>.md` has too (algorithm, environment, env steps,
measure and target are the same) becomes what it is there. Then every page with such rows gets `curves/<page>.svg`,
drawn of `benchmarks/results/<suite>/<case>.json`: one panel for each environment, in it a line for each algorithm of
the page: the mean return of the evaluations during training, with the 95% bootstrap interval over the seeds, and
faintly each seed. A dashed line is the score that was to be reached.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from habilis.bench import COLUMNS as TABLE
from habilis.evaluation.statistics import bootstrap_interval, mean

RESULTS, PAGES = Path("benchmarks/results"), Path("docs")
COLOURS = ("#2563eb", "#ea580c", "#059669", "#c026d3", "#ca8a04", "#0891b2", "#dc2626", "#64748b", "#7c3aed", "#84cc16")
COLOURS += ("#0f172a", "#f472b6", "#14b8a6", "#92400e")
CROWD = 4
"""Lines in one panel beyond which each is drawn without its band and its seeds."""
COLUMNS = 3
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "habilis",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.6,
}


def main():
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/*.json"))]
    # two suites may have one case: it is drawn once
    cases = list({(case["algorithm"], case["environment"]): case for case in every}.values())
    rows = read_rows()
    for page in sorted(PAGES.rglob("*.md")):
        page.write_text("".join(rows.get(key_of(line), line) for line in page.read_text().splitlines(keepends=True)))
        mine = [case for case in cases if is_of(case, page.read_text())]
        if mine:
            path = page.parent / "curves" / f"{page.stem}.svg"
            path.parent.mkdir(exist_ok=True)
            draw(mine, path)
            print(f"{path}: {len(mine)} cases")


def read_rows():
    """Return the rows of all suites by what they tell of; of two suites' the one of more seeds."""
    rows = {}
    for table in sorted(RESULTS.glob("*.md")):
        for line in table.read_text().splitlines(keepends=True):
            key = key_of(line)
            if key is not None and (key not in rows or seeds_of(line) > seeds_of(rows[key])):
                rows[key] = line
    return rows


def key_of(line):
    """Return algorithm, environment, env steps, measure and target of a row; None for any other line."""
    cells = cells_of(line)
    return (*cells[:3], cells[4], cells[8]) if len(cells) == len(TABLE) and cells[3].isdigit() else None


def seeds_of(line):
    """Return how many seeds a row is of."""
    return int(cells_of(line)[3])


def cells_of(line):
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def is_of(case, text):
    """Whether a page has a row of a case in a table."""
    return re.search(rf"^\| {re.escape(case['algorithm'])} \| {re.escape(case['environment'])} \|", text, re.M | re.I)


def draw(cases, path):
    """Draw one page's figure."""
    envs = list(dict.fromkeys(case["environment"] for case in cases))
    algorithms = list(dict.fromkeys(case["algorithm"] for case in cases))
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(algorithms)}
    columns = min(COLUMNS, len(envs))
    rows = -(-len(envs) // columns)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * columns + 0.4, 2.6 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(envs) :]:
            axis.remove()
        for env, axis in zip(envs, axes.flat, strict=False):
            shown = [case for case in cases if case["environment"] == env]
            for case in shown:
                draw_case(axis, case, colours[case["algorithm"]], alone=len(shown) <= CROWD)
            axis.set_title(env, color="#0f172a", fontsize=10)
            axis.set_xlabel("env steps")
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        for row in axes:
            row[0].set_ylabel("return")
        if len(algorithms) > 1:
            lines = {
                line.get_label(): line for axis in figure.axes for line in axis.lines if line.get_label()[0] != "_"
            }
            figure.legend(
                lines.values(), lines, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=7
            )
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def draw_case(axis, case, colour, *, alone):
    """Draw one line, and where there is room its band and seeds, as far as all of them have come."""
    curves = [run["curve"] for run in case["runs"] if run["curve"]["steps"]]
    points = min(len(curve["steps"]) for curve in curves)
    steps = np.array(curves[0]["steps"][:points])
    returns = np.array([curve["returns"][:points] for curve in curves])
    for seed in returns if alone else ():
        axis.plot(steps, seed, color=colour, linewidth=0.6, alpha=0.25)
    if alone and len(returns) > 1:
        low, high = np.array(
            [bootstrap_interval(column, np.random.default_rng(0), statistic=mean) for column in returns.T]
        ).T
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(steps, returns.mean(0), color=colour, linewidth=1.6, label=case["algorithm"])
    for result in case["results"]:
        if result["measure"] == "return" and result["target"]:
            axis.axhline(float(result["target"].split()[-1]), color=colour, linewidth=0.8, linestyle=(0, (4, 3)))


if __name__ == "__main__":
    main()
