"""Deep Q-learning in all its parts (Mnih et al. 2015), each of which can be had alone or with any other.

Double targets (van Hasselt et al. 2016), dueling streams (Wang et al. 2016), distributions of the return
(`nn/value_heads.py`), noisy weights (`nn/noisy.py`), n-step targets and prioritised replay (`data/`): with the
categorical head they are together Rainbow (Hessel et al. 2018). Losses are in `functional/value_losses.py`, the loop in
`training/off_policy.py`. Deviations from the papers are listed in `docs/algorithms/dqn.md`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from habilis.core.batches import TransitionBatch
from habilis.core.config import (
    require,
    require_fractions,
    require_not_negative,
    require_positive,
    require_replay,
    require_shares,
    require_widths,
)
from habilis.core.options import only_if, unless
from habilis.core.random import RandomStreams
from habilis.core.recording import Recorded
from habilis.core.schedules import Schedule
from habilis.core.specs import DiscreteAction, EnvSpec, GoalSelection, require_action
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree, tree_part
from habilis.core.types import Metrics, Obs, State
from habilis.functional.losses import q_target
from habilis.nn.activations import Activation
from habilis.nn.encoder import ImageEncoderKind, require_images
from habilis.nn.memory import MemoryConfig, make_encoder
from habilis.nn.mlp import MLP
from habilis.nn.optimizer import Optimizer, flatten_parameters
from habilis.nn.value_heads import make_value_head, of_action
from habilis.policies.value import Exploration, ValuePolicy


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Hyper-parameters of DQN and its family, named as in Stable-Baselines3 where it has them."""

    learning_rate: float = 5e-4
    """Adam's step size."""
    learning_rate_schedule: Schedule = "constant"
    """Course of the step size over the run."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    max_grad_norm: float | None = 10.0
    """Largest norm of the gradient; None for no clipping."""
    buffer_size: int = 100_000
    """Transitions the replay buffer holds."""
    batch_size: int = 64
    """Transitions in a batch."""
    learning_starts: int = 1000
    """Environment steps, with actions drawn uniformly, before learning begins."""
    train_freq: int = 1
    """Steps of each environment between two rounds of gradient steps."""
    gradient_steps: int = 1
    """Gradient steps in a round; -1: as many as environment steps were taken since the last."""
    gamma: float = 0.99
    """Discount."""
    n_steps: int = 1
    """Rewards summed before bootstrapping."""
    target_update_interval: int = 250
    """Gradient steps between two updates of the target network (Stable-Baselines3 counts environment steps)."""
    tau: float = 1.0
    """How far the target network moves at such an update; 1 copies."""
    double_q: bool = False
    """Let the network that learns choose the next action, and the target network judge it."""
    dueling: bool = False
    """Two streams: the value of the state, and the advantages of the actions."""
    head: Literal["mean", "categorical", "quantile", "implicit_quantile"] = "mean"
    """What is learnt of the return: its mean (DQN), or its distribution (C51, QR-DQN, IQN)."""
    n_atoms: int = only_if(51, head="categorical")
    """Atoms of the categorical head."""
    v_min: float = only_if(-10.0, head="categorical")
    """First atom: the least discounted return. Returns below it cannot be told apart: see that `q_mean` keeps away."""
    v_max: float = only_if(10.0, head="categorical")
    """Last atom: the greatest discounted return, likewise."""
    n_quantiles: int = only_if(50, head="quantile")
    """Quantiles of the quantile head."""
    n_fractions: int = only_if(8, head="implicit_quantile")
    """Quantiles drawn for the return that is learnt, and as many for its target (implicit quantiles)."""
    n_acting_fractions: int = only_if(32, head="implicit_quantile")
    """Evenly spaced quantiles by which actions are ranked (implicit quantiles)."""
    huber_threshold: float | None = unless(1.0, head="categorical")
    """Error beyond which the loss grows linearly; None: squared error for a mean, 1 for quantiles; 0: plain quantile
    loss."""
    risk_level: float = 1.0
    """Rank actions by the mean of this share of the worst returns (distributions only); 1: by the mean of all."""
    prioritized: bool = False
    """Replay transitions in proportion to their last error."""
    priority_alpha: float = only_if(0.6, prioritized=True)
    """Power of the error in a priority; 0 is uniform."""
    priority_beta: float = only_if(0.4, prioritized=True)
    """Power of the importance weights that correct for it; grows to 1 over the run."""
    goal_selection_strategy: GoalSelection = "none"
    """Where goals are wanted: learn in hindsight of goals that the episode reached, and of which."""
    n_sampled_goal: int = unless(4, goal_selection_strategy="none")
    """Transitions with a goal in hindsight for each one that keeps its own."""
    exploration: Exploration = "epsilon"
    """Random actions, actions drawn in proportion to `exp(score / temperature)`, or noisy weights."""
    exploration_schedule: Literal["linear", "exponential"] = "linear"
    """Course of epsilon (or the temperature): over a fraction of the run, or by a factor for each episode."""
    exploration_fraction: float = unless(0.1, exploration="noisy", exploration_schedule="exponential")
    """Fraction of the run over which epsilon falls (linear)."""
    exploration_decay: float = only_if(0.99, exploration_schedule="exponential")
    """Factor of epsilon for each episode that ended (exponential)."""
    exploration_initial_eps: float = unless(1.0, exploration="noisy")
    """First epsilon, or temperature."""
    exploration_final_eps: float = unless(0.05, exploration="noisy")
    """Last epsilon, or temperature."""
    normalize_obs: bool = False
    """Normalise vector observations by running mean and variance."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    image_encoder: ImageEncoderKind = "nature"
    """Convolutional network for images."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """What the network remembers."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is each stream's own, and noisy where weights are."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""

    def __post_init__(self) -> None:
        require_replay(self)
        require_positive(self, "n_quantiles", "n_fractions", "n_acting_fractions", "target_update_interval")
        require_positive(self, "max_grad_norm")
        require_widths(self, "hidden")
        require_fractions(self, "risk_level", "exploration_decay", "exploration_fraction")
        require_shares(self, "priority_alpha", "priority_beta")
        require(self.n_atoms > 1, f"n_atoms must be at least 2, got {self.n_atoms}")
        require(self.v_min < self.v_max, f"v_min must be less than v_max, got {self.v_min} and {self.v_max}")
        levels = ("exploration_initial_eps", "exploration_final_eps")
        (require_positive if self.exploration == "boltzmann" else require_shares)(self, *levels)
        scheduled = self.exploration != "noisy" or self.exploration_schedule == "linear"
        require(scheduled, "an exponential exploration_schedule has no epsilon to change: weights are noisy")
        require(self.risk_level == 1 or self.head != "mean", "risk_level needs a distribution: use another head")
        quantiles = self.huber_threshold != 0 or self.head in ("quantile", "implicit_quantile")
        require(quantiles, "a huber_threshold of 0 is for quantiles alone: use a quantile head")
        require_not_negative(self, "huber_threshold", "adam_eps")


