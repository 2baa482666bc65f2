"""F7: the command line. `main` looks at the first word and imports that command alone, so that help costs nothing."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from habilis.core.errors import ConfigError, HabilisError, did_you_mean, explain_os_error
from habilis.core.version import __version__


class Command(NamedTuple):
    """Where a command is, and what it is for."""

    module: str
    """Its `run(argv)` does the work and returns the exit code."""
    usage: str
    summary: str


COMMANDS = {
    "train": Command("train", "ALGORITHM --env ID", "train a policy, or go on: --resume RUN"),
    "evaluate": Command("evaluate", "RUN", "how good is it? whole episodes, honest statistics, a video"),
    "play": Command("play", "RUN", "watch it: MuJoCo's viewer, or a video where there is no screen"),
    "report": Command("report", "RUN [RUN ...]", "one HTML page: curves, losses, evaluation, video"),
    "export": Command("export", "RUN --output DIR", "write policy.onnx, checked against the original"),
    "verify": Command("verify", "DIR", "does an exported policy answer here as it did there?"),
    "list": Command("listing", "algorithms|envs|plugins|presets|backends|suites", "what there is"),
    "doctor": Command("doctor", "[--env ID]", "this machine in one screen, or what is wrong with an environment"),
    "bench": Command("bench", "SUITE", "algorithms x environments x seeds, beside what others reached"),
    "demo": Command("demo", "", "a quadruped learns to walk; report, video and policy.onnx"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for a wrong call, 130 for an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("HABILIS_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # here, so that a reader who has gone is noticed below
        return code
    except HabilisError as error:
        if debug:
            raise
        print(f"habilis: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("habilis: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has gone (`habilis list envs | head`); Python would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        print(f"habilis: {' '.join(explain_os_error(error).split())}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"habilis {__version__}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}; known: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"habilis.cli.{COMMANDS[name].module}")
    return int(module.run(rest))


def _help() -> str:
    calls = {name: f"habilis {name} {command.usage}".rstrip() for name, command in COMMANDS.items()}
    width = max(map(len, calls.values()))
    return "\n".join(
        [
            "Habilis: from a robot model and a reward to a safe, exported, verified policy.",
            "",
            *(f"  {calls[name]:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "`habilis COMMAND --help` lists the options of one; `habilis train ppo --env ID --help` shows its preset.",
            "Flags take hyphens or underscores. --version tells the version; --debug shows the traceback of an error.",
        ]
    )
