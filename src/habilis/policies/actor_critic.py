"""Policy and value network of the on-policy algorithms, and the advantages that they give a rollout."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.config import (
    coerce_fields,
    require,
    require_not_negative,
    require_positive,
    require_shares,
    require_widths,
)
from habilis.core.specs import EnvSpec
from habilis.core.tree import Tree, tree_index, tree_join, tree_map, tree_part
from habilis.functional.returns import explained_variance, generalized_advantage
from habilis.nn.activations import Activation
from habilis.nn.encoder import ImageEncoderKind, require_images
from habilis.nn.heads import HeadConfig, make_head, require_head
from habilis.nn.memory import Encoder, MemoryConfig, MemoryEncoder, make_encoder
from habilis.nn.mlp import MLP
from habilis.nn.normalizer import RewardNorm
from habilis.nn.value import ValueNetwork
from habilis.policies.action_filter import ActionConfig
from habilis.policies.batch import NETWORK
from habilis.policies.stochastic import StochasticPolicy


class ActorCriticConfig(HeadConfig, Protocol):
    """What the networks need of a configuration, by the names that every on-policy algorithm gives it."""

    @property
    def normalize_obs(self) -> bool:
        """Normalise vector observations by running mean and variance."""

    @property
    def image_encoder(self) -> ImageEncoderKind:
        """Convolutional network for images."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the policy's hidden layers."""

    @property
    def critic_hidden(self) -> tuple[int, ...] | None:
        """Widths of the value network's hidden layers; None: as the policy's."""

    @property
    def activation(self) -> Activation:
        """Activation of the hidden layers."""

    @property
    def action(self) -> ActionConfig:
        """What becomes of an action before the environment takes it."""


def require_actor_critic(config: Any) -> None:
    """Raise `ConfigError` unless fields are of their types, and those of PPO and A2C possible and go together."""
    coerce_fields(config)
    require_positive(config, "n_steps", "learning_rate", "max_grad_norm")
    require_shares(config, "gamma", "gae_lambda")
    require_widths(config, "hidden", "critic_hidden")
    require_not_negative(config, "vf_coef")
    require_head(config)
    require(config.memory.burn_in == 0, "memory.burn_in is for windows out of a replay buffer: leave it out")
    owns_trunk = not config.share_trunk or config.critic_hidden is None
    require(owns_trunk, "critic_hidden has no meaning with share_trunk, where the value is a head on the policy's")


def make_policy(spec: EnvSpec, config: ActorCriticConfig, generator: torch.Generator) -> StochasticPolicy:
    """Build the policy for an environment: its head by the actions and the distribution that is asked for."""
    require_images(config.image_encoder, spec.obs)
    encoder = _make_encoder(spec, spec.policy_groups, config, generator)
    trunk = MLP(encoder.out_dim, config.hidden, None, config.activation, generator, orthogonal=True)
    head = make_head(spec.action, trunk.out_dim, config, generator)
    return StochasticPolicy(spec, encoder, trunk, head, config.action)


def make_critic(
    policy: StochasticPolicy,
    config: ActorCriticConfig,
    generator: torch.Generator,
    *,
    share_trunk: bool = False,
    num_envs: int = 0,
) -> ValueNetwork:
    """Build the value network, which reads the group "critic" where there is one.

    Raises:
        ConfigError: the trunk is shared with the policy, which may not read what the critic alone is shown.
    """
    if share_trunk:
        alone = ", ".join(sorted(set(policy.spec.critic_groups) - set(policy.spec.policy_groups)))
        require(not alone, f"share_trunk lets the critic read what the policy reads, and not {alone}: leave it out")
        return ValueNetwork(policy.encoder, policy.trunk, generator)
    encoder = _make_encoder(policy.spec, policy.spec.critic_groups, config, generator)
    hidden = config.hidden if config.critic_hidden is None else config.critic_hidden
    trunk = MLP(encoder.out_dim, hidden, None, config.activation, generator, orthogonal=True)
    return ValueNetwork(encoder, trunk, generator, num_envs)


def _make_encoder(
    spec: EnvSpec, names: tuple[str, ...], config: ActorCriticConfig, generator: torch.Generator
) -> Encoder:
    memory = getattr(config, "memory", MemoryConfig())
    return make_encoder(spec.obs, names, config.normalize_obs, memory, generator, config.image_encoder)


