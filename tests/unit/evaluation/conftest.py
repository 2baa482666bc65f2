"""Run directories made up for the tests of the report, with every kind of curve that a run writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from habilis.evaluation.evaluator import EvaluationResult


def make_run(
    root,
    *,
    env="HalfCheetah-v5",
    algorithm="ppo",
    seed=0,
    total=1_000_000,
    reached=1.0,
    learning_rate=3e-4,
    best=5000.0,
    lines=400,
    evaluations=10,
    episodes_end=True,
    terms=("forward", "ctrl"),
    success=False,
):
    """Write a run that came to `reached` of `total` env steps; return its directory."""
    path = root / env / algorithm / f"run_s{seed}_{learning_rate}"
    (path / "eval").mkdir(parents=True)
    rng = np.random.default_rng([seed, len(algorithm)])
    algo = {"learning_rate": learning_rate, "gamma": 0.99, "hidden_sizes": [256, 256], "clip_range": 0.2}
    config = {"env": env, "algorithm": algorithm, "seed": seed, "total_timesteps": total, "num_envs": 8, "algo": algo}
    versions = {"habilis": "0.1.0", "torch": "2.13.0", "mujoco": "4.0.0"}
    (path / "config.json").write_text(json.dumps({"config": config, "versions": versions}))
    (path / "command.txt").write_text(f"habilis train {algorithm} --env {env} --seed {seed}\n")
    level = best * rng.uniform(0.85, 1.1)

    def skill(step):
        return 1 - math.exp(-4 * step / total)

    with (path / "metrics.jsonl").open("w") as file:
        for k in range(1, int(lines * reached) + 1):
            step = round(k * total / lines)
            line = {
                "step": step,
                "time/wall": step / 4100,
                "time/iterations": k,
                "time/fps": 4100 + 300 * rng.standard_normal(),
                "train/policy_loss": 0.02 * rng.standard_normal(),
                "train/value_loss": None if k == 7 else 40 * math.exp(-3 * step / total) + rng.random() + 900 * (k < 3),
                "train/approx_kl": 0.01 + 0.003 * rng.standard_normal(),
                "train/entropy": 8.5 - 6 * skill(step),
                "train/explained_variance": 1 - math.exp(-9 * step / total) * rng.uniform(0.8, 1.2),
                "train/learning_rate": learning_rate * (1 - step / total),
            }
            if episodes_end:
                line["rollout/ep_rew_mean"] = level * skill(step) + 0.05 * best * rng.standard_normal()
                line["rollout/ep_len_mean"] = 1000.0
                line |= {f"reward/{t}": level * skill(step) / (i + 1) * (-1) ** i for i, t in enumerate(terms)}
                line["termination/fall"] = 1 - skill(step)
            file.write(json.dumps(line) + "\n")
    for k in range(1, int(evaluations * reached) + 1):
        step = round(k * total / evaluations)
        results = [
            EvaluationResult(
                returns=level * skill(step) * scale + 0.06 * best * rng.standard_normal(20),
                lengths=np.full(20, 1000),
                successes=(rng.random(20) < skill(step)).astype(float) if success else None,
                terms={f"reward/{t}": np.full(20, level / (i + 1)) for i, t in enumerate(terms)}
                | {"tracking_error": rng.random(20) / 5},
                seed=seed,
                deterministic=scale == 1.0,
            ).to_dict()
            for scale in (1.0, 0.9)
        ]
        tree = {"step": step, "deterministic": results[0], "stochastic": results[1]}
        (path / "eval" / f"step_{step:012d}.json").write_text(json.dumps(tree))
    return path


@pytest.fixture
def write_run():
    """The function `make_run`."""
    return make_run
