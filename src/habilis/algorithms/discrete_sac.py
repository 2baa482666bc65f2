"""Soft actor-critic for one choice among several (Christodoulou 2019, arXiv 1910.07207).

The algorithm alone: networks, losses (from `functional/losses.py`) and one update over a batch of transitions. The
loop that collects and replays is `training/off_policy.py`. What SAC estimates by a drawn action is here the expectation
over all of them, so that an update draws nothing. Deviations from the paper: the policy's gradient is taken at the
critics before their step, so that both gradients can be computed side by side; any number of critics; n-step targets if
asked for; policy and critic may read different observation groups.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from habilis.core.acceleration import HiddenPrecision
from habilis.core.batches import TransitionBatch
from habilis.core.config import require, require_not_negative, require_positive, require_replay
from habilis.core.options import only_if, unless
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded, SideBySide
from habilis.core.schedules import Schedule
from habilis.core.specs import DiscreteAction, EnvSpec, GoalSelection, require_action
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_join, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional import losses
from habilis.nn.activations import Activation
from habilis.nn.critics import IMAGE_ENCODER, ChoiceCritics, share_images
from habilis.nn.heads import CategoricalHead
from habilis.nn.memory import MemoryConfig, make_encoder
from habilis.nn.network import NetworkKind, critic_network, make_trunk, policy_network
from habilis.nn.optimizer import Optimizer, flatten_parameters, parameters_besides
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class DiscreteSACConfig:
    """Hyper-parameters of SAC for choices, named as SAC's."""

    learning_rate: float = 3e-4
    """Adam's step size for the policy and the temperature."""
    critic_learning_rate: float | None = None
    """Adam's step size for the critics; None: as `learning_rate`."""
    learning_rate_schedule: Schedule = "constant"
    """Course of every step size over the run."""
    buffer_size: int = 1_000_000
    """Transitions the replay buffer holds."""
    batch_size: int = 64
    """Transitions in a batch."""
    learning_starts: int = 1000
    """Environment steps, with choices drawn uniformly, before learning begins."""
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
    """Critics, of which target and policy take the minimum."""
    ent_coef: float | None = None
    """Temperature; None learns it."""
    init_ent_coef: float = only_if(1.0, ent_coef=None)
    """First value of the learnt temperature."""
    target_entropy_ratio: float = only_if(0.98, ent_coef=None)
    """Entropy the learnt temperature aims at, as a share of that of a uniform choice."""
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
        require_positive(self, "critic_learning_rate", "n_critics", "init_ent_coef")
        require_not_negative(self, "ent_coef")
        ratio = self.target_entropy_ratio
        require(0 <= ratio < 1, f"target_entropy_ratio must be at least 0 and less than 1, got {ratio}")
        critic_network(self)  # says what does not go together


def make_policy(spec: EnvSpec, config: DiscreteSACConfig, generator: torch.Generator) -> StochasticPolicy:
    """Build the policy for an environment.

    Raises:
        ConfigError: an action is not one choice.
    """
    require_action(spec, DiscreteAction, "discrete_sac")
    assert isinstance(spec.action, DiscreteAction)
    encoder = make_encoder(
        spec.obs, spec.policy_groups, config.normalize_obs, config.memory, generator, IMAGE_ENCODER, stored=True
    )
    trunk = make_trunk(policy_network(config), encoder.out_dim, generator)
    return StochasticPolicy(spec, encoder, trunk, CategoricalHead(trunk.out_dim, spec.action, generator))


@dataclass
class DiscreteSACState:
    """Everything that learning changes."""

    policy: StochasticPolicy
    critics: ChoiceCritics
    target_critics: ChoiceCritics
    log_alpha: Tensor
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer
    alpha_optimizer: Optimizer | None
    gradient_steps: int = 0


class DiscreteSAC:
    """Learns from transitions of any policy."""

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteSACConfig,
        *,
        streams: RandomStreams,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.config = c = config
        init = streams.torch("init")
        policy = make_policy(spec, c, init).to(device)
        assert isinstance(spec.action, DiscreteAction)
        critics = ChoiceCritics(spec, c.n_critics, critic_network(c), c.normalize_obs, c.memory, init).to(device)
        share_images(policy.encoder, critics)
        learns_alpha = c.ent_coef is None
        initial_alpha = c.init_ent_coef if c.ent_coef is None else c.ent_coef
        log_alpha = nn.Parameter(torch.tensor(initial_alpha, device=device).log(), requires_grad=learns_alpha)
        self.target_entropy = c.target_entropy_ratio * math.log(spec.action.n)
        self.state = DiscreteSACState(
            policy=policy,
            critics=critics,
            target_critics=copy.deepcopy(critics).requires_grad_(False),
            log_alpha=log_alpha,
            policy_optimizer=Optimizer(parameters_besides(policy, critics), c.learning_rate),
            critic_optimizer=Optimizer(critics.parameters(), c.critic_learning_rate or c.learning_rate),
            alpha_optimizer=Optimizer([log_alpha], c.learning_rate) if learns_alpha else None,
        )
        self._target = flatten_parameters(self.state.target_critics.parameters())
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
        """Take one gradient step on the critics, the policy and the temperature, and move the targets."""
        s = self.state
        critics, policy = self._side_by_side(
            lambda: self._critic_gradient(batch.columns()), lambda: self._policy_gradient(tree_join(obs=batch.obs))
        )
        s.critic_optimizer.step(critics.pop("gradient"), critics["grad_norm"])
        s.critics.q.after_step(critics.pop("statistics"))
        s.policy_optimizer.step(policy.pop("gradient"), policy["grad_norm"])
        s.policy.trunk.after_step(policy.pop("statistics"))
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
            log_probs = s.policy.distribution(next_obs).log_probs  # type: ignore[union-attr]
            next_value = losses.expected_soft_value(s.target_critics(next_obs).amin(0), log_probs, s.log_alpha.exp())
            target = losses.q_target(data["reward"], data["terminated"], data["discount"], next_value.unsqueeze(1))
        q, statistics = s.critics.learn(tree_part(data, "obs"))
        action = data["action"].view(1, -1, 1).expand(len(q), -1, 1)
        values = q.gather(2, action)
        loss = losses.critic_loss(values, target)
        scalars = {"critic_loss": loss.detach(), "q_mean": values.detach().mean()}
        return {**s.critic_optimizer.gradient(loss), "statistics": statistics, **scalars}

    def _compute_policy_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradients of the policy's loss and of the temperature's."""
        s = self.state
        obs, alpha = s.critics.see(tree_part(data, "obs")), s.log_alpha.detach().exp()
        features, statistics = s.policy.trunk.learn(s.policy.encoder(obs))
        distribution = s.policy.head(features)
        with torch.no_grad():
            q = s.critics(obs).amin(0)
        loss = -losses.expected_soft_value(q, distribution.log_probs, alpha).mean()
        entropy = distribution.entropy().detach()
        results = s.policy_optimizer.gradient(loss) | {"statistics": statistics}
        if s.alpha_optimizer is not None:
            alpha_loss = losses.temperature_loss(s.log_alpha, -entropy, self.target_entropy)
            results |= {f"alpha_{name}": value for name, value in s.alpha_optimizer.gradient(alpha_loss).items()}
        return results | {"policy_loss": loss.detach(), "ent_coef": alpha, "entropy": entropy.mean()}

    def update_normalizers(self, obs: Obs, valid: Tensor) -> None:
        """Take observations into the statistics of every encoder; the targets' follow the critics'."""
        for module in (self.state.policy, self.state.critics, self.state.target_critics):
            module.encoder.update_normalizers(obs, valid)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
