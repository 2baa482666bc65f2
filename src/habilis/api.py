"""What a user calls from Python: `train`, `resume`, `load`, `evaluate`, ...; the command line calls the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from habilis.build import ALGORITHMS, build_trainer
from habilis.build import make_env as make_config_env
from habilis.checkpoint import CheckpointStore, load_checkpoint
from habilis.core.acceleration import tiny_numbers_kept
from habilis.core.config import differences, override, require, to_dict
from habilis.core.errors import CheckpointError, ConfigError
from habilis.core.options import require_used
from habilis.core.protocols import VecEnv
from habilis.core.specs import EnvSpec, spec_from_dict, spec_to_dict
from habilis.deploy.export import TOLERANCE, export_policy
from habilis.envs.frame_stack import stack_frames
from habilis.envs.make import list_env_ids, make_vec_env, newest_version
from habilis.evaluation.evaluator import EvaluationResult
from habilis.evaluation.evaluator import evaluate as run_evaluation
from habilis.evaluation.grid_policy import GridPolicy, policy_on_grid
from habilis.evaluation.video import record_video as film
from habilis.evaluation.watch import watch
from habilis.policies import NeuralPolicy
from habilis.policies.value import ValuePolicy
from habilis.presets import preset
from habilis.saved import Which, load_config, locate, write_config
from habilis.tracking.progress import tell
from habilis.tracking.tracker import open_tracking
from habilis.training.config import TrainConfig
from habilis.training.keeping import Trainer, close, inexactness, starting_values
from habilis.training.run_dir import begin, clear, hold
from habilis.training.session import Session

BELONGS_TO_THE_START = frozenset({"algorithm", "env", "num_envs", "frame_stack", "seed", "run_dir", "name"})
"""Keys of a configuration that decide how a run begins, what it is made of and where it lies."""


@dataclass(frozen=True, repr=False)
class Run:
    """A finished (or interrupted) run, usable without reading files."""

    path: Path
    """The run's directory."""
    config: TrainConfig
    """What it was trained with."""
    policy: NeuralPolicy
    """The last policy."""
    algorithm: Any
    """What learnt it, with critics and optimisers."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last scalars logged."""
    evaluation: EvaluationResult | None = None
    """The last evaluation; None where there was none."""
    interrupted: bool = False
    """Whether it stopped before its end; `resume(path)` goes on."""

    def __fspath__(self) -> str:
        """Return the run's directory: a run may be given wherever that may."""
        return str(self.path)

    def __repr__(self) -> str:
        """Return which run it is and what came of it."""
        came = "not evaluated" if self.evaluation is None else f"return {self.evaluation.mean:.2f}"
        end = ", interrupted" if self.interrupted else ""
        return f"Run({str(self.path)!r}: {self.config.algorithm} on {self.config.env}, {came}{end})"


def default_config(algorithm: str, env: str, **overrides: Any) -> TrainConfig:
    """Return the preset for an algorithm on an environment, with keys replaced as `train` takes them.

    An id without a version is that of the newest version, whose preset and engine it has.
    """
    require(
        isinstance(env, str),
        f"an environment is named by its id, so that the run can make it again, got {env!r}: register what makes it, "
        'gymnasium.register("mine/Robot-v0", entry_point=...), and give "mine/Robot-v0"',
    )
    entry = ALGORITHMS[algorithm]
    backend = "gymnasium" if overrides.get("env_async") else overrides.get("env_backend")
    env = newest_version(env, backend)
    base = TrainConfig(algorithm=algorithm, env=env, algo=entry.config())
    named = {f"algo.{key}": value for key, value in entry.defaults.items()}
    return override(override(override(base, named), preset(algorithm, env)), overrides)


def train(algorithm: str, env: str, **overrides: Any) -> Run:
    """Train a policy and return the run.

    Args:
        algorithm: one of `habilis list algorithms`: `"ppo"`, `"sac"`, `"dqn"`, ...
        env: environment id.
        **overrides: keys of `TrainConfig`; those of the algorithm dotted (`**{"algo.gamma": 0.9}`) or nested
            (`algo={"gamma": 0.9}`).
    """
    config = default_config(algorithm, env, **overrides)
    tell_version(env, config)
    return train_config(config)


def tell_version(asked: str, config: TrainConfig) -> None:
    """Say which environment it will be, where the user named it without a version."""
    if config.env != asked:
        tell(f"{asked} has versions: taking the newest, {config.env}")


