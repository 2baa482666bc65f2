"""The only wiring: from a configuration to environment, algorithm, buffer and trainer.

An algorithm is added to the house by a file in `algorithms/` and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import habilis.tasks  # noqa: F401  (registers the ids of our own tasks)
from habilis.algorithms import a2c, discrete_sac, dqn, ppo, reinforce, sac, tabular, td3, trpo
from habilis.core.acceleration import configure, memory_errors, require_room, resolve_device
from habilis.core.config import require
from habilis.core.errors import ConfigError
from habilis.core.options import in_effect
from habilis.core.protocols import Algorithm, Plugin, VecEnv
from habilis.core.random import RandomStreams, derive_seed
from habilis.core.registry import Registry
from habilis.core.specs import ActionKindError, ActionSpec, EnvSpec
from habilis.data.hindsight import Hindsight
from habilis.data.observations import ObservationRing
from habilis.data.priorities import Priorities, SumTree
from habilis.data.replay import ReplayBuffer
from habilis.data.rollout import RolloutBuffer, StepList
from habilis.data.whole_episodes import EpisodeBuffer
from habilis.data.windows import Windows
from habilis.envs.frame_stack import stack_frames
from habilis.envs.make import describe_env, kin_of, make_vec_env
from habilis.plugins import PLUGINS
from habilis.policies import NeuralPolicy
from habilis.policies.actor_critic import make_policy
from habilis.training.asynchronous import AsynchronousTrainer, Work
from habilis.training.collector import Collector
from habilis.training.config import TrainConfig
from habilis.training.keeping import Trainer
from habilis.training.off_policy import OffPolicyTrainer
from habilis.training.on_policy import OnPolicyTrainer
from habilis.training.tabular import TabularTrainer


@dataclass(frozen=True)
class AlgorithmEntry:
    """What the house knows of an algorithm."""

    title: str
    """Full name and source."""
    config: type
    """Its hyper-parameters."""
    make_policy: Callable[[EnvSpec, Any, torch.Generator], NeuralPolicy]
    """Builds the policy alone, to load one without what learnt it."""
    branches: int
    """Parts of an update that can run side by side: each gets its share of the threads."""
    make_trainer: Callable[[TrainConfig, Collector, RandomStreams, str], Trainer]
    """Builds algorithm, buffer and trainer."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What makes a named algorithm of its hyper-parameters; an environment's preset comes after it, the user last."""
    asynchronous: bool = False
    """Whether each environment is stepped in a process of its own; one more then tells what they are."""
    takes_plugins: bool = True
    """Whether its loop has a place for plugins."""


OnPolicyConfig = ppo.PPOConfig | a2c.A2CConfig | trpo.TRPOConfig
"""Hyper-parameters of the algorithms that learn from rollouts of a fixed length."""
OffPolicyConfig = sac.SACConfig | discrete_sac.DiscreteSACConfig | td3.TD3Config | dqn.DQNConfig
"""Hyper-parameters of the algorithms that learn from a replay buffer."""
BYTES_AN_ENV = 2000
"""What an environment takes at the least: its random stream, its row of everything, its episode's statistics."""
BYTES_A_WORKER = 100_000_000
"""What a process takes at the least that has PyTorch in it."""

ReplayLearner = sac.SAC | discrete_sac.DiscreteSAC | td3.TD3 | dqn.DQN
"""Those algorithms."""

ALGORITHMS: Registry[AlgorithmEntry] = Registry("algorithm")


def make_env(config: TrainConfig, num_envs: int, seed: int) -> VecEnv:
    """Make environments as a configuration describes them."""
    env = make_vec_env(
        config.env,
        num_envs,
        backend=config.env_backend,
        seed=seed,
        threads=config.env_threads,
        asynchronous=config.env_async,
        **config.env_kwargs,
    )
    return stack_frames(env, config.frame_stack)


