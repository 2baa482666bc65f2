"""The off-policy loop: act, remember, learn from what is remembered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from habilis.core.actions import uniform_actions
from habilis.core.protocols import Algorithm, Plugin
from habilis.core.random import RandomStreams
from habilis.core.specs import ACHIEVED, DESIRED
from habilis.core.types import Metrics, Obs, PolicyStep
from habilis.data.replay import ReplayBuffer
from habilis.nn.normalizer import RewardNorm
from habilis.plugins import learn_with
from habilis.policies.batch import NETWORK, follow
from habilis.training.collector import Collector
from habilis.training.report import Counters, Report

LARGEST_RETURN = 10.0
"""What no discounted return seen so far exceeds once rewards are normalised."""


class ReplayConfig(Protocol):
    """What the loop asks of a configuration, by the names that every off-policy algorithm gives it."""

    batch_size: int
    learning_starts: int
    train_freq: int
    gradient_steps: int
    normalize_obs: bool
    normalize_reward: bool
    gamma: float


class OffPolicyAlgorithm(Algorithm, Protocol):
    """What the loop asks of an algorithm; `td_error` `[B]` among its metrics goes to the buffer as priorities."""

    config: ReplayConfig

    def update_normalizers(self, obs: Obs, valid: Tensor) -> None:
        """Take observations into the running statistics."""
        ...


class OffPolicyTrainer:
    """Yields a `Report` after each round of steps and updates until `total_timesteps` environment steps are made.

    A round is `train_freq` steps of every environment, then `gradient_steps` updates: with N environments the ratio of
    updates to data is `gradient_steps / (train_freq * N)`, and exactly 1 for `gradient_steps=-1`.

    Args:
        collector: the environment.
        algorithm: what learns.
        buffer: what is remembered.
        streams: the run's random streams.
        total_timesteps: environment steps to make, over all environments.
        plugins: modifiers of each batch, in order.
    """

    def __init__(
        self,
        collector: Collector,
        algorithm: OffPolicyAlgorithm,
        buffer: ReplayBuffer,
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
        self._config = c = algorithm.config
        scaled = RewardNorm(collector.env.num_envs, c.gamma, LARGEST_RETURN).to(buffer.device)
        self.reward_norm = scaled if c.normalize_reward else None
        self._explore = streams.torch("explore", buffer.device)

    def __iter__(self) -> Iterator[Report]:
        while self.counters.env_steps < self.total_timesteps:
            yield self.iterate()

    def iterate(self) -> Report:
        """Make one round of steps and, once enough is remembered, of updates."""
        c, counters = self._config, self.counters
        if counters.iteration == 0:
            self.buffer.start(self.collector.obs)
        progress = counters.env_steps / self.total_timesteps
        self.buffer.anneal(progress)
        self.algorithm.set_progress(progress, self.collector.episodes.count)
        for _ in range(c.train_freq):
            remembered = (self.collector.memory or {}).get(NETWORK)
            obs, policy_step = self.collector.obs, self._act()
            step = self.collector.step(policy_step.env_action, policy_step.memory)
            self.buffer.add(policy_step.action, step, remembered)
            if c.normalize_obs:
                self.algorithm.update_normalizers(obs, step.valid)
                if self.buffer.hindsight is not None:  # what is reached is wanted there as well
                    self.algorithm.update_normalizers({DESIRED: obs[ACHIEVED]}, step.valid)
            if self.reward_norm is not None:
                self.reward_norm.update(*(x.unsqueeze(0) for x in (step.reward, step.done, step.valid)))
        counters.iteration += 1
        counters.env_steps += c.train_freq * self.collector.env.num_envs
        metrics = self._learn() if counters.env_steps > c.learning_starts else {}
        return Report(counters.iteration, counters.env_steps, self.algorithm.gradient_steps, metrics)

    def _act(self) -> PolicyStep:
        """Draw actions from the policy, or uniformly before learning starts."""
        policy, collector = self.algorithm.policy, self.collector
        if self.counters.env_steps >= self._config.learning_starts:
            return policy.act(collector.obs, collector.memory, generator=self._explore)
        action = uniform_actions(collector.env.spec.action, collector.env.num_envs, self._explore)
        return follow(policy, action, collector.obs, collector.memory)

    def _learn(self) -> Metrics:
        """Make one round of updates; return the scalars of the last."""
        c = self._config
        updates = c.gradient_steps if c.gradient_steps > 0 else c.train_freq * self.collector.env.num_envs
        metrics: Metrics = {}
        for batch in self.buffer.batches(c.batch_size, updates):
            if self.reward_norm is not None:
                batch = replace(batch, reward=self.reward_norm(batch.reward))
            metrics |= learn_with(self.plugins, self.algorithm, batch)
            if (td_error := metrics.pop("td_error", None)) is not None and batch.index is not None:
                self.buffer.update_priorities(batch.index, td_error)
        return metrics
