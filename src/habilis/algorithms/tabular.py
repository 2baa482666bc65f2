"""Tabular temporal-difference learning: Q-learning, Double Q-learning, SARSA, Expected SARSA (Sutton and Barto 2018).

One update, `Q(s, a) += alpha (target - Q(s, a))`, with the targets of `functional/tabular.py`; states are numbered by
`nn/states.py`; the loop that acts is `training/tabular.py`. Transitions of several environments are learnt from one
after the other, each from the table as the one before has left it: N environments are N agents that share a table.
Deviations from the papers: Double Q-learning's coin and expectation go with any target, so there is a Double SARSA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from habilis.core.batches import TransitionBatch
from habilis.core.config import (
    coerce_fields,
    require,
    require_fractions,
    require_not_negative,
    require_positive,
    require_shares,
)
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.specs import DiscreteAction, EnvSpec, require_action
from habilis.core.state import bundle_state, load_bundle
from habilis.core.types import Metrics, Obs, PolicyStep, State, Step
from habilis.functional.tabular import BOOTSTRAPS
from habilis.nn.states import ArrayStates, DictionaryStates
from habilis.policies.tabular import TabularPolicy

LARGEST_ARRAY = 10_000_000
"""States that an array is made for."""


@dataclass(frozen=True, kw_only=True)
class TabularConfig:
    """Hyper-parameters of the tabular methods."""

    target: Literal["greedy", "sampled", "expected"] = "greedy"
    """What the next state is worth: its best action (Q-learning), what is done next (SARSA), or the mean over what may
    be done next (Expected SARSA)."""
    double_q: bool = False
    """Learn two tables, each updated half of the time with the value that the other gives to its choice."""
    learning_rate: float = 0.1
    """Step size."""
    learning_rate_power: float = 0.0
    """The step size is divided by this power of the number of updates of an entry: 0 keeps it, 1 averages."""
    gamma: float = 0.99
    """Discount."""
    initial_value: float = 0.0
    """Of every entry; above what can be earned, it makes the greedy policy explore."""
    exploration_initial_eps: float = 1.0
    """First probability of a random action."""
    exploration_final_eps: float = 0.05
    """Last probability of a random action."""
    exploration_decay: float = 0.99
    """Factor of that probability for each episode that ended."""
    bins: tuple[int, ...] = ()
    """Bins of each value of a continuous observation, or one number for all."""
    bins_low: tuple[float, ...] = ()
    """Where the bins of each value begin; what lies below falls into the first."""
    bins_high: tuple[float, ...] = ()
    """Where they end; what lies above falls into the last."""
    rounding: tuple[float, ...] = ()
    """Instead of bins: round each value to multiples of this, or of one number for all."""
    train_freq: int = 16
    """Steps of each environment in an iteration; every one is learnt from at once."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require_fractions(self, "learning_rate", "exploration_decay")
        require_shares(self, "gamma", "exploration_initial_eps", "exploration_final_eps")
        require_not_negative(self, "learning_rate_power")
        require_positive(self, "train_freq")
        require(min(self.bins, default=1) > 0, f"bins must be positive, got {self.bins}")
        require(min(self.rounding, default=1) > 0, f"rounding must be positive, got {self.rounding}")
        cleared = "the bins of a preset are cleared by --algo.bins --algo.bins-low --algo.bins-high without values"
        require(not (self.bins and self.rounding), f"bins and rounding exclude each other: give one; {cleared}")
        bounds = bool(self.bins_low), bool(self.bins_high)
        require(bounds == (bool(self.bins),) * 2, "bins, bins_low and bins_high belong together: give all or none")


def make_policy(spec: EnvSpec, config: TabularConfig, generator: torch.Generator) -> TabularPolicy:
    """Build an empty table for an environment; nothing in it is drawn.

    Raises:
        ConfigError: the action is not one choice among several, or the observations cannot be numbered as asked.
    """
    require_action(spec, DiscreteAction, "a table")
    return TabularPolicy(spec, make_states(spec, config), 2 if config.double_q else 1, config.initial_value)


def make_states(spec: EnvSpec, config: TabularConfig) -> ArrayStates | DictionaryStates:
    """Build what numbers the states of an environment: an array's rows for a discrete state, else a dictionary."""
    group = spec.obs["policy"]
    require(group.dtype == "float32", f"a table cannot hold the images of {spec.id}: use dqn")
    if group.one_hot and not (config.bins or config.rounding):
        states = prod(group.one_hot)
        require(
            states <= LARGEST_ARRAY,
            f"{spec.id} has {states:,} states, too many for an array: keep those that are met by --algo.rounding 1",
        )
        return ArrayStates(group.one_hot)

    def each(name: str) -> Tensor:
        given = getattr(config, name)
        require(
            len(given) in (1, group.size),
            f"{name} has {len(given)} numbers and an observation of {spec.id} {group.size}: give one for each",
        )
        return torch.tensor(given, dtype=torch.float32).expand(group.size).clone()

    if config.rounding:
        width = each("rounding")
        return DictionaryStates(-width / 2, width, None)
    if not config.bins:
        raise ConfigError(
            f"the observations of {spec.id} are {group.size} real values: cut them into bins (--algo.bins, "
            "--algo.bins-low, --algo.bins-high) or round them (--algo.rounding)"
        )
    bins, low, high = each("bins"), each("bins_low"), each("bins_high")
    require(bool((low < high).all()), f"bins_low must lie below bins_high, got {config.bins_low}, {config.bins_high}")
    return DictionaryStates(low, (high - low) / bins, bins)