@memory_errors("lower num_envs, algo.hidden, frame_stack, the memory's window or the size of images")
def build_trainer(config: TrainConfig, say: Callable[[str], None] = lambda text: None) -> Trainer:
    """Build everything a run consists of, its environment reset and ready.

    Args:
        config: what to build.
        say: is told which engine runs the environment, how much memory the replay will take, and what is of no use.
    """
    entry = ALGORITHMS[config.algorithm]
    require(
        entry.takes_plugins or not config.plugins,
        f"{config.algorithm} takes no plugins, got {', '.join(config.plugins)}: leave them out",
    )
    threads = max(1, config.threads // entry.branches)
    configure(threads=threads, precision=config.matmul_precision)
    on_processor = entry.asynchronous or isinstance(config.algo, tabular.TabularConfig)
    device = "cpu" if on_processor and config.device == "auto" else resolve_device(config.device)
    streams = RandomStreams(config.seed)
    env_seed = derive_seed(config.seed, "env")
    each, what = (BYTES_A_WORKER, "worker processes") if entry.asynchronous else (BYTES_AN_ENV, "environments")
    require(
        not (entry.asynchronous and config.env_async),
        f"{config.algorithm} has a process for each environment already: leave env_async out",
    )
    require_room(f"{config.num_envs:,} {what} take at least", config.num_envs * each, "--num-envs")
    env = make_env(config, 1 if entry.asynchronous else config.num_envs, env_seed)
    say(describe_env(env))
    if entry.asynchronous:
        say(f"workers: {config.num_envs}, each with such an environment; a resumed run does not repeat exactly")
        if config.threads > 1:
            say("workers learn on one thread each: --threads is for evaluations alone, and --num-envs for learning")
    collector = Collector(env, skip_nonfinite=config.on_nonfinite == "skip", device=device)
    collector.reset(env_seed)
    if isinstance(config.algo, OffPolicyConfig):
        _reserve_replay(config.algo, env.spec, env.num_envs, device, say)
        _tell_atoms(config.algo, say)
        _tell_unread(config.algo, env.spec, say)
        if config.algo.learning_starts >= config.total_timesteps:
            say(f"nothing will be learnt: learning_starts is {config.algo.learning_starts:,}, and the run ends before")
    if isinstance(config.algo, reinforce.ReinforceConfig) and config.algo.n_episodes < config.num_envs:
        idle = f"{config.num_envs - config.algo.n_episodes:,} of {config.num_envs:,} environments"
        say(f"{idle} are stepped for nothing, as an update takes fewer episodes: lower --num-envs to --algo.n-episodes")
    try:
        return entry.make_trainer(config, collector, streams, device)
    except ActionKindError as error:
        fitting = [id for id in kin_of(env.spec.id) if isinstance(_action_of(id), error.kind)]
        if not fitting:
            raise
        raise ConfigError(f"{error}, or take the environment {' or '.join(fitting)}") from error


def _action_of(id: str) -> ActionSpec:
    """Return the actions that a native environment takes."""
    with closing(make_vec_env(id)) as env:
        return env.spec.action


def _reserve_replay(c: OffPolicyConfig, spec: EnvSpec, num_envs: int, device: str, say: Callable[[str], None]) -> None:
    """Say how much memory a replay buffer will take, and refuse one that this machine cannot hold."""
    capacity, windows = c.buffer_size, _make_windows(c)
    # the oldest transitions are shown frames and steps before them
    rows = capacity + num_envs * (spec.frame_stack - 1 + (windows.length - 1 if windows else 0))
    needed = ReplayBuffer.bytes_needed(spec, rows)
    needed += SumTree.bytes_needed(capacity) if isinstance(c, dqn.DQNConfig) and c.prioritized else 0
    needed += Hindsight.bytes_needed(capacity) if c.goal_selection_strategy != "none" else 0
    needed += windows.bytes_needed(rows) if windows else 0
    aside = f"up to {ObservationRing.bytes_needed(spec) * rows / 1e6:,.0f} MB more for last observations of episodes"
    say(f"replay memory: {capacity:,} transitions, {needed / 1e6:,.0f} MB, and {aside}")
    windowed = "" if windows is None else f" with windows of {windows.length:,} steps"
    what = f"a replay buffer of {capacity:,} transitions of {spec.id}{windowed} takes"
    require_room(what, needed, "--algo.buffer-size" + (" or --algo.memory.window" if windowed else ""), device)


def _tell_atoms(c: OffPolicyConfig, say: Callable[[str], None]) -> None:
    """Say which returns the atoms of a categorical distribution span, as no loss shows that there are others."""
    used = in_effect(c)
    if "v_min" in used:
        unit = " standard deviations" if c.normalize_reward else ""
        span = f"from {used['v_min']:g} to {used['v_max']:g}{unit}"
        say(f"atoms {span}: discounted returns beyond them cannot be told apart (--algo.v-min, --algo.v-max)")


def _tell_unread(c: OffPolicyConfig, spec: EnvSpec, say: Callable[[str], None]) -> None:
    """Say what would be of use to the learner and is left aside."""
    if spec.has_goals and c.goal_selection_strategy == "none":
        say("not in hindsight of the goals that episodes reach: --algo.goal-selection-strategy future learns from them")
    if isinstance(c, dqn.DQNConfig):
        if spec.critic_groups != spec.policy_groups:
            say("the group critic is not read: what estimates values acts by them, and sees what acts sees")
    elif c.network != "mlp" and not c.normalize_obs:
        say(f"observations are not normalised, which {c.network} expects: --algo.normalize-obs")


def _make_windows(c: OffPolicyConfig) -> Windows | None:
    """Return what shows a learner with memory the steps before each that it learns from."""
    return Windows(c.memory.window, c.memory.stored_dim) if c.memory.used else None


def _off_policy_trainer(
    config: TrainConfig, collector: Collector, streams: RandomStreams, device: str, algorithm: ReplayLearner
) -> OffPolicyTrainer:
    """Build the trainer of any algorithm that learns from replay, by priorities and in hindsight where asked to."""
    c, env = algorithm.config, collector.env
    replay, hindsight, priorities = streams.numpy("replay"), None, None
    if c.goal_selection_strategy != "none":
        hindsight = Hindsight(
            env, strategy=c.goal_selection_strategy, n_sampled_goal=c.n_sampled_goal, generator=replay
        )
    if isinstance(c, dqn.DQNConfig) and c.prioritized:
        priorities = Priorities(alpha=c.priority_alpha, beta=c.priority_beta)
    buffer = ReplayBuffer(
        env.spec,
        c.buffer_size,
        env.num_envs,
        generator=replay,
        n_steps=c.n_steps,
        gamma=c.gamma,
        device=device,
        priorities=priorities,
        hindsight=hindsight,
        windows=_make_windows(c),
    )
    return OffPolicyTrainer(
        collector,
        algorithm,
        buffer,
        streams=streams,
        total_timesteps=config.total_timesteps,
        plugins=_make_plugins(config, algorithm.policy, streams),
    )


def _make_plugins(config: TrainConfig, policy: NeuralPolicy, streams: RandomStreams) -> list[Plugin]:
    """Build the plugins of a run, in their order."""
    for name in config.plugins:
        require(
            PLUGINS[name].takes_rollouts or isinstance(config.algo, OffPolicyConfig),
            f"{name} changes what was acted on and {config.algorithm} learns from its own actions: leave it out",
        )
    return [PLUGINS[name].make(options, policy, streams) for name, options in config.plugins.items()]


def _on_policy_trainer(
    make_algorithm: Callable[..., Algorithm],
) -> Callable[[TrainConfig, Collector, RandomStreams, str], OnPolicyTrainer]:
    """Return what builds the trainer of an on-policy algorithm."""

    def build(config: TrainConfig, collector: Collector, streams: RandomStreams, device: str) -> OnPolicyTrainer:
        c, spec, num_envs = config.algo, collector.env.spec, collector.env.num_envs
        if isinstance(c, OnPolicyConfig):
            steps = c.n_steps * num_envs
            what = f"a rollout of {c.n_steps:,} steps of {num_envs:,} environments takes"
            require_room(what, ReplayBuffer.bytes_needed(spec, steps), "--algo.n-steps or --num-envs", device)
        algorithm = make_algorithm(spec, c, num_envs=num_envs, streams=streams, device=device)
        buffer: StepList
        if isinstance(c, reinforce.ReinforceConfig):
            buffer = EpisodeBuffer(spec, c.n_episodes, num_envs, device)
        else:
            assert isinstance(c, OnPolicyConfig)
            buffer = RolloutBuffer(c.n_steps, device)
        return OnPolicyTrainer(
            collector,
            algorithm,
            buffer,
            streams=streams,
            total_timesteps=config.total_timesteps,
            plugins=_make_plugins(config, algorithm.policy, streams),
        )

    return build


def _a3c_trainer(config: TrainConfig, collector: Collector, streams: RandomStreams, device: str) -> AsynchronousTrainer:
    c = config.algo
    assert isinstance(c, a2c.A2CConfig)
    require(device == "cpu", f"the workers of a3c share memory of the processor, got device {device!r}: use a2c")
    make_algorithm = partial(_make_a2c, c)
    work = Work(
        make_env=partial(make_env, config, 1),
        make_algorithm=make_algorithm,
        n_steps=c.n_steps,
        total_timesteps=config.total_timesteps,
        skip_nonfinite=collector.skip_nonfinite,
        precision=config.matmul_precision,
    )
    algorithm = make_algorithm(collector.env, streams)
    return AsynchronousTrainer(collector, algorithm, work, workers=config.num_envs, streams=streams)


def _make_a2c(config: a2c.A2CConfig, env: VecEnv, streams: RandomStreams) -> a2c.A2C:
    return a2c.A2C(env.spec, config, num_envs=1, streams=streams)


def _actor_critic_trainer(
    make_algorithm: Callable[..., ReplayLearner],
) -> Callable[[TrainConfig, Collector, RandomStreams, str], OffPolicyTrainer]:
    """Return what builds the trainer of an algorithm with critics of actions."""

    def build(config: TrainConfig, collector: Collector, streams: RandomStreams, device: str) -> OffPolicyTrainer:
        spec = collector.env.spec
        algorithm = make_algorithm(spec, config.algo, streams=streams, device=device, threads=config.threads)
        return _off_policy_trainer(config, collector, streams, device, algorithm)

    return build


def _dqn_trainer(config: TrainConfig, collector: Collector, streams: RandomStreams, device: str) -> OffPolicyTrainer:
    assert isinstance(config.algo, dqn.DQNConfig)
    algorithm = dqn.DQN(collector.env.spec, config.algo, streams=streams, device=device)
    return _off_policy_trainer(config, collector, streams, device, algorithm)


def _tabular_trainer(config: TrainConfig, collector: Collector, streams: RandomStreams, device: str) -> TabularTrainer:
    require(config.device in ("cpu", "auto"), f"a table lies in the processor's memory, got device {config.device!r}")
    assert isinstance(config.algo, tabular.TabularConfig)
    env = collector.env
    algorithm = tabular.Tabular(env.spec, config.algo, num_envs=env.num_envs, streams=streams)
    return TabularTrainer(collector, algorithm, streams=streams, total_timesteps=config.total_timesteps)


ON_POLICY: Mapping[str, tuple[str, type, Callable[..., Algorithm], Mapping[str, Any]]] = {
    "ppo": ("Proximal policy optimisation (Schulman et al. 2017)", ppo.PPOConfig, ppo.PPO, {}),
    "a2c": ("Advantage actor-critic (Mnih et al. 2016)", a2c.A2CConfig, a2c.A2C, {}),
    "actor_critic": (
        "One-step actor-critic (Sutton and Barto 2018, section 13.5)",
        a2c.A2CConfig,
        a2c.A2C,
        {"n_steps": 1, "gae_lambda": 0.0},
    ),
    "reinforce": (
        "REINFORCE, the Monte-Carlo policy gradient (Williams 1992)",
        reinforce.ReinforceConfig,
        reinforce.Reinforce,
        {},
    ),
    "trpo": ("Trust region policy optimisation (Schulman et al. 2015)", trpo.TRPOConfig, trpo.TRPO, {}),
    "npg": (
        "Natural policy gradient (Kakade 2001; Rajeswaran et al. 2017)",
        trpo.TRPOConfig,
        trpo.TRPO,
        {"line_search": False},
    ),
}
"""Algorithms that learn from what their policy has just done: title, hyper-parameters, class and defaults."""

for name, (title, hyper, make_algorithm, changes) in ON_POLICY.items():
    ALGORITHMS.add(
        name,
        AlgorithmEntry(
            title,
            hyper,
            make_policy,
            1,
            _on_policy_trainer(make_algorithm),
            changes,
            # a plugin moves the encoder that the policy stands on, by more than TRPO's bound allows
            takes_plugins=hyper is not trpo.TRPOConfig,
        ),
    )

ALGORITHMS.add(
    "a3c",
    AlgorithmEntry(
        "Asynchronous advantage actor-critic (Mnih et al. 2016)",
        a2c.A2CConfig,
        make_policy,
        1,
        _a3c_trainer,
        asynchronous=True,
        takes_plugins=False,
    ),
)

SAC = (sac.SACConfig, sac.make_policy, sac.SAC)
TD3 = (td3.TD3Config, td3.make_policy, td3.TD3)

ACTOR_CRITICS: Mapping[str, tuple[str, Any, Mapping[str, Any]]] = {
    "sac": ("Soft actor-critic (Haarnoja et al. 2018)", SAC, {}),
    "tqc": (
        "Truncated quantile critics (Kuznetsov et al. 2020)",
        SAC,
        {"n_quantiles": 25, "top_quantiles_to_drop_per_net": 2, "policy_critic": "mean"},
    ),
    "redq": (
        "Randomised ensembled double Q-learning (Chen et al. 2021)",
        SAC,
        {"n_critics": 10, "n_target_critics": 2, "policy_critic": "mean", "gradient_steps": 20, "policy_delay": 20},
    ),
    "droq": (
        "SAC with dropout and layer normalisation in its critics (Hiraoka et al. 2022)",
        SAC,
        {"layer_norm": True, "dropout": 0.01, "policy_critic": "mean", "gradient_steps": 20, "policy_delay": 20},
    ),
    "crossq": (
        "SAC with batch normalisation and without targets (Bhatt et al. 2024)",
        SAC,
        {
            "batch_renorm": True,
            "target_networks": False,
            "critic_hidden": (1024, 1024),
            "learning_rate": 1e-3,
            "adam_beta1": 0.5,
            "policy_delay": 3,
        },
    ),
    "simba_sac": (
        "SAC with SimBaV2's residual networks, quantiles of scaled returns (Lee et al. 2025)",
        SAC,
        {
            "n_quantiles": 25,
            "top_quantiles_to_drop_per_net": 2,
            "network": "simba_v2",
            "hidden": (128,),
            "critic_hidden": (512, 512),
            "normalize_obs": True,
            "normalize_reward": True,
            "learning_rate": 1e-4,
            "gradient_steps": 2,
            "init_ent_coef": 0.01,
        },
    ),
    "discrete_sac": (
        "Soft actor-critic for choices (Christodoulou 2019)",
        (discrete_sac.DiscreteSACConfig, discrete_sac.make_policy, discrete_sac.DiscreteSAC),
        {},
    ),
    "td3": ("Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018)", TD3, {}),
    "ddpg": (
        "Deep deterministic policy gradient (Lillicrap et al. 2016)",
        TD3,
        {"n_critics": 1, "policy_delay": 1, "target_policy_noise": 0.0},
    ),
    "fast_td3": (
        "TD3 with distributions of returns, for many environments and large batches (Seo et al. 2025)",
        TD3,
        {
            "n_atoms": 101,
            "v_min": -250.0,
            "v_max": 250.0,
            "action_noise_std": 0.4,
            "action_noise_std_min": 0.001,
            "target_policy_noise": 0.1,
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "batch_size": 2048,
            "gradient_steps": 2,
            "tau": 0.1,
            "normalize_obs": True,
            "hidden": (256, 128, 64),
            "critic_hidden": (512, 256, 128),
        },
    ),
}
"""Algorithms with critics of actions that learn from replay: title, what they are made of, and hyper-parameters."""

for name, (title, (hyper, make, make_algorithm), changes) in ACTOR_CRITICS.items():
    ALGORITHMS.add(name, AlgorithmEntry(title, hyper, make, 2, _actor_critic_trainer(make_algorithm), changes))

DQN_FAMILY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dqn": ("Deep Q-learning (Mnih et al. 2015)", {}),
    "double_dqn": ("DQN with double targets (van Hasselt et al. 2016)", {"double_q": True}),
    "dueling_dqn": ("DQN with dueling streams (Wang et al. 2016)", {"dueling": True}),
    "per_dqn": ("DQN with prioritised replay (Schaul et al. 2016)", {"prioritized": True}),
    "n_step_dqn": ("DQN with 3-step targets (Sutton 1988; Hessel et al. 2018)", {"n_steps": 3}),
    "noisy_dqn": ("DQN with noisy networks (Fortunato et al. 2018)", {"exploration": "noisy"}),
    "c51": ("Categorical DQN (Bellemare et al. 2017)", {"head": "categorical"}),
    "qr_dqn": ("Quantile-regression DQN (Dabney et al. 2018a)", {"head": "quantile"}),
    "iqn": ("Implicit quantile networks (Dabney et al. 2018b)", {"head": "implicit_quantile"}),
    "rainbow": (
        "Rainbow (Hessel et al. 2018)",
        {
            "double_q": True,
            "dueling": True,
            "prioritized": True,
            "priority_alpha": 0.5,
            "n_steps": 3,
            "exploration": "noisy",
            "head": "categorical",
        },
    ),
}
"""One algorithm by ten names: title and hyper-parameters."""

for name, (title, changes) in DQN_FAMILY.items():
    ALGORITHMS.add(name, AlgorithmEntry(title, dqn.DQNConfig, dqn.make_policy, 1, _dqn_trainer, changes))

TABULAR_FAMILY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "q_learning": ("Q-learning with a table (Watkins 1989)", {}),
    "double_q_learning": ("Double Q-learning with two tables (van Hasselt 2010)", {"double_q": True}),
    "sarsa": ("SARSA with a table (Rummery and Niranjan 1994)", {"target": "sampled"}),
    "expected_sarsa": ("Expected SARSA with a table (van Seijen et al. 2009)", {"target": "expected"}),
}
"""One algorithm by four names: title and hyper-parameters."""

for name, (title, changes) in TABULAR_FAMILY.items():
    entry = AlgorithmEntry(
        title, tabular.TabularConfig, tabular.make_policy, 1, _tabular_trainer, changes, takes_plugins=False
    )
    ALGORITHMS.add(name, entry)
