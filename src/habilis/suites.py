"""F6: what is measured: suites of algorithm x environment x seeds, and what others reached. `bench.py` runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from habilis.cases import Case, Goal
from habilis.core.registry import Registry

SUITES: Registry[tuple[Case, ...]] = Registry("suite")

SUITES.add(
    "foundation",
    (
        Case(
            algorithm="ppo",
            env="CartPole-v1",
            total_timesteps=50_000,
            goals=(Goal(490),),
            reference="500, DQN (RL Zoo3)",
        ),
        Case(
            algorithm="ppo",
            env="Pendulum-v1",
            total_timesteps=100_000,
            goals=(Goal(-200),),
            reference="-172 (RL Zoo3)",
        ),
        Case(
            algorithm="ppo",
            env="HalfCheetah-v5",
            total_timesteps=1_000_000,
            goals=(Goal(5000),),
            reference="5784 ± 1244 (Tianshou, best evaluation, 10 seeds)",
        ),
        Case(
            algorithm="ppo",
            env="Hopper-v5",
            total_timesteps=1_000_000,
            goals=(Goal(2500),),
            reference="2609 ± 701 (Tianshou, best evaluation, 10 seeds)",
        ),
        Case(
            algorithm="sac",
            env="Pendulum-v1",
            total_timesteps=20_000,
            goals=(Goal(-160),),
            reference="-157 (RL Zoo3)",
        ),
        Case(
            algorithm="sac",
            env="HalfCheetah-v5",
            total_timesteps=100_000,
            goals=(Goal(6000),),
            reference="6156 ± 700 on v4 (SimbaV2 data, 10 seeds)",
        ),
        Case(
            algorithm="sac",
            env="Hopper-v5",
            total_timesteps=200_000,
            goals=(Goal(2300),),
            reference="2342 on v4 (SimbaV2 data, 10 seeds)",
        ),
    ),
)
SUITES.add(
    "quadruped",
    (
        Case(
            algorithm="ppo",
            env="habilis/QuadrupedWalk-v0",
            episodes=50,
            goals=(Goal(0.1, "termination/fall", at_most=True), Goal(0.25, "tracking_error", at_most=True)),
            overrides={"env_threads": 2},
        ),
    ),
)


def _lunar_lander(algorithm: str, label: str | None = None, goals: tuple[Goal, ...] = (), **rest: Any) -> Case:
    """Return a case of the length at which the value-based algorithms are compared."""
    return Case(algorithm=algorithm, label=label, env="LunarLander-v3", total_timesteps=300_000, goals=goals, **rest)


SUITES.add(
    "precision",
    (
        Case(
            algorithm="sac",
            env="HalfCheetah-v5",
            total_timesteps=100_000,
            overrides={"algo.hidden_precision": "float32"},
            label="sac in float32",
            reference="the preset's hidden layers in bfloat16, in the suite foundation",
        ),
        Case(
            algorithm="td3",
            env="HalfCheetah-v5",
            total_timesteps=150_000,
            overrides={"algo.hidden_precision": "float32", "matmul_precision": "highest"},
            label="td3 in float32",
            reference="the preset's hidden layers in bfloat16, in the suite control",
        ),
    ),
)

SUITES.add(
    "tabular",
    (
        *(
            Case(algorithm=name, env="habilis/GridWorld-v0", goals=(Goal(9.79),), reference="9.8, the best there is")
            for name in ("q_learning", "double_q_learning", "sarsa", "expected_sarsa")
        ),
        *(
            Case(algorithm=name, env="CartPole-v1", total_timesteps=100_000)
            for name in ("q_learning", "double_q_learning", "sarsa", "expected_sarsa")
        ),
    ),
)

SUITES.add(
    "value",
    (
        Case(
            algorithm="dqn",
            env="CartPole-v1",
            total_timesteps=50_000,
            overrides={"algo.gradient_steps": 256},  # as many in all as its preset makes in twice the steps
            goals=(Goal(490),),
            reference="500 (RL Zoo3)",
        ),
        Case(algorithm="dqn", label="dqn longer", env="CartPole-v1", total_timesteps=100_000, goals=(Goal(475),)),
        *(
            Case(algorithm=name, env="CartPole-v1", total_timesteps=100_000, goals=(Goal(475),), reference=reference)
            for name, reference in {
                "double_dqn": "",
                "dueling_dqn": "",
                "per_dqn": "",
                "n_step_dqn": "",
                "noisy_dqn": "",
                "c51": "481 ± 21 at 500k (CleanRL)",
                "qr_dqn": "500 at 50k (RL Zoo3)",
                "iqn": "",
                "rainbow": "",
            }.items()
        ),
        _lunar_lander("dqn", goals=(Goal(200),), reference="195.2 (SLM-Lab, 4 sessions)"),
        _lunar_lander(
            "per_dqn",
            "double_per_dqn",
            goals=(Goal(250),),
            overrides={"algo.double_q": True},
            reference="265.9 (SLM-Lab, 4 sessions)",
        ),
        _lunar_lander("iqn", goals=(Goal(250),)),
        _lunar_lander("rainbow", goals=(Goal(250),)),
        _lunar_lander("qr_dqn", goals=(Goal(230),)),
        _lunar_lander("c51", goals=(Goal(230),)),
        Case(algorithm="dqn", env="habilis/PointReachDiscrete-v0", goals=(Goal(0.95, "success_rate"),)),
        Case(algorithm="dqn", env="habilis/Catch-v0", goals=(Goal(0.95, "success_rate"),)),
        Case(
            algorithm="double_dqn",
            label="dueling double_dqn with 3 steps and 51 atoms",
            env="habilis/ObjectSorting-v0",
            episodes=100,
            goals=(Goal(0.9, "success/sorted"),),
        ),
    ),
)


_RAINBOW_WITHOUT: Mapping[str, Mapping[str, int | float | str]] = {
    "double targets": {"algo.double_q": False},
    "dueling streams": {"algo.dueling": False},
    "priorities": {"algo.prioritized": False},
    "3 steps": {"algo.n_steps": 1},
    "noisy weights": {"algo.exploration": "epsilon"},
    "51 atoms": {"algo.head": "mean"},
}
_AS_OFTEN_AS_DQN: Mapping[str, int | float | str] = {"algo.gradient_steps": 2}
"""The presets of Rainbow and IQN make twice as many updates: here one part is changed and nothing else."""

SUITES.add(
    "lunar_ablation",
    (
        _lunar_lander("dqn"),
        *(
            _lunar_lander(name, f"dqn with {part}")
            for part, name in {
                "double targets": "double_dqn",
                "dueling streams": "dueling_dqn",
                "3 steps": "n_step_dqn",
                "noisy weights": "noisy_dqn",
                "51 atoms": "c51",
                "quantiles": "qr_dqn",
            }.items()
        ),
        _lunar_lander("iqn", "dqn with implicit quantiles", overrides=_AS_OFTEN_AS_DQN),
        # the preset of `per_dqn` has a rate and batches of its own
        _lunar_lander("dqn", "dqn with priorities", overrides={"algo.prioritized": True}),
        _lunar_lander("rainbow", "rainbow with half its updates", overrides=_AS_OFTEN_AS_DQN),
        *(
            _lunar_lander("rainbow", f"rainbow without {part}", overrides={**_AS_OFTEN_AS_DQN, **changes})
            for part, changes in _RAINBOW_WITHOUT.items()
        ),
    ),
)


SUITES.add(
    "control",
    (
        Case(
            algorithm="reinforce",
            env="CartPole-v1",
            total_timesteps=200_000,
            goals=(Goal(480),),
            reference="483 (SLM-Lab)",
        ),
        Case(algorithm="reinforce", env="InvertedPendulum-v5", total_timesteps=300_000),
        *(
            Case(
                algorithm="reinforce",
                label="reinforce without baseline",
                env=env,
                total_timesteps=steps,
                overrides={"algo.baseline": False},
            )
            for env, steps in (("CartPole-v1", 200_000), ("InvertedPendulum-v5", 300_000))
        ),
        Case(
            algorithm="a2c",
            env="CartPole-v1",
            total_timesteps=200_000,
            goals=(Goal(490),),
            reference="496.7 (SLM-Lab)",
        ),
        Case(
            algorithm="a3c",
            env="CartPole-v1",
            total_timesteps=200_000,
            goals=(Goal(450),),
            reference="within a tenth of A2C's, 500 at best",
        ),
        Case(
            algorithm="a2c",
            env="InvertedPendulum-v5",
            total_timesteps=1_000_000,
            goals=(Goal(1000),),
            reference="1000 (Tianshou)",
        ),
        Case(
            algorithm="trpo",
            env="CartPole-v1",
            total_timesteps=100_000,
            goals=(Goal(490),),
            reference="500 (RL Zoo3)",
        ),
        *(
            Case(algorithm=name, env="CartPole-v1", total_timesteps=steps)
            for name, steps in (("npg", 100_000), ("actor_critic", 200_000), ("discrete_sac", 50_000))
        ),
        Case(
            algorithm="trpo",
            env="HalfCheetah-v5",
            total_timesteps=1_000_000,
            goals=(Goal(4400),),
            reference="4471 ± 805 (Tianshou, best evaluation, 10 seeds)",
        ),
        Case(
            algorithm="trpo",
            env="Hopper-v5",
            total_timesteps=1_000_000,
            goals=(Goal(2600),),
            reference="2046 ± 1038 (Tianshou, best evaluation, 10 seeds)",
        ),
        Case(
            algorithm="ppo",
            label="ppo with 64 environments",
            env="HalfCheetah-v5",
            total_timesteps=1_000_000,
            goals=(Goal(4000),),
            overrides={"num_envs": 64, "algo.n_steps": 32, "env_threads": 2},
            reference="in at most 1.5 minutes on two cores",
        ),
        *(
            Case(algorithm=name, env="Pendulum-v1", total_timesteps=20_000, goals=(Goal(-160),), reference=reference)
            for name, reference in {
                "ddpg": "-152 (RL Zoo3)",
                "td3": "-152 (RL Zoo3)",
                "sac": "-157 (RL Zoo3)",
                "tqc": "",
            }.items()
        ),
        *(
            Case(algorithm=name, env=env, total_timesteps=steps, goals=(Goal(goal),), reference=reference)
            for name, env, steps, goal, reference in (
                ("td3", "HalfCheetah-v5", 150_000, 6000, ""),
                ("fast_td3", "HalfCheetah-v5", 300_000, 6000, ""),
                ("tqc", "HalfCheetah-v5", 100_000, 6500, ""),
                ("droq", "HalfCheetah-v5", 17_000, 4200, "4271 ± 542 on v4 (SimbaV2 data)"),
                ("redq", "Hopper-v5", 50_000, 2400, "2485 ± 1035 on v4 (SimbaV2 data)"),
                ("simba_sac", "HalfCheetah-v5", 100_000, 7300, "7328 ± 993 on v4, SimbaV2 (its data)"),
            )
        ),
        Case(
            algorithm="crossq",
            env="HalfCheetah-v5",
            total_timesteps=100_000,
            goals=(Goal(8100), Goal(6300, at=50_000)),
            overrides={"eval_episodes": 20},
            reference="8112 ± 896, at 50k 6345 ± 790, on v4 (SimbaV2 data)",
        ),
        Case(
            algorithm="sac",
            env="FetchReach-v4",
            total_timesteps=20_000,
            goals=(Goal(1.0, "success_rate"),),
            reference="return -1.66, 100% (RL Zoo3)",
        ),
        Case(
            algorithm="sac",
            env="FetchPush-v4",
            total_timesteps=1_000_000,
            goals=(Goal(0.9, "success_rate"),),
        ),
        Case(
            algorithm="td3",
            env="Reacher-v5",
            total_timesteps=80_000,
            reference="-11.8 by doing nothing, -43.0 by acting at random",
        ),
        Case(
            algorithm="td3",
            env="habilis/ReacherPixels-v0",
            total_timesteps=80_000,
            goals=(Goal(-7.8),),
            reference="half way from doing nothing to what TD3 reaches by the state",
        ),
    ),
)


_WITH_VELOCITIES = {
    "CartPole": "CartPole-v1",
    "Pendulum": "Pendulum-v1",
    "InvertedPendulum": "InvertedPendulum-v5",
    "Hopper": "Hopper-v5",
}


def _with_memory_and_without(
    algorithm: str, kind: str, task: str, steps: int, goal: float, reference: str
) -> tuple[Case, ...]:
    """Return cases that do not see velocities, with a kind of memory and with none, and one that sees them.

    The last is left out where another suite has it (`reference` says what it came to): four fifths of it is the goal.
    """
    env = f"habilis/{task}NoVelocity-v0"
    seeing = Case(
        algorithm=algorithm,
        label=f"{algorithm} with velocities",
        env=_WITH_VELOCITIES[task],
        total_timesteps=steps,
        overrides={"algo.memory.kind": "none"},
    )
    return (
        Case(
            algorithm=algorithm,
            label=f"{algorithm} with {kind}",
            env=env,
            total_timesteps=steps,
            goals=(Goal(goal),),
            reference=f"four fifths of {reference or 'what it comes to'} with velocities",
            overrides={"algo.memory.kind": kind},
        ),
        Case(
            algorithm=algorithm,
            label=f"{algorithm} without memory",
            env=env,
            total_timesteps=steps,
            overrides={"algo.memory.kind": "none"},
        ),
        *(() if reference else (seeing,)),
    )


SUITES.add(
    "memory",
    tuple(
        case
        for row in (
            ("dqn", "gru", "CartPole", 100_000, 400, "500"),
            ("sac", "gru", "Pendulum", 20_000, -180, "-144"),
            ("sac", "gru", "InvertedPendulum", 30_000, 800, ""),
            ("td3", "lstm", "Pendulum", 20_000, -184, "-147"),
            ("td3", "gru", "InvertedPendulum", 30_000, 800, ""),
            ("a2c", "lstm", "Pendulum", 1_000_000, -221, ""),
            ("a2c", "lstm", "InvertedPendulum", 1_000_000, 800, "1000"),
            ("ppo", "gru", "Pendulum", 150_000, -197, "-158"),
            ("ppo", "lstm", "InvertedPendulum", 100_000, 800, ""),
            ("ppo", "gru", "Hopper", 1_000_000, 2280, "2848"),
        )
        for case in _with_memory_and_without(*row)
    ),
)
SUITES.add(
    "mujoco",
    tuple(
        Case(algorithm="ppo", env=f"{task}-v5", total_timesteps=steps)
        for task, steps in (
            ("Ant", 1_000_000),
            ("Humanoid", 1_000_000),
            ("InvertedDoublePendulum", 300_000),
            ("InvertedPendulum", 100_000),
            ("Pusher", 1_000_000),
            ("Reacher", 500_000),
            ("Swimmer", 1_000_000),
            ("Walker2d", 1_000_000),
        )
    ),
)
SUITES.add(
    "smoke",
    (
        Case(
            algorithm="ppo",
            env="probe/ObservationReward-v0",
            total_timesteps=512,
            overrides={"num_envs": 4, "algo.n_steps": 32, "algo.batch_size": 32, "eval_episodes": 2},
        ),
    ),
)
