"""F6: suites of algorithm x environment x seeds, each run a `habilis train` of its own, into JSON and a Markdown table.

What is measured is in `suites.py`. Every run is a subprocess with one thread, `jobs` of them side by side, followed by
one deterministic evaluation of its last policy on episodes that training never saw. Results that exist are kept and
interrupted runs resumed, so a suite may be stopped and started at will, on another machine too, to which only its
results were taken. A run's folder is named after its configuration, and results of another are not built upon, so that
those of different hyper-parameters never mix.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from habilis.cases import Case, Goal, as_file_name, as_measured, fingerprint
from habilis.checkpoint import CheckpointStore
from habilis.core.config import require
from habilis.core.errors import ConfigError, HabilisError
from habilis.core.files import replace_text
from habilis.evaluation.evaluator import JUDGING_SEED
from habilis.evaluation.runs import read_evaluations
from habilis.evaluation.statistics import bootstrap_interval, iqm
from habilis.saved import config_from_dict
from habilis.suites import SUITES

COLUMNS = (
    "algorithm",
    "environment",
    "env steps",
    "seeds",
    "measure",
    "mean",
    "95% interval",
    "IQM",
    "target",
    "reached",
    "reference",
    "minutes",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class BenchError(HabilisError):
    """Runs of a suite that failed; the others went on."""


def run_suite(
    name: str,
    *,
    seeds: int = 5,
    jobs: int = 1,
    only: str | None = None,
    output: Path = Path("benchmarks/results"),
    runs: Path = Path("runs/bench"),
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run what a suite still lacks and return its table.

    Args:
        name: of the suite.
        seeds: runs of each case, of seeds 0, 1, ...
        jobs: runs side by side.
        only: a case's name, or a part of several; other cases are left as they are.
        output: gets `<suite>/<case>.json` and `<suite>.md`.
        runs: gets the runs.
        say: is told what happens.

    Raises:
        ConfigError: there is no such suite or case.
        BenchError: runs failed; their logs are named.
    """
    suite = SUITES[name]
    cases = choose_cases(suite, only)
    require(bool(cases), f"the suite {name!r} has no case {only!r}: it has {', '.join(case.name for case in suite)}")
    require(seeds > 0 and jobs > 0, f"seeds and jobs must be positive, got {seeds} and {jobs}")
    folders = {case: runs / case.folder for case in cases}
    results = {case: output / name / f"{case.name}.json" for case in cases}
    done = {case: _gather(case, folders[case], results[case]) for case in cases}
    # every case's first seed comes before any case's second: a suite that is stopped has seen them all
    wanted = [(case, seed) for seed in range(seeds) for case in cases if seed not in done[case]]
    say(f"{name}: {len(cases)} cases x {seeds} seeds, {len(wanted)} of them to run, {jobs} at a time")
    table = _write_table(suite, output, name)
    failures: list[str] = []
    workers = _Workers()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run_seed, case, seed, folders[case], workers): (case, seed) for case, seed in wanted}
        try:
            for future in as_completed(futures):
                case, seed = futures[future]
                try:
                    say(f"{case.name} seed {seed}: {_describe(future.result())}")
                except HabilisError as error:
                    failures.append(f"{case.name} seed {seed}: {error}")
                    say(failures[-1])
                    continue
                _gather(case, folders[case], results[case])
                table = _write_table(suite, output, name)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.interrupt()
            raise
    if failures:
        raise BenchError(f"{len(failures)} of {len(wanted)} runs failed, the first: {failures[0]}")
    return table


def choose_cases(suite: Sequence[Case], only: str | None) -> list[Case]:
    """Return the case that is called `only`, else those whose names hold it; None is all of them.

    It may be written as in a table: "dqn longer".
    """
    wanted = "" if only is None else as_file_name(only.lower())
    exactly = [case for case in suite if case.name.lower() == wanted]
    return exactly or [case for case in suite if wanted in case.name.lower()]