def train_config(config: TrainConfig, *, command: str | None = None, progress: bool = True) -> Run:
    """Train with a complete configuration.

    Args:
        config: what to do.
        command: what the user typed, kept in the run; None for a call from Python.
        progress: whether to show progress.
    """
    require_used(config, usual=default_config(config.algorithm, config.env))
    with begin(config) as run_dir, tiny_numbers_kept():
        trainer = build_trainer(config, tell if progress else _say_nothing)
        if progress:
            tell(f"run directory: {run_dir}")
        clear(run_dir)
        write_config(run_dir, config)
        command = command or f"habilis.train({config.algorithm!r}, {config.env!r}, ...)"
        return _run(config, trainer, run_dir, command, progress=progress)


def require_changeable(keys: Iterable[str], fixed: frozenset[str] = BELONGS_TO_THE_START) -> None:
    """Refuse, as `ConfigError`, keys that a run cannot change when it goes on."""
    for key in sorted(fixed.intersection(key.replace("-", "_") for key in keys)):
        raise ConfigError(f"{key} belongs to the beginning of a run and cannot change: train a new one")


def resume(path: Run | str | Path, *, command: str | None = None, progress: bool = True, **overrides: Any) -> Run:
    """Go on with a run from its last whole checkpoint, exactly where it stopped; from the beginning, if it saved none.

    Args:
        path: the run, or its directory.
        command: what the user typed, added to the run's; None for a call from Python.
        progress: whether to show progress.
        **overrides: what shall change from here on, `total_timesteps` say; the run's configuration is changed too.

    Raises:
        CheckpointError: every checkpoint is damaged, or none fits the changed configuration.
        ConfigError: `path` is no run, another process trains it, or a key does not exist or cannot change.
    """
    run_dir = Path(path)
    before = load_config(run_dir)
    config = override(before, overrides)
    changed = differences(to_dict(before), to_dict(config))
    require_changeable(overrides)
    # what critics have learnt is of the size of their rewards
    require_changeable(changed, starting_values(config) | {"algo.normalize_reward"})
    require_used(config, usual=before)
    with hold(run_dir), tiny_numbers_kept():
        checkpoint = CheckpointStore(run_dir / "checkpoints").latest()
        trainer = build_trainer(config, tell if progress else _say_nothing)
        if checkpoint is None:
            clear(run_dir)
            write_config(run_dir, config)
            if progress:
                tell(f"{run_dir} ended before its first checkpoint: starting again from the beginning")
        command = command or f"habilis.resume({str(run_dir)!r}, ...)"
        return _run(config, trainer, run_dir, command, progress=progress, checkpoint=checkpoint, changed=changed)


def load(path: Run | str | Path, *, which: Which = "last", risk_level: float | None = None) -> NeuralPolicy:
    """Load a policy from a run's directory or from a checkpoint.

    Args:
        path: a run, its directory, or a checkpoint inside one.
        which: the last checkpoint of a run, or the one that evaluated best; for a run's directory.
        risk_level: act by the mean of this share of the worst returns, where their distribution was learnt; None: as
            the policy learnt to.
    """
    return _load(Path(path), which, risk_level)[0]


def evaluate(
    policy: NeuralPolicy | Run | str | Path,
    env: str | VecEnv | None = None,
    *,
    which: Which = "last",
    risk_level: float | None = None,
    episodes: int = 20,
    seed: int = 0,
    deterministic: bool = True,
    num_envs: int = 10,
    **env_kwargs: Any,
) -> EvaluationResult:
    """Evaluate a policy, or that of a run.

    Args:
        policy: a policy, or what `load` takes.
        env: an environment or its id; None for the one the policy was trained in: that of a run as it was made for
            training, with its engine and arguments; that of a policy by its id alone, since a policy knows no more.
        which: as for `load`.
        risk_level: as for `load`.
        episodes: whole episodes to run.
        seed: of the environments and of a stochastic policy's draws; apart from the seeds of training.
        deterministic: whether the policy acts by its mode.
        num_envs: copies stepped together, at most one an episode.
        **env_kwargs: arguments of the environment, besides those of the run.
    """
    policy, config = _load_with_config(policy, which, risk_level)
    if env is not None and not isinstance(env, str):
        ours = isinstance(getattr(env, "spec", None), EnvSpec)
        require(ours, f"an environment is given by its id, or as `habilis.make_env` returns it, got {env!r}")
        require(not env_kwargs, f"an environment that is made already takes no arguments, got {', '.join(env_kwargs)}")
        seen = env if env.spec.frame_stack > 1 else stack_frames(env, policy.spec.frame_stack)
        return run_evaluation(policy, seen, episodes=episodes, seed=seed, deterministic=deterministic)
    require(episodes > 0 and num_envs > 0, f"episodes and num_envs must be positive, got {episodes} and {num_envs}")
    with closing(_make_env_of(policy, config, env, min(num_envs, episodes), seed, env_kwargs)) as vec:
        return run_evaluation(policy, vec, episodes=episodes, seed=seed, deterministic=deterministic)


