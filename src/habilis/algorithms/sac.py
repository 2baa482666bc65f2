"""Soft actor-critic (Haarnoja et al. 2018b, arXiv 1812.05905) and its sample-efficient kin.

Losses (`functional/losses.py`) and one update over a batch of transitions; the policy is `policies/squashed.py`, the
loop that collects and replays `training/off_policy.py`. By its settings it is TQC (quantile critics), REDQ (targets of
random critics), DroQ (dropout and layer normalisation), CrossQ (batch renormalisation, no targets) or SAC with SimBa's
networks; `build.py` names them. Deviations: the policy's gradient is taken at the critics before their step, so that
both can be computed side by side; any number of critics; n-step targets; other observation groups for the critic.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.acceleration import HiddenPrecision
from habilis.core.batches import TransitionBatch
from habilis.core.config import require, require_not_negative, require_positive, require_replay
from habilis.core.options import only_if, unless
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded, SideBySide
from habilis.core.schedules import Schedule
from habilis.core.specs import EnvSpec, GoalSelection
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_join, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional import losses, quantiles
from habilis.nn.activations import Activation
from habilis.nn.critics import Critics, share_images
from habilis.nn.heads import require_sde
from habilis.nn.memory import MemoryConfig
from habilis.nn.network import NetworkKind, critic_network
from habilis.nn.optimizer import Optimizer, flatten_parameters, parameters_besides
from habilis.policies.action_filter import ActionConfig
from habilis.policies.smoothness import SmoothnessConfig, draw_neighbours, with_smoothness
from habilis.policies.squashed import make_policy
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
    tau: float = only_if(0.005, target_networks=True)
    """How far the target critics move towards the critics at each update."""
    n_critics: int = 2
    """Critics."""
    n_quantiles: int = 1
    """What a critic says of a return: 1 for its mean, of which the target takes the least, or quantiles (TQC)."""
    top_quantiles_to_drop_per_net: int = unless(0, n_quantiles=1)
    """How many of all critics' quantiles together the target leaves out, the highest, for each critic."""
    n_target_critics: int | None = None
    """Critics drawn anew for each target (REDQ); None: all."""
    target_networks: bool = True
    """Bootstrap from copies that follow slowly; else from the critics, given both batches as one (CrossQ)."""
    policy_critic: Literal["min", "mean"] = "min"
    """What the policy climbs: the least of the critics, or their mean."""
    policy_delay: int = 1
    """Steps of the critics for each of the policy and the temperature."""
    ent_coef: float | None = None
    """Temperature; None learns it."""
    init_ent_coef: float = only_if(1.0, ent_coef=None)
    """First value of the learnt temperature."""
    target_entropy: float | None = only_if(None, ent_coef=None)
    """Entropy the learnt temperature aims at, in nats; None: minus the number of action values."""
    use_sde: bool = False
    """Explore by noise that depends on the state and is held over steps (gSDE)."""
    sde_sample_freq: int = only_if(-1, use_sde=True)
    """Steps over which that noise is held; -1: to the end of the episode."""
    action: ActionConfig = field(default_factory=ActionConfig)
    """What becomes of an action before the environment takes it."""
    smoothness: SmoothnessConfig = field(default_factory=SmoothnessConfig)
    """Penalties on different actions at neighbouring observations."""
    goal_selection_strategy: GoalSelection = "none"
    """Where goals are wanted: learn in hindsight of goals that the episode reached, and of which."""
    n_sampled_goal: int = unless(4, goal_selection_strategy="none")
    """Transitions with a goal in hindsight for each one that keeps its own."""
    normalize_obs: bool = False
    """Normalise vector observations by running mean and variance."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """What policy and critics remember, each with a memory of its own."""
    network: NetworkKind = "mlp"
    """Layers one after the other, or the residual blocks of SimBa or SimBaV2, which want `normalize_obs`."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers; of a residual network the one width, once for each block."""
    critic_hidden: tuple[int, ...] | None = None
    """Those of the critics; None: as `hidden`."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    layer_norm: bool = only_if(False, network="mlp")
    """Layer normalisation in the critics."""
    dropout: float = 0.0
    """Probability with which a hidden value of a critic is left out while learning."""
    batch_renorm: bool = False
    """Batch renormalisation in policy and critics."""
    adam_beta1: float = 0.9
    """Share of Adam's mean gradient that a step keeps."""
    hidden_precision: HiddenPrecision = "float32"
    """Precision of the hidden layers while learning; "bfloat16" holds where there are units for it."""

    def __post_init__(self) -> None:
        require_replay(self)
        require_positive(self, "critic_learning_rate", "n_critics", "n_quantiles", "n_target_critics", "policy_delay")
        require_positive(self, "init_ent_coef")
        require_not_negative(self, "ent_coef", "top_quantiles_to_drop_per_net")
        require(0 <= self.adam_beta1 < 1, f"adam_beta1 must be in [0, 1), got {self.adam_beta1}")
        drawn, dropped, made = self.n_target_critics or 1, self.top_quantiles_to_drop_per_net, self.n_quantiles
        require(drawn <= self.n_critics, f"n_target_critics must be at most n_critics, {self.n_critics}, got {drawn}")
        require(made == 1 or dropped < made, f"top_quantiles_to_drop_per_net must be below {made}, got {dropped}")
        copies = self.target_networks and self.batch_renorm
        require(not copies, "batch_renorm needs target_networks off: the statistics of copies would stand still")
        require_sde(self)
        critic_network(self)  # says what does not go together


