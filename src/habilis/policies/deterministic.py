"""The deterministic policy of TD3 and its kin: encoder (with the normaliser), trunk, tanh head and action map.

Exploring, it adds noise to its action, independent from step to step or of an Ornstein-Uhlenbeck process, whose state
is part of the policy's memory; so is the noise's deviation where each episode has one of its own. `forward` is the
policy without noise, from raw observation and memory to environment action and memory, which is what gets exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.recording import Recorded
from habilis.core.specs import BoxAction, EnvSpec
from habilis.core.tree import Tree
from habilis.core.types import Obs, PolicyStep
from habilis.nn.init import linear
from habilis.nn.memory import Encoder
from habilis.nn.network import Trunk
from habilis.policies.action_filter import PLAIN, ActionConfig
from habilis.policies.action_map import ActionMap
from habilis.policies.batch import NOISE, encode, fresh_generator, fresh_memory, predict, remember, with_memory

ActionNoise = Literal["gaussian", "ornstein_uhlenbeck"]


class DeterministicPolicy(nn.Module):
    """Observation to action.

    Args:
        spec: what the environment gives and takes: real values.
        encoder: from observation groups to one vector; owns the normaliser and the memory.
        trunk: from that vector to features.
        generator: source of the initial weights of the head.
        action_noise: how it explores.
        std: standard deviation of the noise, or of its change in a step, in units of half the action range.
        std_min: least of those deviations, above 0, where each episode draws its own between this and `std`; None for
            `std` everywhere.
        theta: share of an Ornstein-Uhlenbeck noise that is lost in a step.
        action: what becomes of an action before the environment takes it.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Encoder,
        trunk: Trunk,
        generator: torch.Generator,
        *,
        action_noise: ActionNoise,
        std: float,
        std_min: float | None,
        theta: float,
        action: ActionConfig = PLAIN,
    ) -> None:
        super().__init__()
        assert isinstance(spec.action, BoxAction)
        self.spec = spec
        self.encoder = encoder
        self.trunk = trunk
        self.head = linear(trunk.out_dim, spec.action.dim, generator)
        self.action_map = ActionMap(spec.action, action)
        self.action_noise: ActionNoise = action_noise
        self.std = std
        self.std_min = std_min
        self.theta = theta
        self._explore = Recorded(self._compute, arrays=True)

    def action(self, obs: Obs) -> Tensor:
        """Return the action in the policy's units, `[..., dim]` in [-1, 1], for raw observations `[..., *shape]`."""
        return torch.tanh(self.head(self.trunk(self.encoder(obs))))

    def learn(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Return the action for a batch that is learnt from; the second result is for `trunk.after_step`."""
        features, statistics = self.trunk.learn(self.encoder(obs))
        return torch.tanh(self.head(features)), statistics

    def fresh_memory(self, rows: int) -> dict[str, Tensor]:
        """Return what `forward` takes when `rows` episodes begin."""
        return fresh_memory(self.encoder, rows, self.action_map.filter)

    def forward(self, obs: Obs, memory: Tree | None = None) -> tuple[Tensor, Tree | None]:
        """Return the action in the environment's units, and the memory for the next step."""
        step = self._compute(with_memory(self.encoder, obs, memory, self.action_map.filter))
        return step["env_action"], remember(memory, step)

    def act(
        self,
        obs: Obs,
        memory: Tree | None = None,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> PolicyStep:
        """Choose actions for a batch of observations; the normaliser's statistics stay as they are.

        Args:
            obs: raw observation groups `[N, *shape]`.
            memory: what was remembered of the steps before, the last Ornstein-Uhlenbeck noise (which starts at zero)
                and the deviation included; None for fresh episodes.
            deterministic: leave the noise out, and its memory as it is.
            generator: source of the noise; None draws from the operating system's entropy, each time anew.
        """
        data = with_memory(self.encoder, obs, memory, self.action_map.filter)
        if deterministic:
            with torch.no_grad():
                step = self._compute(data)
            return PolicyStep(step["action"], step["env_action"], memory=remember(memory, step))
        if generator is None:
            generator = fresh_generator(self.head.weight.device)
        rows = len(obs[self.encoder.names[0]])
        std: float | Tensor = self.std
        where = generator.device
        if self.std_min is not None:
            memory = memory or {}
            drawn = self.std_min + (self.std - self.std_min) * torch.rand(rows, 1, generator=generator, device=where)
            std = torch.where(memory["noise_std"] > 0, memory["noise_std"], drawn) if "noise_std" in memory else drawn
            memory = {**memory, "noise_std": std}
        noise = std * torch.randn(rows, self.head.out_features, generator=generator, device=where)
        if self.action_noise == "ornstein_uhlenbeck":
            memory = memory or {}
            noise = (1 - self.theta) * memory["noise"] + noise if "noise" in memory else noise
            memory = {**memory, "noise": noise}
        step = self._explore({NOISE: noise} | data)
        return PolicyStep(step["action"], step["env_action"], memory=remember(memory, step))

    def _compute(self, data: Tree) -> dict[str, Tensor]:
        """Turn observations, what is remembered and, where there is any, noise into actions within their bounds."""
        features, after = encode(self.encoder, data)
        action = torch.tanh(self.head(self.trunk(features)))
        if NOISE in data:
            action = (action + data[NOISE]).clamp(-1.0, 1.0)
        env_action, done = self.action_map.step(action, data)
        return {"action": action, "env_action": env_action, **after, **done}

    def predict(
        self, obs: np.ndarray | Mapping[str, np.ndarray], memory: Tree | None = None, *, deterministic: bool = True
    ) -> tuple[np.ndarray, Tree | None]:
        """NumPy in, NumPy out, for one observation or a batch of them; see `habilis.policies.batch.predict`."""
        return predict(self, obs, memory, deterministic, self.head.weight.device)
