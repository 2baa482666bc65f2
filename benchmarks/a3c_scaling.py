"""A3C's speed with one worker and with two, in turn, and its score beside A2C's at equal environment steps.

    python benchmarks/a3c_scaling.py
    python benchmarks/a3c_scaling.py --workers 1 2 4 --rounds 5 --seeds 0 1 2 3 4 --output a3c.json

The speed is that of environment steps with everything (acting, environment, gradient, step on the shared parameters),
after every worker has recorded its gradient; rounds alternate between the numbers of workers. The score is that of the
last policy, deterministic, with the presets as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path
from statistics import mean, median

from habilis.api import default_config
from habilis.build import build_trainer, make_env
from habilis.core.provenance import versions
from habilis.evaluation.evaluator import evaluate
from habilis.training.keeping import close

COMMON = {"threads": 1, "env_threads": 1}
WARMUP = 10_000
"""Environment steps of each worker, in which its processes start and its functions are recorded."""


def speed(env: str, workers: int, seconds: float) -> float:
    trainer = build_trainer(default_config("a3c", env, num_envs=workers, total_timesteps=10**9, **COMMON))
    try:
        while trainer.counters.env_steps < WARMUP * workers:
            trainer.iterate()
        begin, start = trainer.counters.env_steps, time.perf_counter()
        while time.perf_counter() < start + seconds:
            trainer.iterate()
        return (trainer.counters.env_steps - begin) / (time.perf_counter() - start)
    finally:
        close(trainer)


def score(algorithm: str, env: str, seed: int, steps: int) -> float:
    config = default_config(algorithm, env, seed=seed, total_timesteps=steps, **COMMON)
    trainer = build_trainer(config)
    try:
        for _ in trainer:
            pass
        with closing(make_env(config, 10, 12345)) as judged_in:
            return float(evaluate(trainer.algorithm.policy, judged_in, episodes=20, seed=1000).mean)
    finally:
        close(trainer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps of a score")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the scores; none: only the speed")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    speeds: dict[int, list[float]] = {workers: [] for workers in args.workers}
    for _ in range(args.rounds):
        for workers, values in speeds.items():
            values.append(speed(args.env, workers, args.seconds))
    print(f"| workers | env steps/s on {args.env} (median of {args.rounds}) | times {args.workers[0]} |\n|---|---|---|")
    for workers, values in speeds.items():
        ratio = median(x / y for x, y in zip(values, speeds[args.workers[0]], strict=True))
        print(f"| {workers} | {median(values):,.0f} | {ratio:.2f} |")
    scores = {name: [score(name, args.env, seed, args.steps) for seed in args.seeds] for name in ("a2c", "a3c")}
    if args.seeds:
        print(f"\n| algorithm | mean return at {args.steps:,} | by seed |\n|---|---|---|")
        for name, values in scores.items():
            print(f"| {name} | {mean(values):.1f} | {', '.join(f'{x:.1f}' for x in values)} |")
    if args.output:
        figures = {"env": args.env, "speeds": speeds, "scores": scores, "versions": versions()}
        args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
