"""The stochastic policy: encoder (with the normaliser), trunk, head and action map.

The head makes it Gaussian or bounded, categorical or hybrid; all else is the same. `forward` is the
deterministic policy from raw observation and memory to environment action and memory, which is what gets exported.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.recording import Recorded
from habilis.core.specs import EnvSpec
from habilis.core.tree import Tree
from habilis.core.types import Obs, PolicyStep
from habilis.nn.distributions import PolicyDistribution, SquashedGaussian
from habilis.nn.heads import Head
from habilis.nn.memory import Encoder
from habilis.nn.network import Trunk
from habilis.policies.action_filter import PLAIN, ActionConfig
from habilis.policies.action_map import ActionMap
from habilis.policies.batch import NOISE, encode, fresh_generator, fresh_memory, predict, remember, with_memory

ActionDistribution = PolicyDistribution | SquashedGaussian


class StochasticPolicy(nn.Module):
    """Observation to action distribution.

    Args:
        spec: what the environment gives and takes.
        encoder: from observation groups to one vector; owns the normaliser and the memory.
        trunk: from that vector to features.
        head: from features to an action distribution.
        action: what becomes of an action before the environment takes it.
    """

    def __init__(self, spec: EnvSpec, encoder: Encoder, trunk: Trunk, head: Head, action: ActionConfig = PLAIN) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.trunk = trunk
        self.head: Head = head
        self.action_map = ActionMap(spec.action, action, squash=head.squashed)
        self._draw = Recorded(self._compute, arrays=True)

    def distribution(self, obs: Obs) -> ActionDistribution:
        """Return the distribution over actions, in the policy's units, for raw observations `[..., *shape]`."""
        return self.head(self.trunk(self.encoder(obs)))  # type: ignore[no-any-return]

    def fresh_memory(self, rows: int) -> dict[str, Tensor]:
        """Return what `forward` takes when `rows` episodes begin."""
        return fresh_memory(self.encoder, rows, self.action_map.filter)

    def forward(self, obs: Obs, memory: Tree | None = None) -> tuple[Tensor, Tree | None]:
        """Return the deterministic action in the environment's units, and the memory for the next step."""
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
            memory: what was remembered of the steps before; None for fresh episodes.
            deterministic: take the mode instead of drawing.
            generator: source of the draw; None draws from the operating system's entropy, each time anew.
        """
        data = with_memory(self.encoder, obs, memory, self.action_map.filter)
        if deterministic:
            with torch.no_grad():
                step = self._compute(data)
            return PolicyStep(step["action"], step["env_action"], None, remember(memory, step))
        if generator is None:
            generator = fresh_generator(next(self.parameters()).device)
        rows, head = len(data[self.encoder.names[0]]), self.head
        if head.sde is None:
            noise = head.noise(rows, generator)
        else:
            held = head.sde.hold(memory or {}, rows, generator)
            noise, memory = held[head.sde.MATRIX], {**(memory or {}), **held}
        drawn = self._draw({NOISE: noise} | data)
        return PolicyStep(drawn["action"], drawn["env_action"], drawn["log_prob"], remember(memory, drawn))

    def _compute(self, data: Tree) -> dict[str, Tensor]:
        """Turn observations, what is remembered and, where there is any, noise into actions."""
        features, results = encode(self.encoder, data)
        features = self.trunk(features)
        if NOISE not in data:
            action = self.head(features).mode()
        else:
            noise = data[NOISE] if self.head.sde is None else self.head.sde.standard(features, data[NOISE])
            action, results["log_prob"] = self.head(features).sample(noise)
        env_action, done = self.action_map.step(action, data)
        return {"action": action, "env_action": env_action, **results, **done}

    def predict(
        self, obs: np.ndarray | Mapping[str, np.ndarray], memory: Tree | None = None, *, deterministic: bool = True
    ) -> tuple[np.ndarray, Tree | None]:
        """NumPy in, NumPy out, for one observation or a batch of them; see `habilis.policies.batch.predict`."""
        return predict(self, obs, memory, deterministic, next(self.parameters()).device)
