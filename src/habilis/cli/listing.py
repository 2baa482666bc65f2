"""`habilis list`: what there is, one thing a line, so that it can be searched and piped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import tyro

from habilis.build import ALGORITHMS
from habilis.cli.parse import parse
from habilis.envs.make import BACKENDS, list_env_ids
from habilis.plugins import PLUGINS
from habilis.presets import preset, tuned_environments
from habilis.suites import SUITES


@dataclass(frozen=True, kw_only=True)
class Options:
    """List what there is."""

    what: tyro.conf.Positional[Literal["algorithms", "envs", "plugins", "presets", "backends", "suites"]]
    """The kind of thing."""
    contains: tyro.conf.Positional[str] = ""
    """Only lines that contain this, in capitals or not."""
    backend: Literal["native", "gymnasium", "envpool"] | None = None
    """Of environments: those of one engine; None: those that need no `--env-backend`."""


def run(argv: Sequence[str]) -> int:
    """Print the lines."""
    options = parse(Options, argv, "list")
    lines = {
        "algorithms": _algorithms,
        "envs": lambda: _envs(options.backend),
        "plugins": _plugins,
        "presets": _presets,
        "backends": _backends,
        "suites": _suites,
    }[options.what]()
    for line in lines:
        if options.contains.lower() in line.lower():
            print(line)
    return 0


def _algorithms() -> Iterator[str]:
    for name in ALGORITHMS:
        tuned = len(tuned_environments(name))
        yield f"{name}  {ALGORITHMS[name].title}; {tuned} preset{'' if tuned == 1 else 's'}"


def _envs(backend: str | None) -> Iterator[str]:
    native = set(list_env_ids("native"))
    ids = list_env_ids(backend)
    width = max(map(len, ids))
    for id in ids:
        yield f"{id:<{width}}  {backend or ('native' if id in native else 'gymnasium')}"


def _plugins() -> Iterator[str]:
    for name in PLUGINS:
        options = ", ".join(f"{key} {value}" for key, value in vars(PLUGINS[name].config()).items())
        yield f"{name}  {PLUGINS[name].title}: {options}"


def _presets() -> Iterator[str]:
    for algorithm in ALGORITHMS:
        for env in [*tuned_environments(algorithm), "(any other)"]:
            settings = " ".join(f"{key}={value}" for key, value in preset(algorithm, env).items())
            yield f"{algorithm}  {env}: {settings}"


def _backends() -> Iterator[str]:
    purposes = {
        "native": "MuJoCo's batched simulator: our tasks and Gymnasium's MuJoCo v5 tasks; also the probes; exact state",
        "gymnasium": "any environment registered with Gymnasium, in one process or (--env-async) one process each",
        "envpool": "EnvPool's environments, on its own threads",
    }
    for name in BACKENDS:
        missing = "" if name != "envpool" or find_spec("envpool") else " (pip install 'habilis[envpool]')"
        yield f"{name}  {purposes[name]}{missing}"


def _suites() -> Iterator[str]:
    for name in SUITES:
        for case in SUITES[name]:
            steps = "as the preset says" if case.total_timesteps is None else f"{case.total_timesteps:,} env steps"
            goals = "".join(f", {goal.measure} {goal}" for goal in case.goals)
            yield f"{name}  {case.name}: {steps}{goals}"