def make_policy(spec: EnvSpec, config: DQNConfig, generator: torch.Generator) -> ValuePolicy:
    """Build the policy of DQN and its family for an environment.

    Raises:
        ConfigError: the action is not one choice among several, or implicit quantiles have no features to multiply.
    """
    require_action(spec, DiscreteAction, "value-based learning")
    assert isinstance(spec.action, DiscreteAction)
    c = config
    require_images(c.image_encoder, spec.obs)
    encoder = make_encoder(
        spec.obs, spec.policy_groups, c.normalize_obs, c.memory, generator, c.image_encoder, stored=True
    )
    trunk = MLP(encoder.out_dim, c.hidden[:-1], None, c.activation, generator)
    if c.head == "implicit_quantile":
        learnt = bool([*encoder.parameters(), *trunk.parameters()])
        require(learnt, f"implicit quantiles multiply learnt features: hidden needs two layers, got {c.hidden}")
    head = make_value_head(trunk.out_dim, spec.action.n, c, generator)
    return ValuePolicy(spec, encoder, trunk, head, c.exploration)


@dataclass
class DQNState:
    """Everything that learning changes."""

    policy: ValuePolicy
    target: ValuePolicy
    optimizer: Optimizer
    noise: torch.Generator
    gradient_steps: int = 0


