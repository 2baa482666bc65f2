"""`habilis doctor`: this machine in one screen; what is wrong with an environment; a fault of a run played again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table

from habilis.api import make_env
from habilis.build import build_trainer
from habilis.build import make_env as make_config_env
from habilis.checkpoint import load_checkpoint
from habilis.cli.parse import KeyValues, parse, read_env_kwargs
from habilis.core.acceleration import Precision, available_memory, configure, cpu_count
from habilis.core.config import require
from habilis.core.errors import CheckpointError, EnvError, HabilisError
from habilis.core.specs import Backend
from habilis.core.version import __version__
from habilis.envs.checker import check_env
from habilis.envs.make import describe_env
from habilis.envs.render import Renderer
from habilis.saved import config_from_dict
from habilis.training.config import TrainConfig
from habilis.training.faults import replay_dump
from habilis.training.keeping import close
from habilis.training.nonfinite import learn_again, restore_start

PACKAGES = ("torch", "mujoco", "gymnasium", "numpy")
EXTRAS = {"envpool": "envpool", "onnx": "deploy", "onnxruntime": "deploy", "imageio-ffmpeg": "video", "wandb": "wandb"}
"""Optional packages, and the extra that brings each."""
SPEED_ENVS = ("HalfCheetah-v5", "Ant-v5")
SPEED_COPIES = 64
MATMUL_SIZE = 256
MEASURE_SECONDS = 0.5
LAST_ACTIONS = 3
"""Steps whose actions are shown of a fault that cannot be played again."""
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look at this machine, or with --env at an environment, or with --replay at what stopped a run."""

    env: str | None = None
    """Environment to check with random actions."""
    env_backend: Backend | None = None
    """Its engine."""
    env_kwargs: KeyValues = field(default_factory=dict)
    """Its arguments, in pairs."""
    num_envs: int = 2
    """Copies stepped together in the check."""
    steps: int = 200
    """Steps of each copy in the check; episode ends are seen only if some fall within them."""
    seed: int = 0
    """Seed of the check."""
    replay: Path | None = None
    """Dump to play again, as named by a run that stopped at a quantity that is not finite."""


def run(argv: Sequence[str]) -> int:
    """Print what was found; the code is 1 where an environment is wrong."""
    options = parse(Options, argv, "doctor")
    console = Console(highlight=False)
    if options.replay is not None:
        return replay(console, options.replay)
    if options.env is not None:
        return check(console, options, options.env)
    survey(console)
    return 0


def check(console: Console, options: Options, id: str) -> int:
    """Print the findings on an environment and return 1 if one is an error."""
    require(options.steps > 0, f"--steps must be positive, got {options.steps}")
    kwargs = read_env_kwargs(options.env_kwargs, make_env)
    with closing(make_env(id, options.num_envs, backend=options.env_backend, seed=options.seed, **kwargs)) as env:
        console.print(describe_env(env), markup=False, soft_wrap=True)
        findings = check_env(env, options.steps, options.seed)
    for finding in findings:
        console.print(f"[{COLOURS[finding.level]}]{finding.level:>7}[/]  ", end="")
        console.print(finding.what, markup=False, soft_wrap=True)
        for label, text in (("why", finding.why), ("do", finding.fix)):
            if text:
                console.print(f"{label:>11}: {text}", markup=False, style="dim", soft_wrap=True)
    counts = {level: sum(finding.level == level for finding in findings) for level in COLOURS}
    console.print(f"errors: {counts['error']}, warnings: {counts['warning']}, passed: {counts['ok']}")
    return 1 if counts["error"] else 0


