"""Trust region policy optimisation (Schulman et al. 2015, arXiv 1502.05477), and the natural gradient by its side.

The algorithm alone: one step on the policy for a rollout, along the natural gradient (`functional/linear_algebra.py`)
and within a KL divergence, then the fit of the value network. Without the line search it is the natural policy gradient
with a normalised step (Kakade 2001; Rajeswaran et al. 2017). Networks and advantages are in `policies/actor_critic.py`;
the loop is `training/on_policy.py`. Deviations from the paper: generalised advantages (Schulman et al. 2016), a value
network fitted by Adam, advantages standardised, damping, running normalisation of observations and rewards. Truncation
bootstraps from the true successor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
from habilis.core.errors import HabilisError
from habilis.core.options import only_if
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded
from habilis.core.schedules import Schedule
from habilis.core.specs import EnvSpec
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_index, tree_join, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional.linear_algebra import conjugate_gradient, flatten, gauss_newton_product
from habilis.functional.policy_losses import standardize
from habilis.nn.activations import Activation
from habilis.nn.distributions import deviation
from habilis.nn.encoder import ImageEncoderKind
from habilis.nn.heads import DistributionKind, StdType, anneal, require_head
from habilis.nn.normalizer import RewardNorm
from habilis.nn.optimizer import Optimizer, flatten_parameters
from habilis.nn.value import ValueNetwork, ValueRegression
from habilis.policies.action_filter import ActionConfig
from habilis.policies.actor_critic import evaluate_rollout, make_critic, make_policy, minibatch_features
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class TRPOConfig:
    """Hyper-parameters of TRPO, named as in Stable-Baselines3 Contrib where it has them."""

    n_steps: int = 2048
    """Steps of each environment in one rollout."""
    target_kl: float = 0.01
    """Largest KL divergence, averaged over the rollout's states, from the policy before a step to the one after it."""
    line_search: bool = True
    """Whether a step is shortened until the divergence is small enough and the objective better; else it is taken as it
    is, as long as the divergence's second-order approximation allows: the natural policy gradient."""
    line_search_shrinking_factor: float = only_if(0.8, line_search=True)
    """Factor of the step from one try to the next."""
    line_search_max_iter: int = only_if(10, line_search=True)
    """Tries, after which no step is taken."""
    cg_max_steps: int = 15
    """Products in the conjugate gradient."""
    cg_damping: float = 0.1
    """Multiple of the identity that is added to the Fisher information."""
    sub_sampling_factor: int = 1
    """The Fisher information is estimated from every k-th transition; the line search looks at all of them."""
    n_critic_updates: int = 10
    """Passes of the value network over each rollout."""
    batch_size: int = 128
    """Transitions in a minibatch of the value network."""
    learning_rate: float = 1e-3
    """Adam's step size for the value network."""
    learning_rate_schedule: Schedule = "constant"
    """Course of that step size over the run."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantage."""
    normalize_advantage: bool = True
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
        positive = ("n_steps", "target_kl", "line_search_max_iter", "cg_max_steps", "sub_sampling_factor")
        require_positive(self, *positive, "n_critic_updates", "batch_size", "learning_rate")
        require_widths(self, "hidden", "critic_hidden")
        require_not_negative(self, "cg_damping")
        factor = self.line_search_shrinking_factor
        require(0 < factor < 1, f"line_search_shrinking_factor must be in (0, 1), got {factor}")
        require_shares(self, "gamma", "gae_lambda")
        require_head(self)


@dataclass
class TRPOState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critic: ValueNetwork
    critic_optimizer: Optimizer
    reward_norm: RewardNorm
    skipped: Tensor
    shuffle: torch.Generator
    gradient_steps: int = 0


