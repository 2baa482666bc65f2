"""Policy and value network of the on-policy algorithms, and the advantages that they give a rollout."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.specs import EnvSpec
from habilis.core.tree import tree_index, tree_join, tree_map
from habilis.functional.returns import explained_variance, generalized_advantage
from habilis.nn.encoder import ObsEncoder
from habilis.nn.heads import HeadConfig, make_head
from habilis.nn.mlp import MLP, Activation
from habilis.nn.normalizer import RewardNorm
from habilis.nn.value import ValueNetwork
from habilis.policies.stochastic import StochasticPolicy


class NetworkConfig(HeadConfig, Protocol):
    """What the networks need of a configuration, by the names that every on-policy algorithm gives it."""

    @property
    def normalize_obs(self) -> bool:
        """Normalise vector observations by running mean and variance."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the policy's hidden layers."""

    @property
    def critic_hidden(self) -> tuple[int, ...] | None:
        """Widths of the value network's hidden layers; None: as the policy's."""

    @property
    def activation(self) -> Activation:
        """Activation of the hidden layers."""


def make_policy(spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> StochasticPolicy:
    """Build the policy for an environment: its head by the actions and the distribution that is asked for."""
    encoder = ObsEncoder(spec.obs, spec.policy_groups, config.normalize_obs, generator)
    trunk = MLP(encoder.out_dim, config.hidden, None, config.activation, generator, orthogonal=True)
    return StochasticPolicy(spec, encoder, trunk, make_head(spec.action, trunk.out_dim, config, generator))


def make_critic(
    policy: StochasticPolicy, config: NetworkConfig, generator: torch.Generator, *, share_trunk: bool = False
) -> ValueNetwork:
    """Build the value network, which reads the group "critic" where there is one and no trunk is shared."""
    if share_trunk:
        return ValueNetwork(policy.encoder, policy.trunk, generator)
    encoder = ObsEncoder(policy.spec.obs, policy.spec.critic_groups, config.normalize_obs, generator)
    hidden = config.hidden if config.critic_hidden is None else config.critic_hidden
    trunk = MLP(encoder.out_dim, hidden, None, config.activation, generator, orthogonal=True)
    return ValueNetwork(encoder, trunk, generator)


@torch.no_grad()
def evaluate_rollout(
    batch: RolloutBatch,
    policy: StochasticPolicy,
    critic: ValueNetwork,
    reward_norm: RewardNorm | None,
    gamma: float,
    gae_lambda: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute advantages and returns of a rollout.

    Args:
        batch: what the policy has just made.
        policy: what made it.
        critic: whose values are the baseline; where it shares the policy's trunk, its own columns are left out.
        reward_norm: takes the rewards in, then scales them; None leaves them as they are.
        gamma: discount.
        gae_lambda: weight of longer returns.

    Returns:
        The rollout as rows `{name: [T * N, ...]}` (action, log_prob, advantage, return, value, and normalised
        observations under `policy_obs` and `critic_obs`), and the explained variance of the returns, 0-d.
    """
    done = batch.terminated | batch.truncated
    critic_obs = critic.encoder.normalize(batch.obs)
    values = critic(critic_obs)
    next_values = values[1:].clone()
    next_values[batch.final_index] = critic.evaluate(batch.final_obs)
    rewards = batch.rewards
    if reward_norm is not None:
        reward_norm.update(rewards, done, batch.valid)
        rewards = reward_norm(rewards)
    advantages = generalized_advantage(
        rewards, values[:-1], next_values, batch.terminated, done, batch.valid, gamma, gae_lambda
    )
    returns = advantages + values[:-1]
    columns = tree_join(
        action=batch.actions,
        log_prob=batch.log_probs,
        advantage=advantages,
        value=values[:-1],
        policy_obs=tree_index(policy.encoder.normalize(batch.obs), slice(-1)),
        critic_obs={} if critic.trunk is policy.trunk else tree_index(critic_obs, slice(-1)),
        **{"return": returns},
    )
    explained = explained_variance(values[:-1][batch.valid], returns[batch.valid])
    return tree_map(lambda x: x.flatten(0, 1), columns), explained
