"""REINFORCE, the Monte-Carlo policy gradient, with a learnt baseline or without (Williams 1992).

Also Sutton and Barto 2018, sections 13.3 and 13.4.
The algorithm alone: one gradient step on the policy for a number of whole episodes, and the fit of the baseline to
their returns. Networks and advantages are in `policies/actor_critic.py`; which episodes are collected is decided in
`data/whole_episodes.py`, and the loop is `training/on_policy.py`. With a baseline a truncated episode goes on at its
true successor with what the baseline expects there; without one its returns are not known, and it is left out.
Deviations from the book: the discount does not weigh later states less; the sum over steps is divided by their number
and not by that of the episodes, so that the size of a step does not follow the length of episodes; advantages are
standardised, unless switched off; Adam, gradient clipping, running normalisation of observations and rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.config import coerce_fields, require_positive, require_shares, require_widths
from habilis.core.errors import HabilisError
from habilis.core.options import only_if
from habilis.core.random import RandomStreams
from habilis.core.schedules import Schedule
from habilis.core.specs import EnvSpec
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_index, tree_join, tree_map
from habilis.core.types import Metrics, Obs, State
from habilis.functional.policy_losses import standardize
from habilis.functional.returns import generalized_advantage, terminating_episodes
from habilis.nn.activations import Activation
from habilis.nn.distributions import deviation
from habilis.nn.encoder import ImageEncoderKind
from habilis.nn.heads import DistributionKind, StdType, anneal, require_head
from habilis.nn.normalizer import RewardNorm
from habilis.nn.optimizer import Optimizer
from habilis.nn.value import ValueNetwork, ValueRegression
from habilis.policies.action_filter import ActionConfig
from habilis.policies.actor_critic import evaluate_rollout, make_critic, make_policy, minibatch_features
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """Hyper-parameters of REINFORCE, named as in Stable-Baselines3 where one of its algorithms has them."""

    n_episodes: int = 8
    """Whole episodes, over all environments, in an update."""
    baseline: bool = True
    """Whether a value network is learnt and what it expects subtracted from the returns."""
    learning_rate: float = 1e-2
    """Adam's step size for the policy."""
    critic_learning_rate: float = only_if(1e-2, baseline=True)
    """Adam's step size for the baseline."""
    learning_rate_schedule: Schedule = "constant"
    """Course of both step sizes over the run."""
    gamma: float = 0.99
    """Discount."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Largest norm of a gradient."""
    n_critic_updates: int = only_if(5, baseline=True)
    """Passes of the baseline over the steps of an update."""
    batch_size: int = only_if(64, baseline=True)
    """Steps in a minibatch of the baseline."""
    normalize_advantage: bool = True
    """Standardise the advantages (returns, without a baseline) of an update."""
    normalize_obs: bool = True
    """Normalise vector observations by running mean and variance."""
    image_encoder: ImageEncoderKind = "nature"
    """Convolutional network for images."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the policy's hidden layers."""
    critic_hidden: tuple[int, ...] | None = only_if(None, baseline=True)
    """Widths of the baseline's hidden layers; None: as the policy's."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
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

    def __post_init__(self) -> None:
        coerce_fields(self)
        learning = ("learning_rate", "critic_learning_rate", "n_critic_updates", "max_grad_norm")
        require_positive(self, "n_episodes", "batch_size", *learning)
        require_widths(self, "hidden", "critic_hidden")
        require_shares(self, "gamma")
        require_head(self)


@dataclass
class ReinforceState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critic: ValueNetwork | None
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer | None
    reward_norm: RewardNorm
    shuffle: torch.Generator
    gradient_steps: int = 0


class Reinforce:
    """Learns from whole episodes that its own policy has just made."""

    def __init__(
        self, spec: EnvSpec, config: ReinforceConfig, *, num_envs: int, streams: RandomStreams, device: str = "cpu"
    ) -> None:
        self.config = config
        init = streams.torch("init")
        policy = make_policy(spec, config, init).to(device)
        critic, critic_optimizer = None, None
        if config.baseline:
            critic = make_critic(policy, config, init).to(device)
            critic_optimizer = Optimizer(
                critic.parameters(), config.critic_learning_rate, max_grad_norm=config.max_grad_norm
            )
            self._regression = ValueRegression(
                critic, critic_optimizer, batch_size=config.batch_size, epochs=config.n_critic_updates
            )
        self.state = ReinforceState(
            policy=policy,
            critic=critic,
            policy_optimizer=Optimizer(policy.parameters(), config.learning_rate, max_grad_norm=config.max_grad_norm),
            critic_optimizer=critic_optimizer,
            reward_norm=RewardNorm(num_envs, config.gamma).to(device),
            shuffle=streams.torch("shuffle", device),
        )

    @property
    def policy(self) -> StochasticPolicy:
        """The policy being learnt."""
        return self.state.policy

    @property
    def gradient_steps(self) -> int:
        """Gradient steps taken so far, those of the baseline included."""
        return self.state.gradient_steps

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Gradient steps left out because the gradient was not finite, by what was learnt."""
        s = self.state
        baseline = {} if s.critic_optimizer is None else {"baseline": s.critic_optimizer.skipped}
        return {"policy": s.policy_optimizer.skipped, **baseline}

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set what is scheduled, for `progress` in [0, 1] of the run."""
        c, s = self.config, self.state
        for optimizer in (s.policy_optimizer, s.critic_optimizer):
            if optimizer is not None:
                optimizer.anneal(c.learning_rate_schedule, progress)
        anneal(s.policy.head, progress)

    def value(self, obs: Obs) -> Tensor:
        """Return what the baseline expects `[...]` of raw observations, in units of the scaled reward."""
        assert self.state.critic is not None, "there is no baseline"
        return self.state.critic.evaluate(obs)

    def update(self, batch: RolloutBatch) -> Metrics:
        """Take one step on the policy, fit the baseline, then take the observations into the normalisers.

        Raises:
            HabilisError: nothing was ever learnt from, because every episode is truncated and there is no baseline.
        """
        s = self.state
        ended = batch.done & batch.valid
        metrics: Metrics = {
            "episodes": ended.sum(),
            "truncated_episodes": (ended & batch.truncated).sum(),
            "idle_steps": 1 - batch.valid.float().mean(),
        }
        rows, valid = self._prepare(batch)
        data = tree_index(rows, valid.flatten())
        if len(data["advantage"]) > 1:
            metrics |= self._step(data)
        elif s.gradient_steps == 0 and s.critic is None:
            raise HabilisError(
                "every episode of the first update was truncated (or there was one step), and without a baseline such "
                "episodes are left out: use --algo.baseline, more episodes, or an environment whose episodes terminate"
            )
        elif s.gradient_steps == 0:
            raise HabilisError("the first update had one step, and one has nothing to differ from: raise n_episodes")
        encoders = {s.policy.encoder} | ({s.critic.encoder} if s.critic is not None else set())
        for encoder in encoders:
            encoder.update_normalizers(tree_index(batch.obs, slice(-1)), batch.valid)
        return metrics

    def _prepare(self, batch: RolloutBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the episodes as rows `[T * N, ...]` with advantages, and `[T, N]` which of them count."""
        c, s = self.config, self.state
        norm = s.reward_norm if c.normalize_reward else None
        if s.critic is not None:
            rows, _ = evaluate_rollout(batch, s.policy, s.critic, norm, c.gamma, 1.0)
            return rows, batch.valid
        rewards, done, valid = batch.rewards if norm is None else norm.learn(batch), batch.done, batch.valid
        nothing = torch.zeros_like(rewards)
        returns = generalized_advantage(rewards, nothing, nothing, batch.terminated, done, valid, c.gamma, 1.0)
        policy_obs = tree_index(s.policy.encoder.normalize(batch.obs), slice(-1))
        rows = tree_join(action=batch.actions, advantage=returns, policy_obs=policy_obs)
        complete = terminating_episodes(batch.terminated, done, batch.valid)
        return tree_map(lambda x: x.flatten(0, 1), rows), complete & batch.valid

    def _step(self, data: Tree) -> Metrics:
        """Learn from flat steps."""
        s = self.state
        # no two updates have as many steps, so there is nothing to record
        metrics = self._compute_gradient(data)
        s.policy_optimizer.step(metrics.pop("gradient"), metrics["grad_norm"])
        s.gradient_steps += 1
        if s.critic is not None:
            metrics["value_loss"], steps = self._regression.fit(data, s.shuffle)
            s.gradient_steps += steps
        return {**metrics, "learning_rate": s.policy_optimizer.learning_rate.clone()}

    def _compute_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the policy's loss on flat steps, and scalars."""
        c, s = self.config, self.state
        advantages = standardize(data["advantage"]) if c.normalize_advantage else data["advantage"]
        distribution = s.policy.head(minibatch_features(s.policy, data, "policy"))
        policy_loss = -(distribution.log_prob(data["action"]) * advantages).mean()
        entropy = distribution.entropy().mean()
        results = {
            **s.policy_optimizer.gradient(policy_loss - c.ent_coef * entropy),
            "policy_loss": policy_loss.detach(),
            "entropy": entropy.detach(),
        }
        return results | deviation(distribution)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
