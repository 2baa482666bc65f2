"""Advantage actor-critic, synchronous (Mnih et al. 2016, arXiv 1602.01783, without its asynchrony).

The algorithm alone: the loss of a short rollout of many environments and one step of RMSProp along its gradient.
Networks are in `policies/actor_critic.py`; the loop is `training/on_policy.py`. One-step actor-critic (Sutton and Barto
2018, section 13.5) is `n_steps=1`; A3C is this loss in the loop of `training/asynchronous.py`. Deviations from the
paper: generalised advantages (Schulman et al. 2016), of which `gae_lambda=1`, the default, gives the paper's n-step
ones; separate networks for policy and value by default; gradient clipping; running normalisation of observations and
rewards. Truncation bootstraps from the true successor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.config import require, require_positive
from habilis.core.options import only_if
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded
from habilis.core.schedules import Schedule
from habilis.core.specs import EnvSpec
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_index, tree_join, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional.policy_losses import masked_standardize
from habilis.functional.returns import generalized_advantage
from habilis.nn.activations import Activation
from habilis.nn.distributions import deviation
from habilis.nn.encoder import ImageEncoderKind
from habilis.nn.heads import DistributionKind, StdType, anneal
from habilis.nn.memory import MemoryConfig, MemoryEncoder
from habilis.nn.normalizer import RewardNorm
from habilis.nn.optimizer import Optimizer
from habilis.nn.value import ValueNetwork
from habilis.policies.action_filter import ActionConfig
from habilis.policies.actor_critic import make_critic, make_policy, recall, require_actor_critic
from habilis.policies.smoothness import SmoothnessConfig, require_smoothness, rollout_neighbours, with_smoothness
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class A2CConfig:
    """Hyper-parameters of A2C, named as in Stable-Baselines3 where it has them."""

    n_steps: int = 5
    """Steps of each environment in one rollout."""
    learning_rate: float = 7e-4
    """Step size of the optimiser."""
    learning_rate_schedule: Schedule = "constant"
    """Course of the step size over the run."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 1.0
    """Weight of longer returns in the advantage; 0 is the one-step error, 1 the n-step return minus the value."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of a gradient."""
    use_rms_prop: bool = True
    """RMSProp, else Adam."""
    rms_prop_eps: float = 1e-5
    """What is added to the root of the mean of squared gradients, by Adam too."""
    normalize_advantage: bool = False
    """Standardise the advantages of a rollout."""
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
    """What policy and value network remember; gradients go back over as much of a rollout as a window is long."""
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
        require_positive(self, "rms_prop_eps")
        learnt = self.n_steps > 1 or not self.memory.used
        require(learnt, "what to remember is learnt over several steps, and n_steps is 1: take more, as a2c does")


@dataclass
class A2CState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critic: ValueNetwork
    optimizer: Optimizer
    reward_norm: RewardNorm
    noise: torch.Generator
    gradient_steps: int = 0