@torch.no_grad()
def evaluate_rollout(
    batch: RolloutBatch,
    policy: StochasticPolicy,
    critic: ValueNetwork,
    reward_norm: RewardNorm | None,
    gamma: float,
    gae_lambda: float,
    window: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute advantages and returns of a rollout.

    Args:
        batch: what the policy has just made.
        policy: what made it.
        critic: whose values are the baseline; where it shares the policy's trunk, its own columns are left out.
        reward_norm: takes the rewards in, then scales them; None leaves them as they are.
        gamma: discount.
        gae_lambda: weight of longer returns.
        window: steps of a chunk, where the networks have memory.

    Returns:
        The rollout as rows `{name: [T * N, ...]}` (action, log_prob, advantage, return, value, and normalised
        observations under `policy_obs` and `critic_obs`), and the explained variance of the returns, 0-d. With memory
        a row is a chunk, `[T / window * N, window, ...]`, with the columns of `recall`, and `valid`, besides.
    """
    policy_obs, critic_obs = policy.encoder.normalize(batch.obs), critic.encoder.normalize(batch.obs)
    memories: dict[str, Tensor] = {}
    if window is None:
        values, final_values = critic(critic_obs), critic.evaluate(batch.final_obs)
    else:
        values, final_values, memories = recall(batch, policy, critic, policy_obs, critic_obs, window)
    next_values = values[1:].clone()
    next_values[batch.final_index] = final_values
    rewards = batch.rewards if reward_norm is None else reward_norm.learn(batch)
    advantages = generalized_advantage(
        rewards, values[:-1], next_values, batch.terminated, batch.done, batch.valid, gamma, gae_lambda
    )
    returns = advantages + values[:-1]
    columns = tree_join(
        action=batch.actions,
        log_prob=batch.log_probs,
        advantage=advantages,
        value=values[:-1],
        policy_obs=tree_index(policy_obs, slice(-1)),
        critic_obs={} if critic.trunk is policy.trunk else tree_index(critic_obs, slice(-1)),
        **{"return": returns},
    )
    explained = explained_variance(values[:-1][batch.valid], returns[batch.valid])
    if window is None:
        return tree_map(lambda x: x.flatten(0, 1), columns), explained
    columns |= {"valid": batch.valid, "start": batch.start[:-1]}
    chunks = tree_map(lambda x: x.unflatten(0, (-1, window)).transpose(1, 2).flatten(0, 1), columns)
    whole = len(values) // window  # the observation that comes last begins another, from which nothing is learnt
    return chunks | tree_map(lambda x: x[:whole].flatten(0, 1), memories), explained


@torch.no_grad()
def recall(
    batch: RolloutBatch, policy: StochasticPolicy, critic: ValueNetwork, policy_obs: Tree, critic_obs: Tree, window: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Follow a rollout with the memory of policy and critic, who then remembers what the next one begins with.

    Args:
        batch: what the policy has just made.
        policy: what made it.
        critic: who evaluates it.
        policy_obs: the observations `[T + 1, N, *shape]` as the policy's encoder normalises them.
        critic_obs: the same for the critic's.
        window: steps of a chunk.

    Returns:
        The values `[T + 1, N]` of the observations; those `[K]` of the last ones of episodes, with what was remembered
        of them; and `[chunks, N, memory_dim]` under `policy_memory` and `critic_memory`, the latter where no trunk is
        shared: what was remembered before each chunk.
    """
    start, shared = batch.start, critic.trunk is policy.trunk
    assert isinstance(policy.encoder, MemoryEncoder)
    assert isinstance(critic.encoder, MemoryEncoder)
    if batch.memory is None:
        critic.memory.zero_()
        acted_on = policy.encoder.fresh(start.shape[1])
    else:
        acted_on = batch.memory[NETWORK]
    features, before, after = policy.encoder.unroll(policy_obs, acted_on, start, window)
    memories = {"policy_memory": before}
    if not shared:
        features, memories["critic_memory"], after = critic.encoder.unroll(critic_obs, critic.memory, start, window)
        critic.memory.copy_(after[-2].masked_fill(start[-1].unsqueeze(-1), 0.0))
    final, _ = critic.encoder.step(batch.final_obs, after[batch.final_index])
    values, final_values = (critic.from_features(critic.trunk(x)) for x in (features, final))
    return values, final_values, memories


def minibatch_features(network: StochasticPolicy | ValueNetwork, data: Tree, part: str) -> Tensor:
    """Return the features `[B, F]` of rows of `evaluate_rollout`, or `[C * window, F]` of the steps of its chunks.

    Args:
        network: whose.
        data: rows.
        part: "policy" or "critic".
    """
    obs, encoder = tree_part(data, f"{part}_obs"), network.encoder
    if not isinstance(encoder, MemoryEncoder):
        return network.trunk(encoder.features(obs))  # type: ignore[no-any-return]
    in_turn = tree_map(lambda x: x.transpose(0, 1), obs)
    features, _ = encoder.sequence(in_turn, data[f"{part}_memory"], data["start"].T)
    return network.trunk(features.transpose(0, 1).flatten(0, 1))  # type: ignore[no-any-return]
