"""The one evaluator: in training, for the best checkpoint, on the command line and from Python.

Its environments start from seeds that no training uses; its policy acts with a frozen normaliser, in evaluation mode,
without gradients; its rewards are raw. Each environment contributes a fixed share of the episodes, known before the
first of them starts: taking the episodes that happen to finish first would favour short ones.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from habilis.core.errors import ConfigError, EndlessEpisodeError, NonFiniteError
from habilis.core.protocols import Policy, VecEnv
from habilis.core.random import derive_seed
from habilis.core.specs import require_made_for
from habilis.core.tree import tree_to, zero_rows
from habilis.core.types import Step
from habilis.data.episodes import LONGEST_EPISODE, Episode, EpisodeTracker
from habilis.evaluation.statistics import bootstrap_interval, iqm, wilson_interval

CHOOSING_SEED = 1_000_000
"""Added to a run's seed for the evaluations during training, which choose its best policy: it is judged by other
episodes, those of `habilis evaluate` with any small seed."""
JUDGING_SEED = 1000
"""Added to a run's seed for the evaluations of benchmarks."""


def evaluation_seed(seed: int) -> int:
    """Return the seed from which an evaluation's environments start: a stream that training never draws from."""
    return derive_seed(seed, "evaluation/env")


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What a policy does in some episodes; everything else follows from these by itself."""

    returns: np.ndarray
    """`[episodes]` float64: undiscounted sums of the raw reward."""
    lengths: np.ndarray
    """`[episodes]` int64."""
    successes: np.ndarray | None
    """`[episodes]` float64, 1 or 0; None where the environment does not say."""
    terms: Mapping[str, np.ndarray] = field(default_factory=dict)
    """`[episodes]` float64 for each number of `Step.info`, reduced by its name as `habilis.data.episodes` says."""
    seed: int = 0
    deterministic: bool = True

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def iqm(self) -> float:
        """Interquartile mean of the returns."""
        return float(iqm(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over the episodes."""
        return float(self.returns.std())

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95% bootstrap interval of the mean return; None of one episode, of which nothing is known but itself."""
        if self.episodes == 1:
            return None
        return bootstrap_interval(self.returns, np.random.default_rng(derive_seed(self.seed, "evaluation/bootstrap")))

    @property
    def mean_length(self) -> float:
        """Mean number of steps of an episode."""
        return float(self.lengths.mean())

    @property
    def success_rate(self) -> float | None:
        """Fraction of the episodes that succeeded; None where the environment does not say."""
        return None if self.successes is None else float(self.successes.mean())

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """95% Wilson interval of the success rate."""
        return None if self.successes is None else wilson_interval(float(self.successes.sum()), self.episodes)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON tree: the episodes, and for readers what follows from them."""
        return {
            "episodes": self.episodes,
            "deterministic": self.deterministic,
            "seed": self.seed,
            "mean": self.mean,
            "median": self.median,
            "iqm": self.iqm,
            "std": self.std,
            "interval": self.interval and list(self.interval),
            "mean_length": self.mean_length,
            "success_rate": self.success_rate,
            "success_interval": self.success_interval and list(self.success_interval),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "successes": None if self.successes is None else self.successes.tolist(),
            "terms": {
                name: [value if math.isfinite(value) else None for value in values.tolist()]
                for name, values in self.terms.items()
            },
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> EvaluationResult:
        """Read what `to_dict` returned."""
        return cls(
            returns=np.asarray(tree["returns"], dtype=np.float64),
            lengths=np.asarray(tree["lengths"], dtype=np.int64),
            successes=None if tree["successes"] is None else np.asarray(tree["successes"], dtype=np.float64),
            terms={name: np.asarray(values, dtype=np.float64) for name, values in tree["terms"].items()},
            seed=tree["seed"],
            deterministic=tree["deterministic"],
        )

    def __str__(self) -> str:
        how = "deterministic" if self.deterministic else "stochastic"
        spread = "" if self.interval is None else "95% [{:.2f}, {:.2f}]".format(*self.interval)
        rows = [
            ("return", f"{self.mean:.2f}", spread),
            ("  median", f"{self.median:.2f}", ""),
            ("  IQM", f"{self.iqm:.2f}", ""),
            ("  std", f"{self.std:.2f}", f"min {self.returns.min():.2f}, max {self.returns.max():.2f}"),
            ("episode length", f"{self.mean_length:.1f}", ""),
        ]
        if self.success_rate is not None and self.success_interval is not None:
            low, high = self.success_interval
            rows.append(("success", f"{self.success_rate:.1%}", f"95% [{low:.1%}, {high:.1%}]"))
        known = {name: values[~np.isnan(values)] for name, values in self.terms.items()}
        rows += [(name, f"{values.mean():.4g}", "") for name, values in known.items() if values.size]
        left, right = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        lines = [f"{name:<{left}}  {value:>{right}}  {note}".rstrip() for name, value, note in rows]
        count = f"{self.episodes} episode{'' if self.episodes == 1 else 's'}"
        return "\n".join([f"{count}, {how}, seed {self.seed}", *lines])


def evaluate(
    policy: Policy,
    env: VecEnv,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    device: str | torch.device | None = None,
    longest_episode: int = LONGEST_EPISODE,
) -> EvaluationResult:
    """Run `policy` for a number of whole episodes.

    Args:
        policy: what acts. Left as it was found: neither its normaliser nor its training mode changes.
        env: its own environment, reset here; with N environments each runs `episodes / N` episodes, some one more.
        episodes: how many, at least one.
        seed: the same seed gives the same episodes; `evaluation_seed` keeps them apart from any training's.
        deterministic: whether the policy acts by its mode or mean instead of drawing.
        device: where the policy computes; None for where its parameters are.
        longest_episode: steps that an episode may take, on the average over those of one environment.

    Raises:
        ConfigError: if no episodes are asked for.
        EndlessEpisodeError: if episodes take more steps than that.
        NonFiniteError: if an episode's return is not finite.
    """
    if episodes < 1:
        raise ConfigError(f"an evaluation needs at least one episode, got {episodes}: give a larger number")
    with closing(rollout(policy, env, seed=seed, deterministic=deterministic, device=device)) as steps:
        kept = _fair_share(steps, env, episodes, longest_episode)
    for episode in kept:
        if not math.isfinite(episode.total_reward):
            raise NonFiniteError(
                f"an evaluation episode of environment {episode.env} of {env.spec.id} returned {episode.total_reward}, "
                "which must be finite: check the environment's reward with `habilis doctor --env`"
            )
    names = sorted({name for episode in kept for name in episode.terms})
    terms = {name: np.array([episode.terms.get(name, math.nan) for episode in kept]) for name in names}
    successes = terms.pop("success", None)
    return EvaluationResult(
        returns=np.array([episode.total_reward for episode in kept]),
        lengths=np.array([episode.length for episode in kept]),
        successes=None if successes is None else np.nan_to_num(successes),
        terms=terms,
        seed=seed,
        deterministic=deterministic,
    )


def _fair_share(steps: Iterator[Step], env: VecEnv, episodes: int, longest: int) -> list[Episode]:
    """Return `episodes` episodes, the first few of each environment, in rounds over the environments."""
    n = env.num_envs
    shares = [episodes // n + (index < episodes % n) for index in range(n)]
    finished: list[list[Episode]] = [[] for _ in range(n)]
    tracker = EpisodeTracker(n)
    for count, step in enumerate(steps, start=1):
        for episode in tracker.update(step):
            finished[episode.env].append(episode)
        behind = [index for index in range(n) if len(finished[index]) < shares[index]]
        if not behind:
            break
        if count >= longest * max(shares):
            raise EndlessEpisodeError(
                f"environment {behind[0]} of {env.spec.id} ended {len(finished[behind[0]])} episodes in {count} steps "
                f"where {shares[behind[0]]} were asked for: give it a time limit, --env-kwargs max_episode_steps 1000"
            )
    return [finished[i][k] for k in range(max(shares)) for i in range(n) if k < shares[i]]


def rollout(
    policy: Policy,
    env: VecEnv,
    *,
    seed: int,
    deterministic: bool = True,
    device: str | torch.device | None = None,
) -> Generator[Step, None, None]:
    """Let `policy` act in `env` without end and yield every step; what evaluation, videos and viewers share.

    The policy is in evaluation mode until the iterator is closed, its memory starts anew with every episode, and it
    draws from a stream of its own.

    Args:
        policy: what acts.
        env: reset here, from `evaluation_seed(seed)`.
        seed: for the environments and for the policy's draws.
        deterministic: whether the policy acts by its mode or mean instead of drawing.
        device: where the policy computes; None for where its parameters are.
    """
    require_made_for(policy, env.spec)
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    if device is None:
        device = next((p.device for module in modules for p in module.parameters(recurse=False)), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(derive_seed(seed, "evaluation/policy"))
    memory = None
    try:
        if isinstance(policy, nn.Module):
            policy.eval()
        obs = env.reset(evaluation_seed(seed))
        while True:
            env_device = next(iter(obs.values())).device
            with torch.no_grad():
                here = tree_to(obs, device)
                acted = policy.act(here, memory, deterministic=deterministic, generator=generator)
            step = env.step(acted.env_action.to(env_device))
            obs, memory = step.obs, acted.memory
            if memory is not None:
                memory = zero_rows(memory, (step.done | ~step.valid).to(device))
            yield step
    finally:
        for module, mode in modes:
            module.training = mode
