"""Training speed beside Stable-Baselines3 and SBX: the same work, in turn, in one run, as ratios.

    python benchmarks/learning_speed.py ppo --batch-size 64 --peers-python peers/bin/python
    python benchmarks/learning_speed.py sac --peers-python peers/bin/python
    python benchmarks/learning_speed.py crossq --peers-python peers/bin/python
    python benchmarks/learning_speed.py dqn --num-envs 8 --peers-python peers/bin/python
    python benchmarks/learning_speed.py a2c --peers-python peers/bin/python
    python benchmarks/learning_speed.py trpo --peers-python peers/bin/python

The peers live in an environment of their own (`python -m venv peers; peers/bin/pip install -r benchmarks/peers.txt`):
they need an older MuJoCo. Each measurement is a fresh process that trains a little to warm up and is then timed over
`--steps` environment steps; rounds alternate between the sides, so that a machine that drifts slows all of them, and
the medians over the rounds are compared.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

OFF_POLICY = {
    "sac": {},
    "td3": {"policy_kwargs": {"net_arch": [256, 256]}},
    "tqc": {},
    "crossq": {},
    "droq": {"gradient_steps": 20, "policy_delay": 20, "policy_kwargs": {"dropout_rate": 0.01, "layer_norm": True}},
}
"""What peers are told besides one environment and batches of 256: where it is silent, their defaults, ours and the
papers' are the same, two layers of 256 among them (1024 in the critics of CrossQ)."""
ENV = {
    "ppo": "HalfCheetah-v5",
    "dqn": "CartPole-v1",
    "a2c": "CartPole-v1",
    "trpo": "Hopper-v5",
} | dict.fromkeys(OFF_POLICY, "HalfCheetah-v5")
STEPS = {"ppo": 32_768, "dqn": 12_000, "a2c": 60_000, "trpo": 40_960, "sac": 3_000, "td3": 3_000, "tqc": 2_000}
STEPS |= {"crossq": 1_000, "droq": 400}
WARMUP = {"ppo": 16_384, "dqn": 4_000, "a2c": 10_000, "trpo": 81_920, "sac": 800, "td3": 800, "tqc": 800}
WARMUP |= {"crossq": 500, "droq": 350}
SIDES = dict.fromkeys(ENV, ("habilis", "sb3", "sbx")) | dict.fromkeys(("a2c", "trpo"), ("habilis", "sb3"))
SIDES["droq"] = ("habilis", "sbx")
"""SBX has neither A2C nor TRPO and Stable-Baselines3 no DroQ; its TRPO, TQC and CrossQ are those of its Contrib."""
CONTRIB = ("trpo", "tqc", "crossq")
ON_POLICY = {"a2c": {"n_steps": 5}, "trpo": {"n_steps": 256, "batch_size": 128}}
"""Of every side, with 8 environments and two layers of 64; all else is the default, which is the same."""
DQN = {"batch_size": 64, "buffer_size": 100_000, "learning_starts": 256, "gradient_steps": -1, "learning_rate": 5e-4}
"""Of every side: as many updates as environment steps, of two layers of 64; targets are copied as seldom by each."""


def measure_habilis(args):
    from habilis.api import default_config
    from habilis.build import ALGORITHMS, build_trainer

    common = {"total_timesteps": 10**9, "eval_episodes": 0}
    if args.threads:
        common["threads"] = args.threads
    if args.algorithm == "ppo":
        common |= {
            "num_envs": 8,
            "algo.n_steps": 2048,
            "algo.n_epochs": 10,
            "algo.batch_size": args.batch_size,
            "algo.hidden": [64, 64],
            "algo.normalize_obs": False,
            "algo.normalize_reward": False,
        }
    elif args.algorithm in ON_POLICY:
        common["num_envs"] = 8
        defaults = vars(ALGORITHMS[args.algorithm].config())  # and nothing of a preset
        common |= {f"algo.{key}": value for key, value in {**defaults, **ON_POLICY[args.algorithm]}.items()}
        common |= {"algo.normalize_obs": False, "algo.normalize_reward": False}
    elif args.algorithm == "dqn":
        defaults = vars(ALGORITHMS["dqn"].config())  # and nothing of a preset
        settings = {**defaults, **DQN, "target_update_interval": 10_000, "train_freq": args.train_freq}
        common |= {"num_envs": args.num_envs} | {f"algo.{key}": value for key, value in settings.items()}
    else:
        common |= {"num_envs": 1, "algo.learning_starts": 256, "algo.batch_size": 256, "algo.hidden": [256, 256]}
    trainer = build_trainer(default_config(args.algorithm, ENV[args.algorithm], **common))
    advance(trainer, args.warmup)
    start = time.perf_counter()
    steps = advance(trainer, args.steps)
    return steps / (time.perf_counter() - start)


def advance(trainer, steps):
    begin = trainer.counters.env_steps
    while trainer.counters.env_steps < begin + steps:
        trainer.iterate()
    return trainer.counters.env_steps - begin


