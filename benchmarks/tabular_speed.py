"""Updates a second of Q-learning on the grid world, as `habilis train` runs it, beside plain Python loops.

An update is one environment step and one entry of the table moved towards its target; there is one for each step of
each environment. Ours is a whole run through `habilis.api`: building it, collecting, episode statistics, logging,
evaluations and checkpoints are in its time. With N environments N agents share the table: actions of one step are
chosen from the table as it was before the step, updates are made one after the other.

Beside it stand two loops of one agent that do nothing but learn: `numpy loop` as textbooks write it (a table of NumPy,
an environment with `step`), and `list loop`, the same stripped to lists and look-ups. All run on one thread, in turn.

Two times are shown: of the clock, which whatever else the machine does makes longer, and of the processor, which is
the process's own.

    python benchmarks/tabular_speed.py
    python benchmarks/tabular_speed.py --num-envs 1 128 --steps 2_000_000 --repeats 5
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np

from habilis.api import default_config, train_config
from habilis.envs.make import make_vec_env

ENV = "habilis/GridWorld-v0"
ALPHA, GAMMA, EPSILON, LIMIT = 0.5, 0.99, 0.2, 100


def ours(algorithm: str, num_envs: int) -> Callable[[int], None]:
    """Whole runs of ours; the exploration of the loops beside it."""
    constant = {"algo.exploration_initial_eps": EPSILON, "algo.exploration_final_eps": EPSILON, "algo.train_freq": 16}

    def run(steps: int) -> None:
        settings = {"num_envs": num_envs, "total_timesteps": steps, **constant}
        with TemporaryDirectory() as folder:
            train_config(default_config(algorithm, ENV, run_dir=f"{folder}/run", **settings), progress=False)

    return run


class GridWorld:
    """The grid world as a textbook writes it."""

    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))

    def reset(self) -> int:
        """Start an episode."""
        self.row = self.column = self.time = 0
        return 0

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Take one step."""
        row, column = self.row + self.moves[action][0], self.column + self.moves[action][1]
        reward, self.time = -0.1, self.time + 1
        if (row, column) == (1, 1):
            reward = -5.0
        elif 0 <= row < 4 and 0 <= column < 4:
            self.row, self.column = row, column
        ended = (self.row, self.column) == (0, 3)
        return self.row * 4 + self.column, 10.0 if ended else reward, ended, self.time == LIMIT


def numpy_loop(steps: int) -> None:
    """One agent, one step after the other, a NumPy table."""
    env, q, generator = GridWorld(), np.zeros((16, 4)), np.random.default_rng(0)
    state = env.reset()
    for _ in range(steps):
        if generator.random() < EPSILON:
            action = int(generator.integers(4))
        else:
            action = int(generator.choice(np.flatnonzero(q[state] == q[state].max())))
        following, reward, ended, cut = env.step(action)
        target = reward if ended else reward + GAMMA * q[following].max()
        q[state, action] += ALPHA * (target - q[state, action])
        state = env.reset() if ended or cut else following


def list_loop(steps: int) -> None:
    """The same with lists: next states and rewards looked up in the tables of the environment."""
    dynamics = make_vec_env(ENV, 1).dynamics
    successor, pay = dynamics.next_state[..., 0].tolist(), dynamics.reward[..., 0].tolist()
    q = [[0.0] * 4 for _ in range(16)]
    generator = random.Random(0)
    draw, state, age = generator.random, 0, 0
    for _ in range(steps):
        row = q[state]
        if draw() < EPSILON:
            action = int(draw() * 4)
        else:
            best = max(row)
            action = row.index(best)
            if row.count(best) > 1:
                action = generator.choice([a for a in range(4) if row[a] == best])
        following, reward, age = successor[state][action], pay[state][action], age + 1
        ended = following == 3
        target = reward if ended else reward + GAMMA * max(q[following])
        row[action] += ALPHA * (target - row[action])
        if ended or age == LIMIT:
            following = age = 0
        state = following


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["q_learning"])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1, 16, 128, 512])
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="of a turn with many environments and of list loop"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    args = parser.parse_args()
    contenders: dict[str, tuple[Callable[[int], None], int]] = {
        f"{algorithm}, N = {n}": (ours(algorithm, n), min(args.steps, n * 20_000))
        for algorithm in args.algorithms
        for n in args.num_envs
    }
    contenders |= {"numpy loop": (numpy_loop, args.steps // 20), "list loop": (list_loop, args.steps)}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(args.repeats):
        for name, (run, steps) in contenders.items():
            clock, processor = time.perf_counter(), time.process_time()
            run(steps)
            speeds[name].append((steps / (time.perf_counter() - clock), steps / (time.process_time() - processor)))
    print("| loop | updates a second, by the clock | of the processor's time |\n|---|---|---|")
    for name, turns in speeds.items():
        clock, processor = (median(column) for column in zip(*turns, strict=True))
        print(f"| {name} | {clock:,.0f} | {processor:,.0f} |")


if __name__ == "__main__":
    main()
