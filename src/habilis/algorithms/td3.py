"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477), and DDPG by its settings.

The algorithm alone: networks, losses (from `functional/losses.py`) and one update over a batch of transitions. The
loop that collects and replays is `training/off_policy.py`. With one critic, no delay and no target noise it is deep
deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971); with distributions of returns, noise of each
environment's own and large batches it is FastTD3 (Seo et al. 2025, arXiv 2505.22642). Deviations from the papers: the
policy's gradient is taken at the critics before their step, so that both can be computed side by side; any number of
critics; n-step targets; other observation groups for the critic.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from habilis.core.acceleration import HiddenPrecision
from habilis.core.batches import TransitionBatch
from habilis.core.config import require, require_fractions, require_not_negative, require_positive, require_replay
from habilis.core.options import only_if, unless
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded, SideBySide
from habilis.core.schedules import Schedule
from habilis.core.specs import BoxAction, EnvSpec, GoalSelection, require_action
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_join, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional import losses
from habilis.functional.value_losses import categorical_loss, categorical_projection
from habilis.nn.activations import Activation
from habilis.nn.critics import IMAGE_ENCODER, Critics, share_images
from habilis.nn.memory import MemoryConfig, make_encoder
from habilis.nn.network import NetworkKind, critic_network, make_trunk, policy_network
from habilis.nn.optimizer import Optimizer, flatten_parameters, parameters_besides
from habilis.policies.action_filter import ActionConfig
from habilis.policies.deterministic import ActionNoise, DeterministicPolicy
from habilis.policies.smoothness import SmoothnessConfig, draw_neighbours, require_smoothness, with_smoothness


@dataclass(frozen=True, kw_only=True)
class TD3Config:
    """Hyper-parameters of TD3, named as in Stable-Baselines3 where it has them."""

    learning_rate: float = 1e-3
    """Adam's step size for the policy."""
    critic_learning_rate: float | None = None
    """Adam's step size for the critics; None: as `learning_rate`."""
    weight_decay: float = 0.0
    """Share of each parameter, times the step size, that a step takes away (AdamW)."""
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
    """How far the targets move towards the networks at each step of the policy."""
    n_critics: int = 2
    """Critics, of which the target takes the minimum."""
    n_atoms: int = 1
    """Atoms of the distribution of returns that each critic learns (C51); 1: its mean alone."""
    v_min: float = unless(-10.0, n_atoms=1)
    """First atom: the least discounted return."""
    v_max: float = unless(10.0, n_atoms=1)
    """Last atom: the greatest discounted return."""
    policy_delay: int = 2
    """Steps of the critics for each of the policy and the targets."""
    target_policy_noise: float = 0.2
    """Standard deviation of the noise on the target policy's actions, in units of half the action range."""
    target_noise_clip: float = unless(0.5, target_policy_noise=0)
    """Largest size of that noise."""
    action_noise: ActionNoise = "gaussian"
    """Noise by which the policy explores: independent from step to step, or an Ornstein-Uhlenbeck process."""
    action_noise_std: float = 0.1
    """Its standard deviation, or that of its change in a step, in units of half the action range."""
    action_noise_std_min: float | None = None
    """Where given, each environment draws that deviation anew for each episode, from here to `action_noise_std`."""
    action_noise_theta: float = only_if(0.15, action_noise="ornstein_uhlenbeck")
    """Share of an Ornstein-Uhlenbeck noise that is lost in a step."""
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
    hidden_precision: HiddenPrecision = "float32"
    """Precision of the hidden layers while learning; "bfloat16" holds where there are units for it."""

    def __post_init__(self) -> None:
        require_replay(self)
        require_positive(self, "critic_learning_rate", "n_critics", "policy_delay", "n_atoms", "action_noise_std_min")
        require(self.v_min < self.v_max, f"v_min must be less than v_max, got {self.v_min} and {self.v_max}")
        least, std = self.action_noise_std_min, self.action_noise_std
        require(least is None or least <= std, f"action_noise_std_min must be at most {std}, got {least}")
        require_fractions(self, "action_noise_theta")
        require_not_negative(self, "target_policy_noise", "target_noise_clip", "action_noise_std", "weight_decay")
        critic_network(self)  # says what does not go together


