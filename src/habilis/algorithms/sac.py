"""Soft actor-critic (Haarnoja et al. 2018b, arXiv 1812.05905).

The algorithm alone: networks, losses (from `functional/losses.py`) and one update over a batch of transitions. The
loop that collects and replays is `training/off_policy.py`. Deviations from the paper: the policy's
gradient is taken at the critics before their step, as in Brax, so that both gradients can be computed side by side; any
number of critics, stacked into one batched network; n-step targets if asked for; policy and critic may read different
observation groups.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from habilis.core.acceleration import HiddenPrecision
from habilis.core.batches import TransitionBatch
from habilis.core.config import require
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded, SideBySide
from habilis.core.schedules import Schedule, scheduled
from habilis.core.specs import BoxAction, EnvSpec, GoalSelection
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_join, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional.losses import critic_loss, soft_policy_loss, soft_q_target, temperature_loss
from habilis.nn.critics import Critics, critic_encoder
from habilis.nn.encoder import ObsEncoder
from habilis.nn.heads import SquashedGaussianHead
from habilis.nn.mlp import MLP, Activation
from habilis.nn.optimizer import Optimizer, flatten_parameters
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """Hyper-parameters of SAC, named as in Stable-Baselines3 where it has them."""

    learning_rate: float = 3e-4
    """Adam's step size for the policy and the temperature."""
    critic_learning_rate: float | None = None
    """Adam's step size for the critics; None: as `learning_rate`."""
    learning_rate_schedule: Schedule = "constant"
    """Course of every step size over the run."""
    buffer_size: int = 1_000_000
    """Transitions the replay buffer holds."""
    batch_size: int = 256
    """Transitions in a batch."""
    learning_starts: int = 100
    """Environment steps, with actions drawn uniformly, before learning begins."""
    train_freq: int = 1
    """Steps of each environment between two rounds of gradient steps."""
    gradient_steps: int = 1
    """Gradient steps in a round; -1: as many as environment steps were taken since the last."""
    n_steps: int = 1
    """Rewards summed before bootstrapping."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """How far the target critics move towards the critics at each update."""
    n_critics: int = 2
    """Critics, of which the target takes the minimum."""
    ent_coef: float | None = None
    """Temperature; None learns it."""
    init_ent_coef: float = 1.0
    """First value of the learnt temperature."""
    target_entropy: float | None = None
    """Entropy the learnt temperature aims at, in nats; None: minus the number of action values."""
    goal_selection_strategy: GoalSelection = "none"
    """Where goals are wanted: learn in hindsight of goals that the episode reached, and of which."""
    n_sampled_goal: int = 4
    """Transitions with a goal in hindsight for each one that keeps its own."""
    normalize_obs: bool = False
    """Normalise vector observations by running mean and variance."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    hidden_precision: HiddenPrecision = "float32"
    """Precision of the hidden layers while learning; "bfloat16" holds where there are units for it."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        rate = self.critic_learning_rate
        require(rate is None or rate > 0, f"critic_learning_rate must be positive, got {rate}")
        require(self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")
        require(self.buffer_size >= self.batch_size, f"buffer_size must be at least batch_size, got {self.buffer_size}")
        require(self.train_freq > 0, f"train_freq must be positive, got {self.train_freq}")
        require(self.gradient_steps > 0 or self.gradient_steps == -1, "gradient_steps must be positive or -1")
        require(self.n_steps > 0, f"n_steps must be positive, got {self.n_steps}")
        require(0 < self.gamma <= 1, f"gamma must be in (0, 1], got {self.gamma}")
        require(0 < self.tau <= 1, f"tau must be in (0, 1], got {self.tau}")
        require(self.n_sampled_goal > 0, f"n_sampled_goal must be positive, got {self.n_sampled_goal}")
        require(self.n_critics > 0, f"n_critics must be positive, got {self.n_critics}")
        require(self.ent_coef is None or self.ent_coef >= 0, f"ent_coef must not be negative, got {self.ent_coef}")
        require(self.init_ent_coef > 0, f"init_ent_coef must be positive, got {self.init_ent_coef}")


def make_policy(spec: EnvSpec, config: SACConfig, generator: torch.Generator) -> StochasticPolicy:
    """Build SAC's policy for an environment.

    Raises:
        ConfigError: the actions are discrete.
    """
    if not isinstance(spec.action, BoxAction):
        raise ConfigError(f"SAC needs real-valued actions and {spec.id} has discrete ones: use ppo")
    encoder = ObsEncoder(spec.obs, spec.policy_groups, config.normalize_obs, generator)
    trunk = MLP(encoder.out_dim, config.hidden, None, config.activation, generator)
    return StochasticPolicy(spec, encoder, trunk, SquashedGaussianHead(trunk.out_dim, spec.action.dim, generator))


@dataclass
class SACState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critics: Critics
    target_critics: Critics
    log_alpha: Tensor
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer
    alpha_optimizer: Optimizer | None
    noise: torch.Generator
    gradient_steps: int = 0


class SAC:
    """Learns from transitions of any policy."""

    def __init__(
        self, spec: EnvSpec, config: SACConfig, *, streams: RandomStreams, device: str = "cpu", threads: int = 1
    ) -> None:
        self.config = config
        init = streams.torch("init")
        policy = make_policy(spec, config, init).to(device)
        assert isinstance(spec.action, BoxAction)
        encoder = critic_encoder(spec, config.normalize_obs, init)
        critics = Critics(encoder, spec.action.dim, config.n_critics, config.hidden, config.activation, init).to(device)
        learns_alpha = config.ent_coef is None
        # a fixed temperature of 0 is allowed: its logarithm is minus infinity and its exponential exactly 0
        initial_alpha = config.init_ent_coef if config.ent_coef is None else config.ent_coef
        log_alpha = nn.Parameter(torch.tensor(initial_alpha, device=device).log(), requires_grad=learns_alpha)
        self.target_entropy = -float(spec.action.dim) if config.target_entropy is None else config.target_entropy
        self._critic_rate = config.critic_learning_rate or config.learning_rate
        self.state = SACState(
            policy=policy,
            critics=critics,
            target_critics=copy.deepcopy(critics).requires_grad_(False),
            log_alpha=log_alpha,
            policy_optimizer=Optimizer(policy.parameters(), config.learning_rate),
            critic_optimizer=Optimizer(critics.parameters(), self._critic_rate),
            alpha_optimizer=Optimizer([log_alpha], config.learning_rate) if learns_alpha else None,
            noise=streams.torch("update", device),
        )
        self._target = flatten_parameters(self.state.target_critics.parameters())
        self._side_by_side = SideBySide(threads if device == "cpu" else 1)
        self._critic_gradient = Recorded(self._compute_critic_gradient, config.hidden_precision)
        self._policy_gradient = Recorded(self._compute_policy_gradient, config.hidden_precision)

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
        return {"policy": self.state.policy_optimizer.skipped, "critics": self.state.critic_optimizer.skipped}

    def anneal(self, progress: float, episodes: int) -> None:
        """Set the step sizes for the progress of the run, 0 to 1."""
        c, s = self.config, self.state
        if c.learning_rate_schedule == "constant":
            return
        for optimizer in (s.policy_optimizer, s.alpha_optimizer):
            if optimizer is not None:
                optimizer.learning_rate.fill_(scheduled(c.learning_rate, c.learning_rate_schedule, progress))
        s.critic_optimizer.learning_rate.fill_(scheduled(self._critic_rate, c.learning_rate_schedule, progress))

    def update(self, batch: TransitionBatch) -> Metrics:
        """Take one gradient step on the critics, the policy and the temperature, and move the targets."""
        s = self.state
        noise, next_noise = torch.randn(2, *batch.action.shape, generator=s.noise, device=batch.action.device).unbind()
        columns = tree_join(
            obs=batch.obs,
            action=batch.action,
            reward=batch.reward,
            terminated=batch.terminated,
            discount=batch.discount,
            next_obs=batch.next_obs,
            next_noise=next_noise,
        )
        critics, policy = self._side_by_side(
            lambda: self._critic_gradient(columns),
            lambda: self._policy_gradient(tree_join(obs=batch.obs, noise=noise)),
        )
        s.critic_optimizer.step(critics.pop("gradient"), critics["grad_norm"])
        s.policy_optimizer.step(policy.pop("gradient"), policy["grad_norm"])
        if s.alpha_optimizer is not None:
            s.alpha_optimizer.step(policy.pop("alpha_gradient"), policy.pop("alpha_grad_norm"))
        self._target.lerp_(s.critic_optimizer.flat, self.config.tau)
        s.gradient_steps += 1
        critics["critic_grad_norm"], policy["policy_grad_norm"] = critics.pop("grad_norm"), policy.pop("grad_norm")
        return critics | policy

    def _compute_critic_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the critics' loss towards the soft Bellman target."""
        s = self.state
        with torch.no_grad():
            next_obs = tree_part(data, "next_obs")
            next_action, next_log_prob = self._act(next_obs, data["next_noise"])
            target = soft_q_target(
                data["reward"],
                data["terminated"],
                data["discount"],
                s.target_critics(next_obs, next_action),
                next_log_prob,
                s.log_alpha.exp(),
            )
        q = s.critics(tree_part(data, "obs"), data["action"])
        loss = critic_loss(q, target)
        return {**s.critic_optimizer.gradient(loss), "critic_loss": loss.detach(), "q_mean": q.detach().mean()}

    def _compute_policy_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradients of the policy's loss and of the temperature's."""
        s = self.state
        obs, alpha = tree_part(data, "obs"), s.log_alpha.detach().exp()
        action, log_prob = self._act(obs, data["noise"])
        loss = soft_policy_loss(s.critics(obs, action), log_prob, alpha)
        results = s.policy_optimizer.gradient(loss)
        if s.alpha_optimizer is not None:
            alpha_loss = temperature_loss(s.log_alpha, log_prob, self.target_entropy)
            results |= {f"alpha_{name}": value for name, value in s.alpha_optimizer.gradient(alpha_loss).items()}
        return results | {"policy_loss": loss.detach(), "ent_coef": alpha, "entropy": -log_prob.detach().mean()}

    def _act(self, obs: Obs, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions with gradients through them, and their log-densities."""
        return self.state.policy.distribution(obs).sample(noise)

    def update_normalizers(self, obs: Obs, valid: Tensor) -> None:
        """Take observations into the statistics of every encoder; the targets' follow the critics'."""
        s = self.state
        for module in (s.policy, s.critics, s.target_critics):
            module.encoder.update_normalizers(obs, valid)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
