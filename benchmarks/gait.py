"""How a trained quadruped walks, in numbers: whether it steps with its legs or hops, drags its feet or vibrates.

Each command is held by some robots for a while, with noise, randomisation and pushes as in training; the first two
seconds are left out. Columns of the table:

- error: mean distance from the wanted planar velocity, m/s;
- falls: how many robots fell;
- duty: share of the time that a foot presses the floor;
- steps: swings of each foot a second;
- clearance: median over the swings of the foot's greatest height, cm, of the foot with the lowest;
- slip: mean speed of feet on the floor, m/s;
- flight: share of the time with no foot on the floor;
- diagonal: share of the time that both pairs of diagonal feet agree, 1 for a perfect trot;
- shaking: share of the joints' motion (variance of their velocities) above 8 Hz;
- joints: root mean square of the joints' velocities, rad/s;
- bounce: standard deviation of the trunk's height, cm.

    python benchmarks/gait.py runs/habilis-QuadrupedWalk-v0/ppo/demo_s0_...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import cast

import numpy as np

import habilis
from habilis.core.protocols import Policy
from habilis.evaluation.evaluator import rollout
from habilis.tasks.locomotion import Sense
from habilis.tasks.task import ALL, Task

ID = "habilis/QuadrupedWalk-v0"
COMMANDS: dict[str, tuple[float, float, float]] = {
    "stand": (0.0, 0.0, 0.0),
    "forward 0.4": (0.4, 0.0, 0.0),
    "forward 0.8": (0.8, 0.0, 0.0),
    "forward 1.0": (1.0, 0.0, 0.0),
    "backward 0.5": (-0.5, 0.0, 0.0),
    "left 0.4": (0.0, 0.4, 0.0),
    "turn 0.8": (0.0, 0.0, 0.8),
    "curve": (0.6, 0.2, -0.5),
}
WARM_UP = 2.0
SHAKING_ABOVE = 8.0


def swings(pressed: np.ndarray) -> Iterator[slice]:
    """Yield the whole swings of one foot over time `[T]`: off the floor, between two times on it."""
    for down, again in pairwise(np.flatnonzero(pressed)):
        if again > down + 1:
            yield slice(down + 1, again)


def measure(policy: Policy, command: tuple[float, float, float], robots: int, seconds: float) -> dict[str, float]:
    """Hold one command and return the row of the table."""
    task = cast(Task, habilis.make_env(ID, robots, threads=1, command=command))
    sense = Sense(task.simulation.model)
    skipped, steps = round(WARM_UP / task.control_dt), round(seconds / task.control_dt)
    states, falls, errors = [], 0, []
    with closing(rollout(policy, task, seed=0)) as walk:
        for step in islice(walk, skipped, skipped + steps):
            states.append(sense(task, ALL))
            falls += int(step.terminated.sum())
            errors.append(step.info["tracking_error"].mean().item())
    task.close()
    pressed = np.stack([state.foot_contact.numpy() > 0.5 for state in states])  # [T, N, 4]
    height = np.stack([state.foot_height.numpy() for state in states])
    speed = np.stack([state.foot_velocity[:, :, :2].norm(dim=2).numpy() for state in states])
    joints = np.stack([state.joint_velocity.numpy() for state in states])
    trunk = np.stack([state.height.numpy() for state in states])
    feet = [
        [height[swing, n, foot].max() for n in range(robots) for swing in swings(pressed[:, n, foot])]
        for foot in range(4)
    ]
    power = np.abs(np.fft.rfft(joints - joints.mean(0), axis=0)) ** 2
    fast = np.fft.rfftfreq(steps, task.control_dt) > SHAKING_ABOVE
    return {
        "error": float(np.mean(errors)),
        "falls": falls,
        "duty": pressed.mean(),
        "steps": sum(map(len, feet)) / (4 * robots * seconds),
        "clearance": 100 * min((float(np.median(peaks)) if peaks else 0.0) for peaks in feet),
        "slip": speed[pressed].mean(),
        "flight": (~pressed).all(2).mean(),
        "diagonal": ((pressed[..., 0] == pressed[..., 3]) & (pressed[..., 1] == pressed[..., 2])).mean(),
        "shaking": power[fast].sum() / power.sum(),
        "joints": np.sqrt(np.square(joints).mean()),
        "bounce": 100 * trunk.std(0).mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How a trained quadruped walks, in numbers.")
    parser.add_argument("run", help="a run's directory, or a checkpoint")
    parser.add_argument("--robots", type=int, default=16, help="robots for each command")
    parser.add_argument("--seconds", type=float, default=10.0, help="time measured, after two seconds to settle")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    policy = habilis.load(options.run)
    rows = {name: measure(policy, command, options.robots, options.seconds) for name, command in COMMANDS.items()}
    columns = list(next(iter(rows.values())))
    print("| command | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |")
    if options.json:
        options.json.write_text(json.dumps({name: {k: float(v) for k, v in row.items()} for name, row in rows.items()}))


if __name__ == "__main__":
    main()