def record_video(
    policy: NeuralPolicy | Run | str | Path,
    output: str | Path,
    env: str | None = None,
    *,
    which: Which = "last",
    risk_level: float | None = None,
    episodes: int = 1,
    seed: int = 0,
    seconds: float | None = 20.0,
    deterministic: bool = True,
    **env_kwargs: Any,
) -> Path:
    """Film a policy, or that of a run, and return the mp4 file.

    It ends after `episodes` or after `seconds`, whichever is first; None sets no limit of time. See `evaluate` for the
    rest.
    """
    policy, config = _load_with_config(policy, which, risk_level)
    with closing(_make_visible_env(policy, config, env, seed, env_kwargs, "rgb_array")) as vec:
        return film(
            policy, vec, Path(output), seed=seed, episodes=episodes, seconds=seconds, deterministic=deterministic
        )


def play(
    policy: NeuralPolicy | Run | str | Path,
    env: str | None = None,
    *,
    which: Which = "last",
    risk_level: float | None = None,
    episodes: int | None = None,
    seed: int = 0,
    deterministic: bool = True,
    **env_kwargs: Any,
) -> None:
    """Show a policy, or that of a run, in a window until it is closed; see `evaluate` for the arguments."""
    policy, config = _load_with_config(policy, which, risk_level)
    with closing(_make_visible_env(policy, config, env, seed, env_kwargs, "human")) as vec:
        watch(policy, vec, seed=seed, episodes=episodes, deterministic=deterministic)


def lay_out(
    policy: NeuralPolicy | Run | str | Path,
    env: str | None = None,
    *,
    which: Which = "last",
    risk_level: float | None = None,
    **env_kwargs: Any,
) -> GridPolicy | None:
    """Return what a policy, or that of a run, does and expects in every cell; None where it acts in no grid world."""
    policy, config = _load_with_config(policy, which, risk_level)
    if not policy.spec.obs["policy"].one_hot:
        return None
    with closing(_make_env_of(policy, config, env, 1, 0, env_kwargs)) as vec:
        return policy_on_grid(policy, vec)