class TRPO:
    """Learns from rollouts that its own policy has just made."""

    def __init__(
        self, spec: EnvSpec, config: TRPOConfig, *, num_envs: int, streams: RandomStreams, device: str = "cpu"
    ) -> None:
        self.config = config
        init = streams.torch("init")
        policy = make_policy(spec, config, init).to(device)
        critic = make_critic(policy, config, init).to(device)
        optimizer = Optimizer(critic.parameters(), config.learning_rate, eps=1e-5)
        self.state = TRPOState(
            policy=policy,
            critic=critic,
            critic_optimizer=optimizer,
            reward_norm=RewardNorm(num_envs, config.gamma).to(device),
            skipped=torch.zeros((), device=device),
            shuffle=streams.torch("shuffle", device),
        )
        self._parameters = list(policy.parameters())
        self._flat = flatten_parameters(self._parameters)
        self._regression = ValueRegression(
            critic, optimizer, batch_size=config.batch_size, epochs=config.n_critic_updates
        )
        self._step = Recorded(self._compute_step, inference=True)
        self._outcome = Recorded(self._compute_outcome, inference=True)

    @property
    def policy(self) -> StochasticPolicy:
        """The policy being learnt."""
        return self.state.policy

    @property
    def gradient_steps(self) -> int:
        """Gradient steps taken so far, those of the value network included."""
        return self.state.gradient_steps

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Steps left out because they were not finite, by what was learnt."""
        return {"policy": self.state.skipped, "value": self.state.critic_optimizer.skipped}

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set what is scheduled, for `progress` in [0, 1] of the run."""
        c, s = self.config, self.state
        s.critic_optimizer.anneal(c.learning_rate_schedule, progress)
        anneal(s.policy.head, progress)

    def value(self, obs: Obs) -> Tensor:
        """Return V `[...]` of raw observations, in units of the scaled reward where rewards are normalised."""
        return self.state.critic.evaluate(obs)

    def update(self, batch: RolloutBatch) -> Metrics:
        """Take one step on the policy, fit the value network, then take the observations into the normalisers.

        Raises:
            HabilisError: fewer than two steps of the rollout are valid.
        """
        c, s = self.config, self.state
        valid = batch.valid.flatten().nonzero().squeeze(-1)
        if len(valid) < 2:
            raise HabilisError(
                f"a rollout needs two valid steps to learn from and this has {len(valid)}: raise n_steps"
            )
        if c.sub_sampling_factor > 1:  # in an order in which every k-th is not of the same few environments
            valid = valid[torch.randperm(len(valid), generator=s.shuffle, device=valid.device)]
        reward_norm = s.reward_norm if c.normalize_reward else None
        rows, explained = evaluate_rollout(batch, s.policy, s.critic, reward_norm, c.gamma, c.gae_lambda)
        data = tree_index(rows, valid)
        metrics = self._improve(data)
        metrics["value_loss"], steps = self._regression.fit(data, s.shuffle)
        s.gradient_steps += 1 + steps
        # the normalisers move last: the divergence of a step not taken is exactly 0
        for encoder in (s.policy.encoder, s.critic.encoder):
            encoder.update_normalizers(tree_index(batch.obs, slice(-1)), batch.valid)
        rate = s.critic_optimizer.learning_rate.clone()
        return {**metrics, "explained_variance": explained, "learning_rate": rate}

    def _improve(self, data: Tree) -> Metrics:
        """Take one step on the policy for flat transitions, or none."""
        c = self.config
        advantages = standardize(data["advantage"]) if c.normalize_advantage else data["advantage"]
        policy_obs = tree_part(data, "policy_obs")
        columns = tree_join(
            action=data["action"], log_prob=data["log_prob"], advantage=advantages, policy_obs=policy_obs
        )
        metrics = self._step(columns)
        columns |= {name: metrics.pop(name) for name in list(metrics) if name.startswith("old/")}
        step, objective = metrics.pop("step"), metrics.pop("objective")
        share, outcome = self._move(step, objective, columns)
        moved = {"kl": outcome["kl"], "objective_gain": outcome["objective"] - objective}
        return {**metrics, **moved, "step_share": torch.tensor(share)}

    def _move(self, step: Tensor, objective: Tensor, columns: Tree) -> tuple[float, dict[str, Tensor]]:
        """Move the policy by as much of a step as is allowed; return the share, 0 to 1, and what came of it."""
        c, before, finite = self.config, self._flat.clone(), False
        if step.isfinite().all():
            for k in range(c.line_search_max_iter if c.line_search else 1):
                share = c.line_search_shrinking_factor**k
                torch.add(before, step, alpha=share, out=self._flat)
                outcome = self._outcome(columns)
                if not (outcome["kl"] + outcome["objective"]).isfinite():
                    continue
                finite = True
                if not c.line_search or (outcome["kl"] <= c.target_kl and outcome["objective"] > objective):
                    return share, outcome
            self._flat.copy_(before)
        self.state.skipped += not finite  # that no step is good enough is no fault
        return 0.0, {"kl": torch.zeros_like(objective), "objective": objective}

    def _compute_step(self, data: Tree) -> dict[str, Tensor]:
        """Return the longest step along the natural gradient that the divergence's approximation allows, and scalars.

        With g the gradient of the objective and F the damped Fisher information: sqrt(2 target_kl / (g F^-1 g)) F^-1 g
        (Schulman et al. 2015, appendix C).
        """
        c, s = self.config, self.state
        distribution = s.policy.head(minibatch_features(s.policy, data, "policy"))
        objective = self._objective(distribution.log_prob(data["action"]), data)
        gradient = flatten(torch.autograd.grad(objective, self._parameters, retain_graph=True))
        sampled = distribution
        if c.sub_sampling_factor > 1:
            some = tree_index(data, slice(None, None, c.sub_sampling_factor))
            sampled = s.policy.head(minibatch_features(s.policy, some, "policy"))
        outputs = sampled.parameters()
        product = gauss_newton_product(outputs, self._parameters, sampled.fisher)

        def damped(v: Tensor) -> Tensor:
            return product(v) / len(outputs[0]) + c.cg_damping * v

        direction = conjugate_gradient(damped, gradient, c.cg_max_steps)
        # a gradient of 0 has a direction of 0, whatever it is multiplied by
        length = (2 * c.target_kl / direction.dot(damped(direction)).clamp_min(1e-20)).sqrt()
        results = {
            "step": length * direction,
            "objective": objective.detach(),
            "grad_norm": torch.linalg.vector_norm(gradient),
            "entropy": distribution.entropy().detach().mean(),
            # copies: a deviation that does not depend on the state is the parameter itself, which is about to move
            **{f"old/{k}": x.detach().clone() for k, x in enumerate(distribution.parameters())},
        }
        return results | deviation(distribution)

    def _compute_outcome(self, data: Tree) -> dict[str, Tensor]:
        """Return the objective of the present policy and its divergence from the one that acted."""
        policy = self.state.policy
        with torch.no_grad():
            distribution = policy.head(minibatch_features(policy, data, "policy"))
            kl = distribution.kl_from(list(tree_part(data, "old").values())).mean()
            return {"kl": kl, "objective": self._objective(distribution.log_prob(data["action"]), data)}

    def _objective(self, log_prob: Tensor, data: Tree) -> Tensor:
        """Return the surrogate objective (Schulman et al. 2015, equation 14)."""
        return ((log_prob - data["log_prob"]).exp() * data["advantage"]).mean()

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
