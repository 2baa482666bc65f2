"""Transitions a second drawn from a replay buffer with goals in hindsight, beside plain sampling from the same data.

The buffer holds random steps of Fetch's shape (25 numbers observed, goals of 3, episodes of 50) and judges by distance,
as `habilis train` on FetchPush does. All take turns in one process, on one thread; times are of the processor.

    python benchmarks/hindsight_speed.py
    python benchmarks/hindsight_speed.py --capacity 1_000_000 --num-envs 16 --batch-size 512
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from statistics import median
from types import SimpleNamespace

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import torch

from habilis.core.specs import ACHIEVED, DESIRED, BoxAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.data.hindsight import Hindsight
from habilis.data.replay import ReplayBuffer
from habilis.envs.goals import distance_reward

SPEC = EnvSpec(
    "fetch-like",
    {"policy": ObsGroup((25,)), ACHIEVED: ObsGroup((3,)), DESIRED: ObsGroup((3,))},
    BoxAction(-np.ones(4, np.float32), np.ones(4, np.float32)),
)
EPISODE = 50
JUDGE = partial(distance_reward, threshold=0.05)


def filled(strategy: str, n_steps: int, capacity: int, num_envs: int) -> tuple[ReplayBuffer, float]:
    """Return a full buffer, and how many steps of one environment were stored a second."""
    random = np.random.default_rng(0)
    env = SimpleNamespace(spec=SPEC, compute_reward=JUDGE, compute_terminated=None)
    hindsight = None if strategy == "none" else Hindsight(env, strategy=strategy, generator=random)
    buffer = ReplayBuffer(SPEC, capacity, num_envs, generator=random, n_steps=n_steps, hindsight=hindsight)
    generator = torch.Generator().manual_seed(0)

    def observe() -> dict[str, torch.Tensor]:
        return {k: 0.1 * torch.rand(num_envs, *g.shape, generator=generator) for k, g in SPEC.obs.items()}

    no, action = torch.zeros(num_envs, dtype=torch.bool), torch.zeros(num_envs, 4)
    shown = [observe() for _ in range(EPISODE)]
    wanted = shown[0][DESIRED]
    for obs in shown:
        obs[DESIRED] = wanted
    buffer.start(shown[0])
    began = time.process_time()
    for k in range(capacity // num_envs):
        obs = shown[(k + 1) % EPISODE]
        end = no if (k + 1) % EPISODE else ~no
        buffer.add(action, Step(obs, obs, JUDGE(obs[ACHIEVED], wanted), no, end, ~no))
    return buffer, capacity / (time.process_time() - began)


def speed(buffer: ReplayBuffer, batch_size: int, batches: int) -> float:
    """Return how many transitions are drawn a second."""
    began = time.process_time()
    for _ in buffer.batches(batch_size, batches):
        pass
    return batch_size * batches / (time.process_time() - began)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capacity", type=int, default=200_000)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(s, n) for n in (1, 3) for s in ("none", "final", "future", "episode")]
    buffers = {case: filled(*case, options.capacity, options.num_envs) for case in cases}
    speeds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            speeds[case].append(speed(buffers[case][0], options.batch_size, options.batches))
    print(f"batches of {options.batch_size} from {options.capacity:,} transitions of {options.num_envs} environments\n")
    print("| goals | n-step | drawn a second | of plain | stored a second |\n|---|---|---|---|---|")
    for strategy, n_steps in cases:
        drawn, plain = median(speeds[strategy, n_steps]), median(speeds["none", n_steps])
        stored = buffers[strategy, n_steps][1]
        print(f"| {strategy} | {n_steps} | {drawn:,.0f} | {drawn / plain:.2f} | {stored:,.0f} |")


if __name__ == "__main__":
    main()