class A2C:
    """Learns from short rollouts that its own policy has just made, each of them once."""

    def __init__(
        self, spec: EnvSpec, config: A2CConfig, *, num_envs: int, streams: RandomStreams, device: str = "cpu"
    ) -> None:
        self.config = config
        require(
            config.n_steps * num_envs > 1 or not config.normalize_advantage,
            "normalize_advantage needs two steps in a rollout and this has one, whose advantage would be 0: raise "
            "n_steps, or leave it out",
        )
        init = streams.torch("init")
        require_smoothness(config.smoothness, spec, memory=config.memory.used)
        policy = make_policy(spec, config, init).to(device)
        critic = make_critic(policy, config, init, share_trunk=config.share_trunk, num_envs=num_envs).to(device)
        self.state = A2CState(
            policy=policy,
            critic=critic,
            optimizer=Optimizer(
                dict.fromkeys([*policy.parameters(), *critic.parameters()]),  # what they share, once
                config.learning_rate,
                eps=config.rms_prop_eps,
                max_grad_norm=config.max_grad_norm,
                kind="rmsprop" if config.use_rms_prop else "adam",
            ),
            reward_norm=RewardNorm(num_envs, config.gamma).to(device),
            noise=streams.torch("update", device),
        )
        self._gradient = Recorded(self._compute_gradient, inference=True, arrays=True)

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
        s.optimizer.anneal(c.learning_rate_schedule, progress)
        anneal(s.policy.head, progress)

    def value(self, obs: Obs) -> Tensor:
        """Return V `[...]` of raw observations, in units of the scaled reward where rewards are normalised."""
        return self.state.critic.evaluate(obs)

    def update(self, batch: RolloutBatch) -> Metrics:
        """Take one gradient step on a rollout, then take its observations into the normalisers."""
        s = self.state
        metrics = self._gradient(self._prepare(batch))
        s.optimizer.step(metrics.pop("gradient"), metrics["grad_norm"])
        s.gradient_steps += 1
        for encoder in {s.policy.encoder, s.critic.encoder}:
            encoder.update_normalizers(tree_index(batch.obs, slice(-1)), batch.valid)
        return {**metrics, "learning_rate": s.optimizer.learning_rate.clone()}

    def _prepare(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """Return a rollout as tensors of shapes that stay the same from one to the next."""
        s, done = self.state, batch.done
        rewards = s.reward_norm.learn(batch) if self.config.normalize_reward else batch.rewards
        final_values, is_final = torch.zeros_like(rewards), torch.zeros_like(done)
        memories: dict[str, Tensor] = {}
        if self.config.memory.used:
            obs = s.policy.encoder.normalize(batch.obs), s.critic.encoder.normalize(batch.obs)
            _, of_final, memories = recall(batch, s.policy, s.critic, *obs, self.config.memory.window)
            memories = {"start": batch.start, **{name: before[0] for name, before in memories.items()}}
        if len(batch.final_index[0]):
            is_final[batch.final_index] = True
            final_values[batch.final_index] = of_final if memories else self.value(batch.final_obs)
        return tree_join(
            action=batch.actions,
            reward=rewards,
            terminated=batch.terminated,
            done=done,
            valid=batch.valid,
            is_final=is_final,
            final_value=final_values,
            policy_obs={name: batch.obs[name] for name in s.policy.encoder.names},
            critic_obs={} if self.config.share_trunk else {name: batch.obs[name] for name in s.critic.encoder.names},
            **memories,
            **rollout_neighbours(self.config.smoothness, s.policy.encoder, batch, s.noise),
        )

    def _features(self, network: StochasticPolicy | ValueNetwork, data: Tree, part: str) -> Tensor:
        """Return the features `[T + 1, N, F]` of the observations of a rollout."""
        encoder, obs = network.encoder, tree_part(data, f"{part}_obs")
        if not isinstance(encoder, MemoryEncoder):
            return network.trunk(encoder(obs))  # type: ignore[no-any-return]
        memory, start, window = data[f"{part}_memory"], data["start"], self.config.memory.window
        return network.trunk(encoder.unroll(encoder.normalize(obs), memory, start, window)[0])  # type: ignore[no-any-return]

    @torch.enable_grad()
    def _compute_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the loss of a rollout `[T, N]`, observations `[T + 1, N]`, and scalars."""
        c, s = self.config, self.state
        features = self._features(s.policy, data, "policy")
        all_values = s.critic.from_features(features if c.share_trunk else self._features(s.critic, data, "critic"))
        distribution, values, valid = s.policy.head(features[:-1]), all_values[:-1], data["valid"]
        next_values = torch.where(data["is_final"], data["final_value"], all_values[1:].detach())
        ends = data["terminated"], data["done"], valid
        advantages = generalized_advantage(data["reward"], values.detach(), next_values, *ends, c.gamma, c.gae_lambda)
        returns = advantages + values.detach()
        weight = valid / valid.sum().clamp_min(1)  # what is not valid has none in any mean
        critic_loss = 0.5 * (weight * (values - returns).square()).sum()
        if c.normalize_advantage:
            advantages = masked_standardize(advantages, valid)
        policy_loss = -(distribution.log_prob(data["action"]) * (weight * advantages)).sum()
        entropy = (weight * distribution.entropy()).sum()
        loss = policy_loss + c.vf_coef * critic_loss
        if c.ent_coef != 0:  # its gradient is not free
            loss = loss - c.ent_coef * entropy
        loss, penalty = with_smoothness(loss, c.smoothness, s.policy, data, weight)
        results = {
            **s.optimizer.gradient(loss),
            "policy_loss": policy_loss.detach(),
            "value_loss": critic_loss.detach(),
            "entropy": entropy.detach(),
            "value": (weight * values.detach()).sum(),
        }
        return results | penalty | deviation(distribution)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