def measure_peer(args):
    if args.worker == "sbx":
        import sbx as package
    else:
        import stable_baselines3 as package
    from stable_baselines3.common.env_util import make_vec_env

    if args.worker == "sb3" and args.algorithm in CONTRIB:
        import sb3_contrib as package
    if args.algorithm == "ppo":
        env = make_vec_env(ENV["ppo"], n_envs=8)
        model = package.PPO("MlpPolicy", env, n_steps=2048, batch_size=args.batch_size, n_epochs=10, device="cpu")
    elif args.algorithm in ON_POLICY:
        env, settings = make_vec_env(ENV[args.algorithm], n_envs=8), ON_POLICY[args.algorithm]
        model = getattr(package, args.algorithm.upper())("MlpPolicy", env, device="cpu", **settings)
    elif args.algorithm == "dqn":
        env = make_vec_env(ENV["dqn"], n_envs=args.num_envs)
        layers = {"net_arch": [64, 64]}
        model = package.DQN("MlpPolicy", env, train_freq=args.train_freq, policy_kwargs=layers, device="cpu", **DQN)
    else:
        # DroQ is SAC by its settings; CrossQ is the one name that is not in capitals
        name = {"droq": "SAC", "crossq": "CrossQ"}.get(args.algorithm, args.algorithm.upper())
        settings = {"learning_starts": 256, "batch_size": 256, "device": "cpu"} | OFF_POLICY[args.algorithm]
        model = getattr(package, name)("MlpPolicy", make_vec_env(ENV[args.algorithm]), **settings)
    model.learn(args.warmup)
    before = model.num_timesteps
    start = time.perf_counter()
    model.learn(args.steps, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (time.perf_counter() - start)


PEERS = ("stable-baselines3", "sb3-contrib", "sbx-rl", "torch", "jax", "mujoco", "gymnasium")
"""Packages whose versions decide what the peers' speeds are."""


def measured_with(side):
    if side == "habilis":
        from habilis.core.provenance import versions

        return versions()
    # an environment may have one of the peers alone
    return {package: metadata.version(package) for package in PEERS if list(metadata.distributions(name=package))}


def run_side(side, args):
    python = sys.executable if side == "habilis" else args.peers_python
    command = [python, __file__, args.algorithm, "--worker", side, "--batch-size", str(args.batch_size)]
    command += ["--num-envs", str(args.num_envs), "--train-freq", str(args.train_freq)]
    command += ["--steps", str(args.steps), "--warmup", str(args.warmup), "--threads", str(args.threads)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    if out.returncode:
        sys.exit(f"{side} failed:\n{out.stderr[-2000:]}")
    return json.loads(out.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=list(ENV))
    parser.add_argument("--batch-size", type=int, default=64, help="PPO's minibatch")
    parser.add_argument("--num-envs", type=int, default=1, help="environments of DQN")
    parser.add_argument("--train-freq", type=int, default=1, help="steps of each environment in a round of DQN")
    parser.add_argument("--steps", type=int, default=0, help=f"environment steps timed; 0: {STEPS}")
    parser.add_argument("--warmup", type=int, default=0, help=f"environment steps before; 0: {WARMUP}")
    parser.add_argument("--threads", type=int, default=0, help="PyTorch threads of ours; 0: the preset's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-python", default="python", help="interpreter that has the peers")
    parser.add_argument("--sides", nargs="+", help="habilis, sb3, sbx; without: those that have the algorithm")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--worker", choices=["habilis", "sb3", "sbx"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.sides = args.sides or SIDES[args.algorithm]
    args.steps = args.steps or STEPS[args.algorithm]
    args.warmup = args.warmup or WARMUP[args.algorithm]
    if args.worker:
        speed = measure_habilis(args) if args.worker == "habilis" else measure_peer(args)
        print(json.dumps({"steps_per_second": speed, "versions": measured_with(args.worker)}))
        return
    speeds, versions = {side: [] for side in args.sides}, {}
    for _ in range(args.rounds):
        for side in args.sides:
            told = run_side(side, args)
            speeds[side].append(told["steps_per_second"])
            versions[side] = told["versions"]
            print(f"{side:8} {speeds[side][-1]:10.0f} env steps/s", flush=True)
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    details = {
        "ppo": f"minibatch {args.batch_size}",
        "dqn": f"environments: {args.num_envs}, round: {args.train_freq}",
        "a2c": "8 environments, 5 steps",
        "trpo": "8 environments, 256 steps, minibatch 128",
    }
    setting = f"{args.algorithm} {ENV[args.algorithm]} {details.get(args.algorithm, 'batch 256')}"
    print(f"\n| {setting} | env steps/s (median of {args.rounds}) | Habilis is |\n|---|---|---|")
    for side, speed in medians.items():
        print(f"| {side} | {speed:,.0f} | {medians['habilis'] / speed:.2f} x |")
    if args.output:
        command = shlex.join(["python", *sys.argv])
        figures = {"setting": setting, "command": command, "speeds": speeds, "medians": medians, "versions": versions}
        args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
