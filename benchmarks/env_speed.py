"""Speed of the native MuJoCo environments beside EnvPool and Gymnasium, all in one run on one machine.

The three take turns, several times, so that whatever else the machine does falls on all of them; a ratio is that of one
turn each, and the table shows the median. Observations, rewards and resets are included, actions are drawn beforehand.

    python benchmarks/env_speed.py
    python benchmarks/env_speed.py --envs Ant-v5 --num-envs 1 8 64 --repeats 50 --json speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch

from habilis.envs.mujoco import make_native

Stepper = Callable[[int], None]
"""Takes one step of all its environments, with the i-th of the actions drawn beforehand."""
DRAWN_ACTIONS = 16


def random_actions(low: np.ndarray, high: np.ndarray, num_envs: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.uniform(low, high, (num_envs, len(low))).astype(np.float32) for _ in range(DRAWN_ACTIONS)]


def habilis_stepper(id: str, num_envs: int, threads: int) -> Stepper:
    env = make_native(id, num_envs, seed=0, threads=min(threads, num_envs))
    actions = [torch.from_numpy(a) for a in random_actions(env.spec.action.low, env.spec.action.high, num_envs)]

    return lambda i: env.step(actions[i % DRAWN_ACTIONS])


def envpool_stepper(id: str, num_envs: int, threads: int) -> Stepper:
    import envpool

    env = envpool.make(id, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=0)
    space = env.action_space
    actions = [a.astype(space.dtype) for a in random_actions(space.low, space.high, num_envs)]
    env.reset()

    return lambda i: env.step(actions[i % DRAWN_ACTIONS])


def gymnasium_stepper(id: str, num_envs: int, threads: int) -> Stepper:
    env = gymnasium.make_vec(id, num_envs, vectorization_mode="sync")
    space = env.single_action_space
    actions = random_actions(space.low, space.high, num_envs)
    env.reset(seed=0)

    return lambda i: env.step(actions[i % DRAWN_ACTIONS])


MAKERS = {"habilis": habilis_stepper, "envpool": envpool_stepper, "gymnasium": gymnasium_stepper}


def steps_a_second(step: Stepper, num_envs: int, seconds: float) -> float:
    """Return env steps a second over about `seconds`."""
    count = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        step(count)
        count += 1
    return count * num_envs / elapsed


def compare(id: str, num_envs: int, threads: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Let all contenders take turns at one environment; return the speeds and our ratios to the others."""
    steppers = {name: make(id, num_envs, threads) for name, make in MAKERS.items()}
    for step in steppers.values():
        for i in range(100):  # past the first steps, in which nothing has fallen yet
            step(i)
    speeds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(repeats):
        for name, step in steppers.items():
            speeds[name].append(steps_a_second(step, num_envs, seconds))
    others = [name for name in steppers if name != "habilis"]
    turns = {name: [a / b for a, b in zip(speeds["habilis"], speeds[name], strict=True)] for name in others}
    return {
        "env": id,
        "num_envs": num_envs,
        "steps_a_second": {name: median(speeds[name]) for name in steppers},
        "ratio": {name: median(turns[name]) for name in others},
        "ratio_of_fastest_turns": {name: max(speeds["habilis"]) / max(speeds[name]) for name in others},
    }


def markdown(results: list[dict[str, Any]]) -> str:
    others = [name for name in MAKERS if name != "habilis"]
    heads = ["environment", "number", *MAKERS, *(f"habilis / {name}" for name in others)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in results:
        speeds = [f"{row['steps_a_second'][name]:,.0f}" for name in MAKERS]
        ratios = [f"{row['ratio'][name]:.2f} ({row['ratio_of_fastest_turns'][name]:.2f})" for name in others]
        lines.append(f"| {' | '.join([row['env'], str(row['num_envs']), *speeds, *ratios])} |")
    lines += [
        "",
        "Env steps a second and ratios are medians over the turns; in brackets, the ratio of the fastest.",
    ]
    return "\n".join(lines)


def main() -> None:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Ant-v5"])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[64])
    parser.add_argument("--threads", type=int, default=cpus, help="of habilis and of EnvPool")
    parser.add_argument("--seconds", type=float, default=0.25, help="of one turn")
    parser.add_argument("--repeats", type=int, default=25, help="turns of each")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    args = parser.parse_args()

    results = [
        compare(id, num_envs, args.threads, args.seconds, args.repeats)
        for id in args.envs
        for num_envs in args.num_envs
    ]
    print(markdown(results))
    if args.json:
        packages = ("mujoco", "gymnasium", "envpool", "numpy", "torch")
        report = {
            "machine": {"cpus": cpus, "threads": args.threads, "platform": platform.platform()},
            "versions": {name: version(name) for name in packages},
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