class DQN:
    """Learns from transitions of any policy."""

    def __init__(self, spec: EnvSpec, config: DQNConfig, *, streams: RandomStreams, device: str = "cpu") -> None:
        self.config = config
        policy = make_policy(spec, config, streams.torch("init")).to(device)
        self.state = DQNState(
            policy=policy,
            target=copy.deepcopy(policy).requires_grad_(False),
            optimizer=Optimizer(
                policy.parameters(), config.learning_rate, eps=config.adam_eps, max_grad_norm=config.max_grad_norm
            ),
            noise=streams.torch("update", device),
        )
        self._target = flatten_parameters(self.state.target.parameters())
        self._gradient = Recorded(self._compute_gradient, inference=True, arrays=True)

    @property
    def policy(self) -> ValuePolicy:
        """The policy being learnt."""
        return self.state.policy

    @property
    def gradient_steps(self) -> int:
        """Gradient steps taken so far."""
        return self.state.gradient_steps

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Gradient steps left out because the gradient was not finite, by what was learnt."""
        return {"values": self.state.optimizer.skipped}

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set exploration and step size for the progress of the run, 0 to 1, and the number of episodes that ended."""
        c, s = self.config, self.state
        first, last = c.exploration_initial_eps, c.exploration_final_eps
        if c.exploration_schedule == "linear":
            level = first + (last - first) * min(progress / c.exploration_fraction, 1.0)
        else:
            level = max(last, first * c.exploration_decay**episodes)
        if c.exploration != "noisy":
            s.policy.exploration_level.fill_(level)
        s.optimizer.anneal(c.learning_rate_schedule, progress)

    def update(self, batch: TransitionBatch) -> Metrics:
        """Take one gradient step and return scalars, and the `td_error` `[B]` of transitions drawn by priority."""
        s, c = self.state, self.config
        data = batch.columns() | self._draw(len(batch.action))
        if batch.weight is not None:
            data["weight"] = batch.weight
        results = self._gradient(data)
        s.optimizer.step(results.pop("gradient"), results["grad_norm"])
        s.gradient_steps += 1
        if s.gradient_steps % c.target_update_interval == 0:
            self._target.lerp_(s.optimizer.flat, c.tau)
        level = {"epsilon": "exploration_rate", "boltzmann": "temperature"}.get(c.exploration)
        return results if level is None else results | {level: s.policy.exploration_level}

    def _draw(self, rows: int) -> dict[str, Tensor]:
        """Draw what an update leaves to chance: noisy weights, one set for each network, and quantiles."""
        g, head, drawn = self.state.noise, self.policy.head, {}
        if size := head.streams.noise_size:
            drawn["noise"] = torch.randn(3, 1, size, generator=g, device=g.device)
        if count := head.drawn:
            drawn["fractions"], drawn["next_fractions"] = torch.rand(2, rows, count, generator=g, device=g.device)
        return drawn

    @torch.enable_grad()
    def _compute_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of the loss towards the Bellman target."""
        s = self.state
        noise, next_noise, choice_noise = data.get("noise", (None, None, None))
        next_obs = tree_part(data, "next_obs")
        with torch.no_grad():
            following = s.target.values(next_obs, next_noise, data.get("next_fractions"))
            if not self.config.double_q and not s.target.head.drawn:  # drawn quantiles rank no actions
                scores = s.target.head.scores(following)
            else:
                chooser, by = (s.policy, choice_noise) if self.config.double_q else (s.target, next_noise)
                scores = chooser.scores(next_obs, by)
            next_values = of_action(following, scores.argmax(-1))
        values = s.policy.values(tree_part(data, "obs"), noise, data.get("fractions"))
        losses, error = s.policy.head.loss(
            of_action(values, data["action"]),
            next_values,
            lambda following: q_target(data["reward"], data["terminated"], data["discount"], following),
            data.get("fractions"),
        )
        loss = (losses * data["weight"]).mean() if "weight" in data else losses.mean()
        results = {"loss": loss.detach(), "q_mean": s.policy.head.scores(values.detach()).mean()}
        return s.optimizer.gradient(loss) | results | ({"td_error": error} if "weight" in data else {})

    def update_normalizers(self, obs: Obs, valid: Tensor) -> None:
        """Take observations into the statistics of the encoder; the target's follow the policy's."""
        for policy in (self.state.policy, self.state.target):
            policy.encoder.update_normalizers(obs, valid)

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)