class _Workers:
    """Subprocesses side by side, which are told to stop together."""

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, arguments: Sequence[str], log: Path) -> str:
        """Run a `habilis` command with one thread, add what it says to `log` and return its standard output."""
        command = [sys.executable, "-m", "habilis", *arguments]
        with log.open("a") as errors:
            with self._lock:
                if self._stopping:
                    raise BenchError("stopped")
                # in a session of its own, so that Ctrl-C reaches it once: by `interrupt`
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env={**os.environ, **ONE_THREAD},
                    start_new_session=True,
                )
                self._alive.add(child)
            try:
                told, _ = child.communicate()
            finally:
                with self._lock:
                    self._alive.discard(child)
            errors.write(told)
        if child.returncode != 0:
            last = (log.read_text().splitlines() or [""])[-1]
            raise BenchError(f"habilis {arguments[0]} ended with code {child.returncode}: {last} (log: {log})")
        return told

    def interrupt(self) -> None:
        """Let every subprocess finish its iteration and save, and start no other."""
        with self._lock:
            self._stopping = True
            for child in self._alive:
                child.send_signal(signal.SIGINT)


def _run_seed(case: Case, seed: int, folder: Path, workers: _Workers) -> dict[str, Any]:
    """Return the result of one run: of training, or resuming, and evaluating."""
    run_dir, log = folder / f"s{seed}", folder / f"s{seed}.log"
    train = ["train", *case.flags(), "--seed", str(seed), "--run-dir", str(run_dir)]
    store = CheckpointStore(run_dir / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    workers.run(train if store.latest() is None else ["train", "--resume", str(run_dir)], log)
    evaluate = ["evaluate", str(run_dir), "--episodes", str(case.episodes), "--json"]
    evaluation = json.loads(workers.run([*evaluate, "--seed", str(JUDGING_SEED + seed)], log))
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    record = {
        "seed": seed,
        "steps": store.steps()[-1],
        "wall_seconds": max(line.get("time/wall", 0.0) for line in lines),
        "command": f"habilis {shlex.join(train)}",
        "evaluation": evaluation,
        **json.loads((run_dir / "config.json").read_text()),
    }
    replace_text(run_dir / "bench.json", json.dumps(record, indent=2) + "\n")
    return record


def _describe(record: Mapping[str, Any]) -> str:
    minutes = record["wall_seconds"] / 60
    return f"return {record['evaluation']['mean']:.1f} after {record['steps']:,} env steps in {minutes:.1f} min"


def _gather(case: Case, folder: Path, path: Path) -> dict[int, dict[str, Any]]:
    """Return by seed what the runs of a case have come to, in `folder` or told by `path`, which tells it all then."""
    config = case.config()
    evaluation = f"last policy, deterministic, {case.episodes} episodes, seed {JUDGING_SEED} + the run's"
    runs = {run["seed"]: run for run in _read_told(case, config, evaluation, path)}
    runs |= {run["seed"]: run for run in _read_own(case, folder)}
    if runs:
        in_order = [runs[seed] for seed in sorted(runs)]
        tree = {
            "algorithm": case.title,
            "environment": case.env,
            "reference": case.reference,
            "evaluation": evaluation,
            "results": [_over_seeds(in_order, goal) for goal in case.goals or (None,)],
            "runs": in_order,
            "config": config,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_beside(path, in_order)
        replace_text(path, json.dumps(tree, indent=2) + "\n")
    return runs


def _read_told(case: Case, config: Mapping[str, Any], evaluation: str, path: Path) -> list[dict[str, Any]]:
    """Return the runs that a file of results tells, if they are of what is measured and speak of all goals.

    An option that was not there yet had its default.
    """
    tree = _read_results(path)
    if tree.get("evaluation") != evaluation or _as_of_today(tree["config"]) != config:
        return []
    return [run for run in tree["runs"] if all(goal.measure in run["measures"] for goal in case.goals)]


def _read_results(path: Path) -> dict[str, Any]:
    """Return what a file of results tells; nothing where there is none."""
    try:
        tree: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): put it back as it was, or move it away") from error
    return tree


def _keep_beside(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Keep a file of results, in the folder `earlier`, if it tells of runs that its successor does not."""
    tree = _read_results(path)
    if any(run not in runs for run in tree.get("runs", [])):
        beside = path.parent / "earlier" / f"{path.stem}.{fingerprint(tree)}.json"
        beside.parent.mkdir(exist_ok=True)
        shutil.copy2(path, beside)


def _as_of_today(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `Case.config` would say of a configuration that was written some time ago; None: it has no name."""
    try:
        return as_measured(config_from_dict(config))
    except HabilisError:
        return None


def _read_own(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Return what the runs in a folder have come to, of those that were evaluated as the case says."""
    records = {path.parent: json.loads(path.read_text()) for path in folder.glob("s*/bench.json")}
    return [_brief(record, run_dir) for run_dir, record in records.items() if _is_asked(case, record)]


def _is_asked(case: Case, record: Mapping[str, Any]) -> bool:
    """Whether a run was evaluated on the episodes of the case, not on those that it asked for before."""
    evaluation = record["evaluation"]
    return (evaluation["episodes"], evaluation["seed"]) == (case.episodes, JUDGING_SEED + record["seed"])


def _brief(record: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return what the results of a suite tell of a run."""
    evaluation = record["evaluation"]
    success = evaluation["success_rate"]
    measures = {"return": evaluation["mean"], **({} if success is None else {"success_rate": success})}
    return {
        **{key: record[key] for key in ("seed", "steps", "wall_seconds", "command", "versions")},
        "measures": measures | _means(evaluation["terms"]),
        "curve": _read_curve(run_dir),
    }


def _read_curve(run_dir: Path) -> dict[str, list[float]]:
    """Return what the evaluations during a run came to: their env steps and mean returns."""
    evaluations = list(read_evaluations(run_dir / "eval"))
    return {"steps": [e.step for e in evaluations], "returns": [round(e.deterministic.mean, 2) for e in evaluations]}


def _over_seeds(runs: Sequence[Mapping[str, Any]], goal: Goal | None) -> dict[str, Any]:
    """Return what all runs say of a goal; of the return, where there is none."""
    measure, at = (goal.measure, goal.at) if goal else ("return", None)
    values = np.array([_at(run["curve"], at) if at else run["measures"][measure] for run in runs])
    mean = float(values.mean())
    return {
        "measure": f"{measure} at {at:,}" if at else measure,
        "values": values.tolist(),
        "mean": mean,
        "iqm": float(iqm(values)),
        "interval": list(bootstrap_interval(values, np.random.default_rng(0))) if len(values) > 1 else None,
        "target": None if goal is None else str(goal),
        "reached": None if goal is None else goal.is_reached(mean),
    }


def _at(curve: Mapping[str, Any], step: int) -> float:
    """Return what the evaluation at an env step came to, or the last one before."""
    return float(max(point for point in zip(curve["steps"], curve["returns"], strict=True) if point[0] <= step)[1])


def _means(terms: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Return the mean over the episodes of each term; where one is not known, it is left out."""
    return {
        name: float(np.mean([v for v in values if v is not None]))
        for name, values in terms.items()
        if any(v is not None for v in values)
    }


def _write_table(suite: Sequence[Case], output: Path, name: str) -> Path:
    """Write the table of every case that has a result, and return its path."""
    rows = [
        f"# Suite `{name}`",
        "",
        "The last policy in deterministic episodes: mean over the seeds with its 95% bootstrap interval, and "
        "interquartile mean. Minutes are the mean wall time of a run, evaluations during training included.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for case in suite:
        path = output / name / f"{case.name}.json"
        if path.is_file():
            tree = json.loads(path.read_text())
            rows += [_row(tree, result) for result in tree["results"]]
    table = output / f"{name}.md"
    output.mkdir(parents=True, exist_ok=True)
    replace_text(table, "\n".join(rows) + "\n")
    return table


def _row(tree: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    cells = [
        tree["algorithm"],
        tree["environment"],
        f"{tree['config']['total_timesteps']:,}",
        str(len(tree["runs"])),
        result["measure"],
        f"**{_number(result['mean'])}**",
        f"[{', '.join(map(_number, result['interval']))}]" if result["interval"] else "",
        _number(result["iqm"]),
        result["target"] or "",
        {True: "yes", False: "no", None: ""}[result["reached"]],
        tree["reference"],
        f"{np.mean([run['wall_seconds'] for run in tree['runs']]) / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Write a value to one decimal, or a small one to three digits."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
