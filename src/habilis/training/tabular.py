"""The tabular loop: every environment takes one step, and the table learns from it at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from habilis.algorithms.tabular import Tabular
from habilis.core.batches import TransitionBatch
from habilis.core.protocols import Plugin
from habilis.core.random import RandomStreams
from habilis.core.tree import tree_index
from habilis.core.types import Metrics
from habilis.training.collector import Collector
from habilis.training.report import Counters, Report


class TabularTrainer:
    """Yields a `Report` after each `train_freq` steps of every environment, until `total_timesteps` are made.

    Args:
        collector: the environment.
        algorithm: what learns.
        streams: the run's random streams.
        total_timesteps: environment steps to make, over all environments.
    """

    def __init__(
        self,
        collector: Collector,
        algorithm: Tabular,
        *,
        streams: RandomStreams,
        total_timesteps: int,
    ) -> None:
        self.collector = collector
        self.algorithm = algorithm
        self.streams = streams
        self.total_timesteps = total_timesteps
        self.plugins: Sequence[Plugin] = ()
        self.counters = Counters()
        self._explore = streams.torch("explore")
        self._discount = torch.full((collector.env.num_envs,), algorithm.config.gamma, dtype=torch.float64)

    def __iter__(self) -> Iterator[Report]:
        while self.counters.env_steps < self.total_timesteps:
            yield self.iterate()

    def iterate(self) -> Report:
        """Make `train_freq` steps of every environment, each followed by its updates."""
        steps = self.algorithm.config.train_freq
        for _ in range(steps):
            metrics = self._step()
        self.counters.iteration += 1
        self.counters.env_steps += steps * self.collector.env.num_envs
        return Report(self.counters.iteration, self.counters.env_steps, self.algorithm.gradient_steps, metrics)

    def _step(self) -> Metrics:
        """Make one step of every environment and learn from it."""
        algorithm, collector, obs = self.algorithm, self.collector, self.collector.obs
        algorithm.set_progress(self.counters.env_steps / self.total_timesteps, collector.episodes.count)
        policy_step = algorithm.act(obs, self._explore)
        step = collector.step(policy_step.env_action)
        batch = TransitionBatch(
            obs,
            policy_step.action,
            step.reward,
            step.terminated,
            step.next_obs,
            self._discount,
            next_action=algorithm.plan(step, self._explore),
        )
        if not step.valid.all():
            batch = _rows_of(batch, step.valid)
        return algorithm.update(batch)


def _rows_of(batch: TransitionBatch, kept: torch.Tensor) -> TransitionBatch:
    """Return the transitions where `kept` `[N]` is true."""
    names = ("action", "reward", "terminated", "discount")
    columns = {name: getattr(batch, name)[kept] for name in names}
    planned = None if batch.next_action is None else batch.next_action[kept]
    obs, next_obs = tree_index(batch.obs, kept), tree_index(batch.next_obs, kept)
    return replace(batch, obs=obs, next_obs=next_obs, next_action=planned, **columns)
