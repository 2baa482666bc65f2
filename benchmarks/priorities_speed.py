"""Rounds a second of prioritised replay: draw a batch in proportion to the priorities, set those of what was drawn.

Beside it the usual sum tree, binary and walked one draw at a time in Python, and the whole buffer (observations,
actions and rewards of the batch too), drawn from by priority and uniformly. All take turns in one process, on one
thread; times are of the processor.

    python benchmarks/priorities_speed.py
    python benchmarks/priorities_speed.py --capacity 100_000 --batch-size 256
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import torch

from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.data.priorities import Priorities
from habilis.data.replay import ReplayBuffer

SPEC = EnvSpec("lander-like", {"policy": ObsGroup((8,))}, DiscreteAction(4))
ENVS = 8


class BinaryTree:
    """The sum tree as it is mostly written: two children to a node, one place at a time."""

    def __init__(self, values: np.ndarray) -> None:
        self.leaves = 1 << (len(values) - 1).bit_length()
        sums = np.zeros(2 * self.leaves)
        sums[self.leaves : self.leaves + len(values)] = values
        for node in range(self.leaves - 1, 0, -1):
            sums[node] = sums[2 * node] + sums[2 * node + 1]
        self.sums = sums.tolist()

    def find(self, mass: float) -> int:
        """Return the place where the running sum first exceeds `mass`."""
        node = 1
        while node < self.leaves:
            node *= 2
            if mass >= self.sums[node]:
                mass -= self.sums[node]
                node += 1
        return node - self.leaves

    def set(self, place: int, value: float) -> None:
        """Set one value."""
        node = place + self.leaves
        change = value - self.sums[node]
        while node:
            self.sums[node] += change
            node //= 2


def filled(capacity: int, priorities: Priorities | None) -> ReplayBuffer:
    """Return a buffer full of steps without an end."""
    generator = torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(SPEC, capacity, ENVS, generator=np.random.default_rng(0), priorities=priorities)
    no = torch.zeros(ENVS, dtype=torch.bool)
    obs = {"policy": torch.rand(ENVS, 8, generator=generator)}
    buffer.start(obs)
    for _ in range(capacity // ENVS):
        action = torch.randint(4, (ENVS,), generator=generator)
        buffer.add(action, Step(obs, obs, torch.rand(ENVS, generator=generator), no, no, ~no))
    return buffer


def rounds(capacity: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return what is timed: each call is one round."""
    generator, values = np.random.default_rng(0), np.random.default_rng(1).random(capacity)
    tree, binary = Priorities(), BinaryTree(values)
    tree.reserve(capacity)
    tree.tree.fill(values)
    prioritized, uniform = filled(capacity, Priorities()), filled(capacity, None)
    kept = prioritized.priorities.tree
    kept.fill(kept.values * generator.random(len(kept.values)))
    errors = torch.rand(batch_size, generator=torch.Generator().manual_seed(0))

    def ours() -> None:
        index, _ = tree.draw(batch_size, generator)
        tree.update(index, errors.numpy())

    def usual() -> None:
        part = binary.sums[1] / batch_size
        places = [binary.find(part * (k + chance)) for k, chance in enumerate(generator.random(batch_size).tolist())]
        for place, error in zip(places, errors.tolist(), strict=True):
            binary.set(place, error**0.6)

    def whole() -> None:
        prioritized.update_priorities(prioritized.sample(batch_size).index, errors)

    return {
        "priorities alone": ours,
        "a binary tree as a Python loop": usual,
        "the buffer, by priority": whole,
        "the buffer, uniformly": lambda: uniform.sample(batch_size),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--count", type=int, default=2000, help="rounds timed at once")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = rounds(options.capacity, options.batch_size)
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            began = time.process_time()
            for _ in range(options.count):
                case()
            speeds[name].append(options.count / (time.process_time() - began))
    print(f"batches of {options.batch_size} from {options.capacity:,} transitions\n")
    print("| what | rounds a second |\n|---|---|")
    for name, measured in speeds.items():
        print(f"| {name} | {median(measured):,.0f} |")


if __name__ == "__main__":
    main()