def replay(console: Console, dump: Path) -> int:
    """Play a dump again and say where it goes wrong; the code is 1 if it does.

    Raises:
        CheckpointError: it was written by an earlier version.
        ConfigError: it is a checkpoint of another kind.
        EnvError: the run was not one that repeats itself.
    """
    _, meta = load_checkpoint(dump, [])
    require("error" in meta, f"{dump} tells of no fault: give the folder `nonfinite/step_...` that the run named")
    states, _ = load_checkpoint(dump, ["recorder"])
    console.print(f"The run stopped because {meta['error']}", markup=False, soft_wrap=True)
    if "config" not in meta:
        raise CheckpointError(f"{dump} was written by an earlier version, which kept less: nothing can be learnt again")
    config, recorder = config_from_dict(meta["config"]), states["recorder"]
    if not meta["exact"]:
        if recorder["actions"] is None:
            raise EnvError(f"{dump} cannot be played again, because {meta['inexactness']}: it holds the policy alone")
        console.print("Its last actions, a row for each environment, the newest at the end:")
        for actions in recorder["actions"][-LAST_ACTIONS:]:
            console.print(actions.tolist(), markup=False)
        raise EnvError(f"{dump} cannot be played again, because {meta['inexactness']}: look at its last actions, above")
    if recorder["env"] is not None:
        with closing(make_config_env(config, config.num_envs, config.seed)) as env:
            fault = replay_dump(env, recorder)
        total = len(recorder["actions"])
        if fault is not None:
            index, what = fault
            console.print(f"Step {index + 1} of the {total} recorded: {what} is not finite, again.", markup=False)
            return 1
        console.print(f"All {total} recorded steps of the environment are finite here.")
    return _learn_again(console, dump, config, meta["step"])


def _learn_again(console: Console, dump: Path, config: TrainConfig, until: int) -> int:
    """Repeat the learning that led to a dump; the code is 1 if it comes to what is not finite."""
    trainer = build_trainer(config)
    try:
        start = restore_start(trainer, dump)
        console.print(f"Learning again from env step {start:,} to {until:,} ...")
        fault = learn_again(trainer, until)
    finally:
        close(trainer)
    if fault is None:
        console.print("Everything learnt is finite here: the fault came from another machine or other versions.")
        return 0
    console.print(f"Again: {fault}.", markup=False, soft_wrap=True)
    return 1


def survey(console: Console) -> None:
    """Print versions, processors, rendering and speed."""
    table = Table.grid(padding=(0, 2))
    for title, rows in (
        ("versions", _versions),
        ("machine", _machine),
        ("rendering", _rendering),
        ("speed", _speed),
    ):
        for name, value in rows():
            table.add_row(f"[bold]{title}[/]", name, value)
            title = ""
    console.print(table)


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", sys.version.split()[0]
    yield "habilis", __version__
    for package in PACKAGES:
        yield package, metadata.version(package)
    for package, extra in EXTRAS.items():
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, f"[dim]not installed: pip install 'habilis\\[{extra}]'[/]"


def _machine() -> Iterator[tuple[str, str]]:
    memory = available_memory("cpu")
    yield (
        "processors",
        f"{cpu_count()} (PyTorch alone would use {torch.get_num_threads()} threads; a run uses --threads)",
    )
    yield "memory", "unknown" if memory is None else f"{memory / 1e9:.1f} GB available"
    yield "GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch can use"


def _rendering() -> Iterator[tuple[str, str]]:
    try:
        with closing(make_env("HalfCheetah-v5")) as env, closing(Renderer(env, width=320, height=240)) as renderer:
            env.reset(0)
            seconds = _seconds_per(renderer.frame)
    except HabilisError as error:
        yield "MuJoCo", f"[red]fails[/]: {error}"
        return
    backend = os.environ.get("MUJOCO_GL") or "window system"
    yield "MuJoCo", f"[green]works[/] through {backend}: {1 / seconds:.0f} frames/s at 320x240"


def _speed() -> Iterator[tuple[str, str]]:
    for id in SPEED_ENVS:
        with closing(make_env(id, SPEED_COPIES)) as env:
            env.reset(0)
            seconds = _seconds_per(partial(env.step, torch.zeros(SPEED_COPIES, env.spec.action.dim)))
            engine = describe_env(env).partition(": ")[2]
        yield id, f"{SPEED_COPIES / seconds:,.0f} env steps/s, {engine}"
    matrix = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    threads, precision = torch.get_num_threads(), cast(Precision, torch.get_float32_matmul_precision())
    choices: tuple[Precision, ...] = ("highest", "medium")
    for choice in choices:
        configure(threads=1, precision=choice)
        seconds = _seconds_per(lambda: matrix @ matrix)
        flops = 2 * MATMUL_SIZE**3 / seconds / 1e9
        yield "matmul", f"{flops:.0f} GFLOP/s in float32 on one thread, --matmul-precision {choice}"
    configure(threads=threads, precision=precision)


def _seconds_per(work: Callable[[], object]) -> float:
    """Return the mean time of a call, over about half a second of them after one to warm up."""
    work()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MEASURE_SECONDS:
        work()
        calls += 1
    return elapsed / calls