@dataclass
class SACState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critics: Critics
    target_critics: Critics | None
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
        self.config = c = config
        init = streams.torch("init")
        policy = make_policy(spec, c, init).to(device)
        critics = Critics(spec, c.n_critics, c.n_quantiles, critic_network(c), c.normalize_obs, c.memory, init)
        share_images(policy.encoder, critics)
        learns_alpha = c.ent_coef is None
        # a fixed temperature of 0 is allowed: its logarithm is minus infinity and its exponential exactly 0
        initial_alpha = c.init_ent_coef if c.ent_coef is None else c.ent_coef
        log_alpha = nn.Parameter(torch.tensor(initial_alpha, device=device).log(), requires_grad=learns_alpha)
        self.target_entropy = -float(policy.action_map.values) if c.target_entropy is None else c.target_entropy
        critic_rate = c.critic_learning_rate or c.learning_rate
        self.state = SACState(
            policy=policy,
            critics=critics.to(device),
            target_critics=copy.deepcopy(critics).requires_grad_(False) if c.target_networks else None,
            log_alpha=log_alpha,
            policy_optimizer=Optimizer(parameters_besides(policy, critics), c.learning_rate, beta1=c.adam_beta1),
            critic_optimizer=Optimizer(critics.parameters(), critic_rate, beta1=c.adam_beta1),
            alpha_optimizer=Optimizer([log_alpha], c.learning_rate, beta1=c.adam_beta1) if learns_alpha else None,
            noise=streams.torch("update", device),
        )
        targets = self.state.target_critics
        self._target = flatten_parameters(targets.parameters()) if targets else None
        self._side_by_side = SideBySide(threads if device == "cpu" else 1)
        self._critic_gradient = Recorded(self._compute_critic_gradient, c.hidden_precision)
        self._policy_gradient = Recorded(self._compute_policy_gradient, c.hidden_precision)

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
        s = self.state
        learnt = {"policy": s.policy_optimizer, "critics": s.critic_optimizer, "temperature": s.alpha_optimizer}
        return {name: optimizer.skipped for name, optimizer in learnt.items() if optimizer is not None}

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set the step sizes for the progress of the run, 0 to 1."""
        s = self.state
        for optimizer in filter(None, (s.policy_optimizer, s.critic_optimizer, s.alpha_optimizer)):
            optimizer.anneal(self.config.learning_rate_schedule, progress)

    def update(self, batch: TransitionBatch) -> Metrics:
        """Take one gradient step on the critics, on policy and temperature where it is their turn; move the targets."""
        s = self.state
        noise, next_noise = torch.randn(2, *batch.action.shape, generator=s.noise, device=batch.action.device).unbind()
        acting = tree_join(obs=batch.obs, noise=noise)
        columns = batch.columns() | {"next_noise": next_noise}
        self._draw(acting, columns, len(batch.reward))
        s.gradient_steps += 1
        if s.gradient_steps % self.config.policy_delay:
            return self._step_critics(self._side_by_side.alone(lambda: self._critic_gradient(columns)))
        gradients = (lambda: self._critic_gradient(columns), lambda: self._policy_gradient(acting))
        critics, policy = self._side_by_side(*gradients)
        metrics = self._step_critics(critics)
        s.policy_optimizer.step(policy.pop("gradient"), policy["grad_norm"])
        s.policy.trunk.after_step(policy.pop("statistics"))
        if s.alpha_optimizer is not None:
            s.alpha_optimizer.step(policy.pop("alpha_gradient"), policy.pop("alpha_grad_norm"))
        policy["policy_grad_norm"] = policy.pop("grad_norm")
        return metrics | policy

    def _draw(self, acting: dict[str, Tensor], columns: dict[str, Tensor], rows: int) -> None:
        """Add what dropout leaves out, which critics make the target, and where the policy is to be smooth."""
        c, s, g = self.config, self.state, self.state.noise
        acting |= draw_neighbours(c.smoothness, s.policy.encoder.normalize, columns, g)
        if c.dropout:
            acting["dropout"], columns["next_dropout"] = (s.critics.q.noise(rows, g) for _ in range(2))
            columns["dropout"] = s.critics.q.noise(rows if c.target_networks else 2 * rows, g)
        if c.n_target_critics is not None:
            columns["which"] = torch.randperm(c.n_critics, generator=g, device=g.device)[: c.n_target_critics]

    def _step_critics(self, results: Metrics) -> Metrics:
        """Step along the gradient among the results, move the targets, and return the others."""
        s = self.state
        s.critic_optimizer.step(results.pop("gradient"), results["grad_norm"])
        s.critics.q.after_step(results.pop("statistics"))
        if self._target is not None:
            self._target.lerp_(s.critic_optimizer.flat, self.config.tau)
        results["critic_grad_norm"] = results.pop("grad_norm")
        return results

    def _compute_critic_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the critics' loss towards the soft Bellman target."""
        c, s = self.config, self.state
        obs, next_obs = tree_part(data, "obs"), tree_part(data, "next_obs")
        dropout, which = data.get("dropout"), data.get("which")
        with torch.no_grad():
            next_action, next_log_prob = s.policy.distribution(next_obs).sample(data["next_noise"])
        if s.target_critics is None:
            values, next_values, statistics = s.critics.learn_both(obs, data["action"], next_obs, next_action, dropout)
            next_values = next_values if which is None else next_values.index_select(0, which)
        else:
            with torch.no_grad():
                next_values = s.target_critics(next_obs, next_action, data.get("next_dropout"), which)
            values, statistics = s.critics.learn(obs, data["action"], dropout)
        next_values = losses.lowest(next_values, c.top_quantiles_to_drop_per_net)
        soft = losses.soft_value(next_values, next_log_prob, s.log_alpha.detach().exp())
        target = losses.q_target(data["reward"], data["terminated"], data["discount"], soft)
        loss = (losses.critic_loss if c.n_quantiles == 1 else quantiles.quantile_critic_loss)(values, target)
        scalars = {"critic_loss": loss.detach(), "q_mean": values.detach().mean()}
        return {**s.critic_optimizer.gradient(loss), "statistics": statistics, **scalars}

    def _compute_policy_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradients of the policy's loss and of the temperature's."""
        c, s = self.config, self.state
        obs, alpha = s.critics.see(tree_part(data, "obs")), s.log_alpha.detach().exp()
        features, statistics = s.policy.trunk.learn(s.policy.encoder(obs))
        action, log_prob = s.policy.head(features).sample(data["noise"])
        values = s.critics(obs, action, data.get("dropout")).mean(-1)
        loss = losses.soft_policy_loss(values.amin(0) if c.policy_critic == "min" else values.mean(0), log_prob, alpha)
        whole, penalty = with_smoothness(loss, c.smoothness, s.policy, data)
        results = s.policy_optimizer.gradient(whole) | penalty | {"statistics": statistics}
        if s.alpha_optimizer is not None:
            alpha_loss = losses.temperature_loss(s.log_alpha, log_prob, self.target_entropy)
            results |= {f"alpha_{name}": value for name, value in s.alpha_optimizer.gradient(alpha_loss).items()}
        return results | {"policy_loss": loss.detach(), "ent_coef": alpha, "entropy": -log_prob.detach().mean()}

    def update_normalizers(self, obs: Obs, valid: Tensor) -> None:
        """Take observations into the statistics of every encoder; the targets' follow the critics'."""
        for module in (self.state.policy, self.state.critics, self.state.target_critics):
            if module is not None:
                module.encoder.update_normalizers(obs, valid)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
