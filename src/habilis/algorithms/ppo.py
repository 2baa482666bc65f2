"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).

The algorithm alone: losses (from `functional/policy_losses.py`) and one update over a rollout. Networks and advantages
are in `policies/actor_critic.py`; the loop that collects rollouts is `training/on_policy.py`. With memory a minibatch
is made of whole chunks of steps, each with what was remembered before it. Deviations from the
paper, all customary (Engstrom et al. 2020; Andrychowicz et al. 2021): separate networks for policy and value by
default, orthogonal initialisation, gradient clipping, advantages normalised per minibatch, and the options below.
Truncation bootstraps from the true successor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.config import require, require_positive
from habilis.core.errors import HabilisError
from habilis.core.options import only_if
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded
from habilis.core.schedules import scheduled
from habilis.core.specs import EnvSpec
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_index, tree_map, tree_split, tree_stack
from habilis.core.types import Metrics, Obs, State
from habilis.functional.policy_losses import masked_standardize, mean, ppo_clip, standardize, value_loss
from habilis.nn.activations import Activation
from habilis.nn.distributions import deviation
from habilis.nn.encoder import ImageEncoderKind
from habilis.nn.heads import DistributionKind, StdType, anneal
from habilis.nn.memory import MemoryConfig
from habilis.nn.normalizer import RewardNorm
from habilis.nn.optimizer import Optimizer
from habilis.nn.value import ValueNetwork
from habilis.policies.action_filter import ActionConfig
from habilis.policies.actor_critic import (
    evaluate_rollout,
    make_critic,
    make_policy,
    minibatch_features,
    require_actor_critic,
)
from habilis.policies.smoothness import SmoothnessConfig, require_smoothness, rollout_neighbours, with_smoothness
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Hyper-parameters of PPO, named as in Stable-Baselines3 where it has them."""

    n_steps: int = 2048
    """Steps of each environment in one rollout."""
    batch_size: int = 64
    """Transitions in a minibatch."""
    n_epochs: int = 10
    """Passes over each rollout."""
    learning_rate: float = 3e-4
    """Adam's step size (its first value under `linear` and `adaptive`)."""
    learning_rate_schedule: Literal["constant", "linear", "adaptive"] = "constant"
    """`linear` falls to zero over the run; `adaptive` keeps the KL divergence of an iteration near `desired_kl`."""
    desired_kl: float = only_if(0.01, learning_rate_schedule="adaptive")
    """KL divergence from the policy that acted, in the last of the epochs, that the adaptive rate aims at."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantage."""
    clip_range: float = 0.2
    """How far the probability ratio may leave 1 before its gradient is cut."""
    clip_range_schedule: Literal["constant", "linear"] = "constant"
    """`linear` falls to zero over the run."""
    clip_range_vf: float | None = None
    """How far a value may move in one iteration; None for no limit."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of a gradient."""
    target_kl: float | None = None
    """Stop the epochs of an iteration once the KL divergence passes 1.5 times this; None for no limit."""
    normalize_advantage: bool = True
    """Standardise advantages in each minibatch."""
    normalize_obs: bool = True
    """Normalise vector observations by running mean and variance."""
    image_encoder: ImageEncoderKind = "nature"
    """Convolutional network for images."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the policy's hidden layers."""
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the value network's hidden layers; None: as the policy's."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
    share_trunk: bool = False
    """Whether the value is a second head on the policy's trunk (it then sees what the policy sees)."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """What policy and value network remember, each with a memory of its own unless they share the trunk."""
    distribution: DistributionKind = "gaussian"
    """What real-valued actions are drawn from: clipped to the bounds, or within them by a tangent or as a Beta."""
    std_type: StdType = "independent"
    """Where the standard deviation of continuous actions comes from."""
    init_std: float = 1.0
    """First standard deviation, in units of half the action range."""
    final_std: float = only_if(0.1, std_type="annealed")
    """Last standard deviation under `std_type="annealed"`."""
    use_sde: bool = False
    """Explore by noise that depends on the state and is held over steps (gSDE)."""
    sde_sample_freq: int = only_if(4, use_sde=True)
    """Steps over which that noise is held; -1: to the end of the episode. The longer, the more biased the gradient."""
    action: ActionConfig = field(default_factory=ActionConfig)
    """What becomes of an action before the environment takes it."""
    smoothness: SmoothnessConfig = field(default_factory=SmoothnessConfig)
    """Penalties on different actions at neighbouring observations."""

    def __post_init__(self) -> None:
        require_actor_critic(self)
        require_positive(self, "n_epochs", "clip_range", "clip_range_vf", "target_kl", "desired_kl")
        require(self.batch_size > 1, f"batch_size must be at least 2, got {self.batch_size}")
        window = self.memory.window
        fits = not self.memory.used or (self.n_steps % window == 0 and self.batch_size % window == 0)
        require(fits, f"n_steps and batch_size must be multiples of memory.window, which is {window}")


@dataclass
class PPOState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critic: ValueNetwork
    optimizer: Optimizer
    reward_norm: RewardNorm
    clip_range: Tensor
    shuffle: torch.Generator
    gradient_steps: int = 0


class PPO:
    """Learns from rollouts that its own policy has just made."""

    def __init__(
        self, spec: EnvSpec, config: PPOConfig, *, num_envs: int, streams: RandomStreams, device: str = "cpu"
    ) -> None:
        self.config = config
        init = streams.torch("init")
        require_smoothness(config.smoothness, spec, memory=config.memory.used)
        policy = make_policy(spec, config, init).to(device)
        critic = make_critic(policy, config, init, share_trunk=config.share_trunk, num_envs=num_envs).to(device)
        self.state = PPOState(
            policy=policy,
            critic=critic,
            optimizer=Optimizer(
                dict.fromkeys([*policy.parameters(), *critic.parameters()]),  # what they share, once
                config.learning_rate,
                eps=1e-5,
                max_grad_norm=config.max_grad_norm,
            ),
            reward_norm=RewardNorm(num_envs, config.gamma).to(device),
            clip_range=torch.tensor(config.clip_range, device=device),
            shuffle=streams.torch("shuffle", device),
        )
        self._gradient = Recorded(self._compute_gradient)

    @property
    def policy(self) -> StochasticPolicy:
        """The policy being learnt."""
        return self.state.policy

    @property
    def gradient_steps(self) -> int:
        """Gradient steps taken so far."""
        return self.state.gradient_steps

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Gradient steps left out because the gradient was not finite, by what was learnt."""
        return {"policy and value": self.state.optimizer.skipped}

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set what is scheduled, for `progress` in [0, 1] of the run."""
        c, s = self.config, self.state
        if c.learning_rate_schedule != "adaptive":
            s.optimizer.anneal(c.learning_rate_schedule, progress)
        s.clip_range.fill_(scheduled(c.clip_range, c.clip_range_schedule, progress))
        anneal(s.policy.head, progress)

    def value(self, obs: Obs) -> Tensor:
        """Return V `[...]` of raw observations, in units of the scaled reward where rewards are normalised."""
        return self.state.critic.evaluate(obs)

    def update(self, batch: RolloutBatch) -> Metrics:
        """Learn from one rollout, then take its observations into the normalisers.

        Raises:
            HabilisError: fewer than two steps of the rollout are valid.
        """
        c, s = self.config, self.state
        count = int(batch.valid.sum())
        if count < 2:
            raise HabilisError(f"a rollout needs two valid steps to learn from and this has {count}: raise n_steps")
        reward_norm, window = s.reward_norm if c.normalize_reward else None, c.memory.window if c.memory.used else None
        data, explained = evaluate_rollout(batch, s.policy, s.critic, reward_norm, c.gamma, c.gae_lambda, window)
        neighbours = rollout_neighbours(c.smoothness, s.policy.encoder, batch, s.shuffle)
        data |= tree_map(lambda x: x.flatten(0, 1), neighbours)
        # a row is a step, or a chunk of steps
        rows = batch.valid.unflatten(0, (-1, window or 1)).any(1).flatten().nonzero().squeeze(-1)
        size = min(c.batch_size // (window or 1), len(rows))
        history: list[Metrics] = []
        for _ in range(c.n_epochs):
            shuffled = tree_index(data, rows[torch.randperm(len(rows), generator=s.shuffle, device=rows.device)])
            # minibatches are of one size: what remains behind the last is another draw in each epoch
            epoch = [self._minibatch(minibatch) for minibatch in tree_split(shuffled, size)]
            history += epoch
            if c.target_kl is not None and epoch[-1]["approx_kl"] > 1.5 * c.target_kl:
                break
        # the normalisers move last: the first ratio of every update is exactly 1
        for encoder in {s.policy.encoder, s.critic.encoder}:
            encoder.update_normalizers(tree_index(batch.obs, slice(-1)), batch.valid)
        metrics = tree_map(torch.mean, tree_stack(history))
        metrics |= {"explained_variance": explained, "learning_rate": s.optimizer.learning_rate.clone()}
        if c.learning_rate_schedule == "adaptive":
            self._adapt_learning_rate(torch.stack([minibatch["approx_kl"] for minibatch in epoch]).mean())
        return metrics

    def _minibatch(self, data: Tree) -> Metrics:
        """Take one gradient step on rows of `evaluate_rollout`."""
        s = self.state
        metrics = self._gradient(data)
        s.optimizer.step(metrics.pop("gradient"), metrics["grad_norm"])
        s.gradient_steps += 1
        return metrics

    def _compute_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the loss on rows of `evaluate_rollout`, and scalars."""
        c, s, weight = self.config, self.state, None
        features = minibatch_features(s.policy, data, "policy")
        of_critic = features if c.share_trunk else minibatch_features(s.critic, data, "critic")
        distribution, values = s.policy.head(features), s.critic.from_features(of_critic)
        if c.memory.used:  # from here on the steps of chunks are steps like any others, those not valid left out
            columns = ("action", "log_prob", "advantage", "return", "value", "valid")
            data = {name: data[name].flatten(0, 1) for name in columns}
            weight = data["valid"] / data["valid"].sum().clamp_min(1)
        advantages = data["advantage"]
        if c.normalize_advantage:
            advantages = standardize(advantages) if weight is None else masked_standardize(advantages, data["valid"])
        log_prob = distribution.log_prob(data["action"])
        surrogate = ppo_clip(log_prob, data["log_prob"], advantages, s.clip_range, weight)
        critic_loss = value_loss(values, data["return"], data["value"], c.clip_range_vf, weight)
        entropy = mean(distribution.entropy(), weight)
        loss = surrogate.loss + c.vf_coef * critic_loss
        if c.ent_coef != 0:  # its gradient costs a twentieth of a small minibatch
            loss = loss - c.ent_coef * entropy
        loss, penalty = with_smoothness(loss, c.smoothness, s.policy, data)
        results = {
            **s.optimizer.gradient(loss),
            "policy_loss": surrogate.loss.detach(),
            "value_loss": critic_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": surrogate.approx_kl,
            "clip_fraction": surrogate.clip_fraction,
        }
        return results | penalty | deviation(distribution)

    def _adapt_learning_rate(self, kl: Tensor) -> None:
        """Divide the rate by 1.5 where an iteration moved too far, multiply where it moved too little.

        The factors and bounds are those of rsl_rl, which asks each minibatch. The first of an iteration has not moved
        at all: with hundreds of them the rate would climb until one step has done the harm, and fall to its floor.
        """
        rate, target = self.state.optimizer.learning_rate, self.config.desired_kl
        factor = torch.where(kl > 2 * target, 1 / 1.5, torch.where(kl < target / 2, 1.5, 1.0))
        rate.copy_((rate * factor).clamp(1e-5, 1e-2))

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