@dataclass
class TabularState:
    """Everything that learning changes."""

    policy: TabularPolicy
    planned: Tensor
    """`[num_envs]` int64: what SARSA's last target says is done next; -1 where nothing is planned."""
    coin: torch.Generator
    updates: int = 0


class Tabular:
    """Learns from one step of every environment at a time."""

    def __init__(self, spec: EnvSpec, config: TabularConfig, *, num_envs: int, streams: RandomStreams) -> None:
        self.config = config
        self.state = TabularState(
            policy=make_policy(spec, config, streams.torch("init")),
            planned=torch.full((num_envs,), -1),
            coin=streams.torch("update"),
        )

    @property
    def policy(self) -> TabularPolicy:
        """The policy being learnt."""
        return self.state.policy

    @property
    def gradient_steps(self) -> int:
        """Updates of an entry so far."""
        return self.state.updates

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Nothing: there is no gradient that could be left out."""
        return {}

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set the probability of a random action to what it is after a number of episodes."""
        c = self.config
        level = max(c.exploration_final_eps, c.exploration_initial_eps * c.exploration_decay**episodes)
        self.policy.exploration_level.fill_(level)

    def act(self, obs: Obs, generator: torch.Generator) -> PolicyStep:
        """Choose actions, as planned where something is."""
        chosen = self.policy.act(obs, generator=generator)
        if self.config.target != "sampled":
            return chosen
        action = torch.where(self.state.planned >= 0, self.state.planned, chosen.action)
        return PolicyStep(action, self.policy.action_map(action))

    def plan(self, step: Step, generator: torch.Generator) -> Tensor | None:
        """Choose what SARSA does next, `[num_envs]`, before the update that assumes it; None for the other targets."""
        if self.config.target != "sampled":
            return None
        planned = self.policy.act(step.next_obs, generator=generator).action
        self.state.planned = torch.where(step.done, -1, planned)
        return planned

    def drop_plans(self) -> None:
        """Forget what is done next, because episodes were started anew."""
        self.state.planned.fill_(-1)

    def value(self, obs: Obs) -> Tensor:
        """Return V `[N]` of observations: the value of the best action."""
        return self.policy.scores(obs).amax(-1)

    def td_errors(self, batch: TransitionBatch) -> Tensor:
        """Return the TD errors `[copies, B]` of transitions, each table's as it is now; nothing is learnt from them."""
        rows = self.policy.rows(batch.obs)
        copies = range(len(self.policy.values))
        errors = [[error for _, error in self._errors(batch, rows, torch.full_like(rows, k))] for k in copies]
        return torch.tensor(errors, dtype=torch.float64)

    def update(self, batch: TransitionBatch) -> Metrics:
        """Learn from the transitions in their order."""
        c, s, policy = self.config, self.state, self.policy
        rows = policy.rows(batch.obs, add=True)
        copies = len(policy.values)
        coins = torch.randint(copies, (len(rows),), generator=s.coin) if copies > 1 else torch.zeros_like(rows)
        values, visits = _entries(policy.values), _entries(policy.visits)
        rate, power, size = c.learning_rate, c.learning_rate_power, 0.0
        for entry, error in self._errors(batch, rows, coins):
            visits[entry] = count = visits[entry] + 1
            values[entry] += rate / count**power * error
            size += abs(error)
        s.updates += len(rows)
        metrics = {
            "td_error": torch.tensor(size / max(len(rows), 1)),
            "exploration_rate": policy.exploration_level.clone(),
        }
        if isinstance(policy.encoder, DictionaryStates):
            metrics["states"] = torch.tensor(float(policy.encoder.count))
        return metrics

    def _errors(self, batch: TransitionBatch, rows: Tensor, coins: Tensor) -> Iterator[tuple[int, float]]:
        """Yield each transition's entry and TD error, found when it is asked for: from what the ones before have left.

        Args:
            batch: the transitions.
            rows: numbers `[B]` of their states.
            coins: which table `[B]` is in question.
        """
        policy = self.policy
        copies, states, actions = policy.values.shape
        table, size, values = states * actions, copies * states * actions, _entries(policy.values)
        entries = coins * table + rows * actions + batch.action
        followers = coins * table + policy.rows(batch.next_obs) * actions
        next_action = torch.zeros_like(rows) if batch.next_action is None else batch.next_action
        columns = (entries, batch.reward, batch.terminated, followers, batch.discount, next_action)
        epsilon, value = float(policy.exploration_level), BOOTSTRAPS[self.config.target]
        for entry, target, ended, at, discount, next_a in zip(*(column.tolist() for column in columns), strict=True):
            if not ended:
                choosing = judging = values[at : at + actions].tolist()
                if copies > 1:
                    at = (at + table) % size
                    judging = values[at : at + actions].tolist()
                    if self.config.target == "expected":  # over what is done, which both tables choose
                        choosing = [one + other for one, other in zip(choosing, judging, strict=True)]
                target += discount * value(choosing, judging, next_a, epsilon)
            yield entry, target - values[entry]

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)


def _entries(table: Tensor) -> memoryview:
    """Return the entries of a table in one row, to read and write without making a tensor of each."""
    return table.view(-1).numpy().data