def export(
    policy: NeuralPolicy | Run | str | Path,
    output: str | Path,
    *,
    which: Which = "last",
    risk_level: float | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write a policy as ONNX, checked against the original, and return the directory; see `load` for the rest.

    `tolerance` is the largest difference from it, in units of half an action's range, which the folder records.
    """
    policy, _ = _load_with_config(policy, which, risk_level)
    return export_policy(policy, policy.spec, Path(output), tolerance=tolerance)


def make_env(id: str, num_envs: int = 1, *, backend: str | None = None, seed: int = 0, **kwargs: Any) -> VecEnv:
    """Make environments that step together; see `habilis.envs.make.make_vec_env`."""
    return make_vec_env(id, num_envs, backend=backend, seed=seed, **kwargs)


def _run(
    config: TrainConfig,
    trainer: Any,
    run_dir: Path,
    command: str,
    *,
    progress: bool,
    checkpoint: Path | None = None,
    changed: Sequence[str] = (),
) -> Run:
    """Drive a trainer in a session and gather what came of it."""
    spec = trainer.collector.env.spec
    with open_tracking(
        run_dir,
        total_steps=config.total_timesteps,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        config=to_dict(config),
        progress=progress,
    ) as tracking:
        session = Session(
            config,
            trainer,
            run_dir,
            tracking,
            lambda num_envs: make_config_env(config, num_envs, config.seed),
            {"spec": spec_to_dict(spec), "algorithm": config.algorithm, "algo": to_dict(config.algo)},
        )
        if checkpoint is not None:
            _restore(session, checkpoint, changed)
            if trainer.counters.env_steps < trainer.total_timesteps:
                write_config(run_dir, config)
                if any(key.partition(".")[0] in ("env_kwargs", "env_backend") for key in changed):
                    session.measure_anew()
                    tracking.message("the environment has changed: the best policy is looked for from here on")
            tracking.message(_way_on(checkpoint, trainer))
        with (run_dir / "command.txt").open("a") as file:
            file.write(f"{command}\n")
        try:
            session.run()
        finally:
            close(trainer)
    algorithm = trainer.algorithm
    return Run(run_dir, config, algorithm.policy, algorithm, session.metrics, session.evaluation, session.interrupted)


def _way_on(checkpoint: Path, trainer: Trainer) -> str:
    """Say how a run goes on from a checkpoint."""
    steps = trainer.counters.env_steps
    if steps >= trainer.total_timesteps:
        return f"nothing is left to do: all {steps:,} env steps are made; go on with more by --total-timesteps"
    reason = inexactness(trainer)
    return f"going on from {checkpoint}, {'exactly' if reason is None else f'with fresh episodes: {reason}'}"


def _restore(session: Session, checkpoint: Path, changed: Sequence[str]) -> None:
    """Let a session go on from a checkpoint, of whose configuration these keys were changed.

    Raises:
        CheckpointError: the configuration was changed in what the checkpoint has the shape of.
    """
    try:
        session.resume(checkpoint)
    except (CheckpointError, RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, CheckpointError):
            reason = (
                f"{checkpoint} does not fit the configuration ({type(error).__name__}: {reason}): leave the networks "
                "and the sizes of buffers as they were, or train a new run"
            )
        since = f" (changed now: {', '.join(changed)})" if changed else ""
        raise CheckpointError(f"{reason}{since}") from error


def _load(path: Path, which: Which, risk_level: float | None) -> tuple[NeuralPolicy, TrainConfig]:
    """Return the policy that a path means, and the configuration of its run."""
    run_dir, checkpoint = locate(path, which)
    states, meta = load_checkpoint(checkpoint, ["policy"])
    config = load_config(run_dir)
    entry = ALGORITHMS[config.algorithm]
    # settings may have changed since; checkpoints of earlier versions do not say with which they were made
    algo = override(entry.config(), meta["algo"]) if "algo" in meta else config.algo
    # the weights are about to be replaced, so any seed will do
    policy = entry.make_policy(spec_from_dict(meta["spec"]), algo, torch.Generator())
    policy.load_state_dict(states["policy"])
    return _at_risk(policy.eval(), risk_level), config


def _load_with_config(
    policy: NeuralPolicy | Run | str | Path, which: Which, risk_level: float | None
) -> tuple[NeuralPolicy, TrainConfig | None]:
    """Return a policy, and the configuration of the run that a path means."""
    if isinstance(policy, torch.nn.Module):
        return _at_risk(policy, risk_level), None
    return _load(Path(policy), which, risk_level)


def _at_risk(policy: NeuralPolicy, level: float | None) -> NeuralPolicy:
    """Return a policy that acts by a share of the worst returns; None leaves it as it is."""
    if level is None:
        return policy
    if not isinstance(policy, ValuePolicy):
        kind = type(policy).__name__
        raise ConfigError(f"a risk level is for DQN and its kin: a {kind} knows no distribution of returns")
    return policy.at_risk(level)


def _make_env_of(
    policy: NeuralPolicy,
    config: TrainConfig | None,
    env: str | None,
    num_envs: int,
    seed: int,
    kwargs: dict[str, Any],
) -> VecEnv:
    """Make the environment `env`, or else the one that a policy was trained in, as its run's configuration says.

    Another environment has arguments of its own, and the run's engine where that has it.
    """
    if config is None:
        return stack_frames(make_env(env or policy.spec.id, num_envs, seed=seed, **kwargs), policy.spec.frame_stack)
    chosen = kwargs.get("backend")
    engine = chosen or config.env_backend
    kwargs = {key: value for key, value in kwargs.items() if key != "backend"}
    changes: dict[str, Any] = {"env_kwargs": {**config.env_kwargs, **kwargs}, "env_backend": engine}
    if env is not None and newest_version(env, engine) != newest_version(config.env, engine):
        keeps = chosen is not None or newest_version(env, engine) in list_env_ids(engine)
        changes = {"env": env, "env_kwargs": kwargs, "env_backend": engine if keeps else None}
    return make_config_env(override(config, changes), num_envs, seed)


def _make_visible_env(
    policy: NeuralPolicy,
    config: TrainConfig | None,
    env: str | None,
    seed: int,
    kwargs: dict[str, Any],
    render_mode: str,
) -> VecEnv:
    """Make one environment as `_make_env_of` does, to be looked at."""
    vec = _make_env_of(policy, config, env, 1, seed, kwargs)
    # Gymnasium's draws itself, if it was told how when it was made
    if vec.spec.backend == "gymnasium" or getattr(vec, "takes_render_mode", False):
        vec.close()
        vec = _make_env_of(policy, config, env, 1, seed, {**kwargs, "render_mode": render_mode})
    return vec


def _say_nothing(text: str) -> None:
    """Take the place of `tell` where no progress is to be shown."""
