"""The on-policy loop: collect a rollout with the current policy, learn from it, forget it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from habilis.core.protocols import Algorithm, Plugin
from habilis.core.random import RandomStreams
from habilis.data.rollout import StepList
from habilis.plugins import learn_with
from habilis.training.collector import Collector
from habilis.training.report import Counters, Report


class OnPolicyTrainer:
    """Yields a `Report` after each rollout and update until `total_timesteps` environment steps are made.

    Args:
        collector: the environment.
        algorithm: what learns.
        buffer: room for one rollout.
        streams: the run's random streams.
        total_timesteps: environment steps to make, over all environments.
        plugins: modifiers of the batch, in order.
    """

    def __init__(
        self,
        collector: Collector,
        algorithm: Algorithm,
        buffer: StepList,
        *,
        streams: RandomStreams,
        total_timesteps: int,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        self.collector = collector
        self.algorithm = algorithm
        self.buffer = buffer
        self.streams = streams
        self.total_timesteps = total_timesteps
        self.plugins = plugins
        self.counters = Counters()
        self._explore = streams.torch("explore", buffer.device)

    def __iter__(self) -> Iterator[Report]:
        while self.counters.env_steps < self.total_timesteps:
            yield self.iterate()

    def iterate(self) -> Report:
        """Collect one rollout and learn from it."""
        self.algorithm.set_progress(self.counters.env_steps / self.total_timesteps, self.collector.episodes.count)
        self._collect()
        batch = self.buffer.batch()
        metrics = learn_with(self.plugins, self.algorithm, batch)
        self.counters.iteration += 1
        self.counters.env_steps += batch.rewards.numel()
        return Report(self.counters.iteration, self.counters.env_steps, self.algorithm.gradient_steps, metrics)

    def _collect(self) -> None:
        """Fill the buffer with steps of the current policy."""
        policy, collector, buffer = self.algorithm.policy, self.collector, self.buffer
        if buffer.starts_anew:
            collector.reset()
        buffer.start(collector.obs, collector.memory)
        while not buffer.full:
            policy_step = policy.act(collector.obs, collector.memory, generator=self._explore)
            step = collector.step(policy_step.env_action, policy_step.memory, buffer.wanted)
            buffer.add(policy_step, step)
