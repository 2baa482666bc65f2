"""A trainer to and from the named components of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from habilis.algorithms.tabular import TabularConfig
from habilis.core.errors import CheckpointError
from habilis.core.types import State
from habilis.training.asynchronous import AsynchronousTrainer
from habilis.training.config import TrainConfig
from habilis.training.off_policy import OffPolicyTrainer
from habilis.training.on_policy import OnPolicyTrainer
from habilis.training.report import Counters
from habilis.training.tabular import TabularTrainer

STARTING_VALUES = {"init_ent_coef", "init_std", "initial_value"}
"""Hyper-parameters of what learning begins with: what has become of it since is in the checkpoint."""

Trainer = OnPolicyTrainer | OffPolicyTrainer | TabularTrainer | AsynchronousTrainer


def inexactness(trainer: Trainer) -> str | None:
    """Say why a resumed run is not exactly the one that was stopped; None where it is."""
    spec = trainer.collector.env.spec
    if isinstance(trainer, AsynchronousTrainer):
        return "asynchronous workers never do the same twice"
    return None if spec.saves_state else f"{spec.id} cannot save its state"


def starting_values(config: TrainConfig) -> frozenset[str]:
    """Return the keys of a configuration that have an effect at the beginning of a run alone."""
    names = STARTING_VALUES
    if isinstance(config.algo, TabularConfig):  # there are as many tables as the checkpoint has
        names = names | {"double_q"}
    elif getattr(config.algo, "std_type", None) in ("fixed", "annealed"):  # nothing learns the deviation
        names = names - {"init_std"}
    return frozenset(f"algo.{name}" for name in names)


def close(trainer: Trainer) -> None:
    """Free the processes, threads and windows that a trainer holds."""
    if isinstance(trainer, AsynchronousTrainer):
        trainer.close()
    trainer.collector.env.close()


def components(trainer: Trainer) -> dict[str, State]:
    """Return everything that decides how the run goes on: the policy apart, so that it can be loaded alone."""
    algorithm = trainer.algorithm.state_dict()
    states = {
        "policy": algorithm.pop("policy"),
        "algorithm": algorithm,
        "collector": trainer.collector.state_dict(),
        "streams": trainer.streams.state_dict(),
        "plugins": {"states": [plugin.state_dict() for plugin in trainer.plugins]},
        "counters": asdict(trainer.counters),
    }
    if isinstance(trainer, OffPolicyTrainer):  # a rollout buffer is empty between iterations
        states["replay"] = trainer.buffer.state_dict()
        if trainer.reward_norm is not None:
            states["reward_norm"] = trainer.reward_norm.state_dict()
    return states


def restore(trainer: Trainer, states: Mapping[str, State]) -> None:
    """Put a trainer where `components` found it; environments that cannot be restored start fresh episodes.

    Raises:
        CheckpointError: the environment has another engine than the one that was saved, there are other plugins, or
            rewards are normalised in one of the two alone.
    """
    spec, saved = trainer.collector.env.spec, states["collector"]["env"] is not None
    if saved != spec.saves_state:
        raise CheckpointError(
            f"the checkpoint holds {'the' if saved else 'no'} state of its environment, and {spec.id} on the backend "
            f"{spec.backend} {'saves its own' if spec.saves_state else 'has none'}: go on with the engine that the run "
            "began with (env_backend)"
        )
    trainer.algorithm.load_state_dict({"policy": states["policy"], **states["algorithm"]})
    trainer.streams.load_state_dict(states["streams"])
    kept = states["plugins"]["states"]
    if len(kept) != len(trainer.plugins):
        raise CheckpointError(
            f"the checkpoint holds the state of {len(kept)} plugins and the run has {len(trainer.plugins)}: go on with "
            "those of its config.json"
        )
    for plugin, state in zip(trainer.plugins, kept, strict=True):
        plugin.load_state_dict(state)
    trainer.counters = Counters(**states["counters"])
    trainer.collector.load_state_dict(states["collector"], seed=trainer.streams.seed + trainer.counters.iteration)
    fresh, reward_norm = not spec.saves_state, getattr(trainer.algorithm.state, "reward_norm", None)
    if isinstance(trainer, OffPolicyTrainer):
        trainer.buffer.load_state_dict(states["replay"])
        if fresh:
            trainer.buffer.start(trainer.collector.obs)
        reward_norm = trainer.reward_norm
        if (reward_norm is None) != ("reward_norm" not in states):
            was = "raw" if reward_norm else "normalised"
            raise CheckpointError(f"the run learnt from {was} rewards: leave normalize_reward as it was")
        if reward_norm is not None:
            reward_norm.load_state_dict(states["reward_norm"])
    elif isinstance(trainer, TabularTrainer) and fresh:
        trainer.algorithm.drop_plans()
    if fresh and reward_norm is not None:
        reward_norm.start()
