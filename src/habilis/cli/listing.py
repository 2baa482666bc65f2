"""`habilis list`: what there is, one thing a line, so that it can be searched and piped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import tyro

from habilis.build import ALGORITHMS
from habilis.cli.parse import parse
from habilis.core.config import require
from habilis.core.specs import Backend
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
    backend: Backend | None = None
    """Of environments: those of one engine; None: those that need no `--env-backend`."""


def run(argv: Sequence[str]) -> int:
    """Print the lines."""
    options = parse(Options, argv, "list")
    require(options.backend is None or options.what == "envs", "--backend is for `habilis list envs`: leave it out")
    rows = list(
        {
            "algorithms": _algorithms,
            "envs": lambda: _envs(options.backend),
            "plugins": _plugins,
            "presets": _presets,
            "backends": _backends,
            "suites": _suites,
        }[options.what]()
    )
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name:<{width}}  {what}" for name, what in rows]
    found = [line for line in lines if options.contains.lower() in line.lower()]
    require(bool(found), f"none of the {len(lines)} {options.what} contains {options.contains!r}: leave it out")
    print("\n".join(found))
    return 0


def _algorithms() -> Iterator[tuple[str, str]]:
    for name in ALGORITHMS:
        tuned = len(tuned_environments(name))
        yield name, f"{ALGORITHMS[name].title}; {tuned} preset{'' if tuned == 1 else 's'}"


def _envs(backend: str | None) -> Iterator[tuple[str, str]]:
    native = set(list_env_ids("native"))
    for id in list_env_ids(backend):
        yield id, backend or ("native" if id in native else "gymnasium")


def _plugins() -> Iterator[tuple[str, str]]:
    for name in PLUGINS:
        options = ", ".join(f"{key} {value}" for key, value in vars(PLUGINS[name].config()).items())
        yield name, f"{PLUGINS[name].title}: {options}"


def _presets() -> Iterator[tuple[str, str]]:
    for algorithm in ALGORITHMS:
        for env in [*tuned_environments(algorithm), "(any other)"]:
            settings = " ".join(f"{key}={value}" for key, value in preset(algorithm, env).items())
            yield algorithm, f"{env}: {settings}"


def _backends() -> Iterator[tuple[str, str]]:
    purposes = {
        "native": "in batches, state exact: our tasks and probes, Gymnasium's MuJoCo v5 tasks and classic control",
        "gymnasium": "any environment registered with Gymnasium, in one process or (--env-async) one process each",
        "envpool": "EnvPool's environments, on its own threads",
    }
    for name in BACKENDS:
        missing = "" if name != "envpool" or find_spec("envpool") else " (pip install 'habilis[envpool]')"
        yield name, f"{purposes[name]}{missing}"


def _suites() -> Iterator[tuple[str, str]]:
    for name in SUITES:
        for case in SUITES[name]:
            steps = "as the preset says" if case.total_timesteps is None else f"{case.total_timesteps:,} env steps"
            goals = "".join(f", {goal.measure} {goal}" for goal in case.goals)
            yield name, f"{case.name}: {steps}{goals}"