def make_policy(spec: EnvSpec, config: TD3Config, generator: torch.Generator) -> DeterministicPolicy:
    """Build TD3's policy for an environment.

    Raises:
        ConfigError: there are choices among the actions, or actions without bounds.
    """
    require_action(spec, BoxAction, "TD3", bounded=True)
    require_smoothness(config.smoothness, spec, memory=config.memory.used, n_steps=config.n_steps)
    encoder = make_encoder(
        spec.obs, spec.policy_groups, config.normalize_obs, config.memory, generator, IMAGE_ENCODER, stored=True
    )
    trunk = make_trunk(policy_network(config), encoder.out_dim, generator)
    return DeterministicPolicy(
        spec,
        encoder,
        trunk,
        generator,
        action_noise=config.action_noise,
        std=config.action_noise_std,
        std_min=config.action_noise_std_min,
        theta=config.action_noise_theta,
        action=config.action,
    )


@dataclass
class TD3State:
    """Everything that learning changes."""

    policy: DeterministicPolicy
    critics: Critics
    target_policy: DeterministicPolicy
    target_critics: Critics
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer
    noise: torch.Generator
    gradient_steps: int = 0


class TD3:
    """Learns from transitions of any policy."""

    def __init__(
        self, spec: EnvSpec, config: TD3Config, *, streams: RandomStreams, device: str = "cpu", threads: int = 1
    ) -> None:
        self.config = c = config
        init = streams.torch("init")
        policy = make_policy(spec, c, init).to(device)
        critics = Critics(spec, c.n_critics, c.n_atoms, critic_network(c), c.normalize_obs, c.memory, init).to(device)
        share_images(policy.encoder, critics)
        target_policy, target_critics = copy.deepcopy((policy, critics))
        optimizer = partial(Optimizer, weight_decay=c.weight_decay)
        self.state = TD3State(
            policy=policy,
            critics=critics,
            target_policy=target_policy.requires_grad_(False),
            target_critics=target_critics.requires_grad_(False),
            policy_optimizer=optimizer(parameters_besides(policy, critics), c.learning_rate),
            critic_optimizer=optimizer(critics.parameters(), c.critic_learning_rate or c.learning_rate),
            noise=streams.torch("update", device),
        )
        self._policy_target = flatten_parameters(parameters_besides(target_policy, target_critics))
        self._critic_target = flatten_parameters(target_critics.parameters())
        self._side_by_side = SideBySide(threads if device == "cpu" else 1)
        self._critic_gradient = Recorded(self._compute_critic_gradient, c.hidden_precision)
        self._policy_gradient = Recorded(self._compute_policy_gradient, c.hidden_precision)

    @property
    def policy(self) -> DeterministicPolicy:
        """The policy being learnt."""
        return self.state.policy

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the critics taken so far."""
        return self.state.gradient_steps

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Gradient steps left out because the gradient was not finite, by what was learnt."""
        return {"policy": self.state.policy_optimizer.skipped, "critics": self.state.critic_optimizer.skipped}

    @property
    def _atoms(self) -> Tensor:
        return torch.linspace(self.config.v_min, self.config.v_max, self.config.n_atoms, device=self.state.noise.device)

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set the step sizes for the progress of the run, 0 to 1."""
        for optimizer in (self.state.policy_optimizer, self.state.critic_optimizer):
            optimizer.anneal(self.config.learning_rate_schedule, progress)

    def q_values(self, obs: Obs, action: Tensor, which: Tensor | None = None) -> Tensor:
        """Return the mean returns `[critics, B]` that the critics expect; arguments as of `Critics`."""
        return self._means(self.state.critics(obs, action, which=which))

    def _means(self, values: Tensor) -> Tensor:
        """Return the means of what critics say, `[critics, B, K]` to `[critics, B]`."""
        return values.squeeze(-1) if self.config.n_atoms == 1 else losses.expected_return(values, self._atoms)

    def update(self, batch: TransitionBatch) -> Metrics:
        """Take one gradient step on the critics and, every `policy_delay` of them, on the policy; move the targets."""
        s = self.state
        next_noise = torch.randn(batch.action.shape, generator=s.noise, device=batch.action.device)
        columns = batch.columns() | {"next_noise": next_noise}
        s.gradient_steps += 1
        if s.gradient_steps % self.config.policy_delay:
            return self._step_critics(self._critic_gradient(columns))
        neighbours = draw_neighbours(self.config.smoothness, s.policy.encoder.normalize, columns, s.noise)
        acting = tree_join(obs=batch.obs) | neighbours
        critics, policy = self._side_by_side(
            lambda: self._critic_gradient(columns), lambda: self._policy_gradient(acting)
        )
        metrics = self._step_critics(critics)
        s.policy_optimizer.step(policy.pop("gradient"), policy["grad_norm"])
        s.policy.trunk.after_step(policy.pop("statistics"))
        self._policy_target.lerp_(s.policy_optimizer.flat, self.config.tau)
        self._critic_target.lerp_(s.critic_optimizer.flat, self.config.tau)
        policy["policy_grad_norm"] = policy.pop("grad_norm")
        return metrics | policy

    def _step_critics(self, results: Metrics) -> Metrics:
        """Step along the gradient among the results, and return the others."""
        self.state.critic_optimizer.step(results.pop("gradient"), results["grad_norm"])
        self.state.critics.q.after_step(results.pop("statistics"))
        results["critic_grad_norm"] = results.pop("grad_norm")
        return results

    def _compute_critic_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the critics' loss towards the target of clipped double Q-learning."""
        c, s = self.config, self.state
        with torch.no_grad():
            next_obs = s.target_critics.see(tree_part(data, "next_obs"))
            noise = c.target_policy_noise * data["next_noise"]
            next_action = losses.smoothed_action(s.target_policy.action(next_obs), noise, c.target_noise_clip)
            next_values = s.target_critics(next_obs, next_action)
            following = losses.lowest(next_values) if c.n_atoms == 1 else self._atoms
            target = losses.q_target(data["reward"], data["terminated"], data["discount"], following)
            if c.n_atoms > 1:
                probs = losses.lowest_distribution(next_values, self._atoms)
                target = categorical_projection(self._atoms, target, probs)
        values, statistics = s.critics.learn(tree_part(data, "obs"), data["action"])
        if c.n_atoms == 1:
            loss = losses.critic_loss(values, target)
        else:
            loss = categorical_loss(values, target)[0].mean(1).sum()
        scalars = {"critic_loss": loss.detach(), "q_mean": self._means(values.detach()).mean()}
        return {**s.critic_optimizer.gradient(loss), "statistics": statistics, **scalars}

    def _compute_policy_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the first critic's value of the policy's actions, which is to grow."""
        s = self.state
        obs = s.critics.see(tree_part(data, "obs"))
        action, statistics = s.policy.learn(obs)
        loss = -self.q_values(obs, action, which=torch.zeros(1, dtype=torch.int64, device=action.device)).mean()
        whole, penalty = with_smoothness(loss, self.config.smoothness, s.policy, data)
        return s.policy_optimizer.gradient(whole) | penalty | {"statistics": statistics, "policy_loss": loss.detach()}

    def update_normalizers(self, obs: Obs, valid: Tensor) -> None:
        """Take observations into the statistics of every encoder; the targets' follow the networks'."""
        s = self.state
        for module in (s.policy, s.critics, s.target_policy, s.target_critics):
            module.encoder.update_normalizers(obs, valid)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
