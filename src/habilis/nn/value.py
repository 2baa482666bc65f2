"""The value network V(s): encoder, trunk and a linear head; and its fit to returns where the policy learns apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from habilis.core.recording import Recorded
from habilis.core.tree import Tree, tree_index, tree_part, tree_split
from habilis.core.types import Obs
from habilis.functional.policy_losses import value_loss
from habilis.nn.encoder import ObsEncoder
from habilis.nn.init import linear
from habilis.nn.memory import Encoder, MemoryEncoder
from habilis.nn.network import Trunk
from habilis.nn.optimizer import Optimizer


class ValueNetwork(nn.Module):
    """V `[...]` of observation groups `[..., *shape]`; encoder and trunk may be a policy's, which then are shared.

    Args:
        encoder: from observation groups to one vector.
        trunk: from that vector to features.
        generator: source of the initial weights of the head.
        num_envs: environments of whose episodes it remembers, where the encoder has a memory of its own.
    """

    memory: Tensor
    """`[num_envs, memory_dim]`: what it remembers of the episodes under way when a rollout begins."""

    def __init__(self, encoder: Encoder, trunk: Trunk, generator: torch.Generator, num_envs: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk = trunk
        self.head = linear(trunk.out_dim, 1, generator, gain=1.0)
        if isinstance(encoder, MemoryEncoder):
            self.register_buffer("memory", encoder.fresh(num_envs))

    def forward(self, normalized: Obs) -> Tensor:
        """Evaluate what `encoder.normalize` returned; without memory."""
        assert isinstance(self.encoder, ObsEncoder)
        return self.from_features(self.trunk(self.encoder.features(normalized)))

    @torch.no_grad()
    def evaluate(self, obs: Obs) -> Tensor:
        """Return V of raw observations, without gradients: with memory, of those that episodes begin with."""
        if isinstance(self.encoder, MemoryEncoder):
            rows = len(obs[self.encoder.names[0]])
            return self.from_features(self.trunk(self.encoder.step(obs, self.encoder.fresh(rows))[0]))
        return self(self.encoder.normalize(obs))  # type: ignore[no-any-return]

    def from_features(self, features: Tensor) -> Tensor:
        """Evaluate what the trunk returned."""
        return self.head(features).squeeze(-1)  # type: ignore[no-any-return]


class ValueRegression:
    """Fits a value network, which shares nothing with the policy, to the returns of a rollout.

    Args:
        critic: what is fitted.
        optimizer: over its parameters.
        batch_size: rows in a minibatch.
        epochs: passes over the rows.
    """

    def __init__(self, critic: ValueNetwork, optimizer: Optimizer, *, batch_size: int, epochs: int) -> None:
        self.critic = critic
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.epochs = epochs
        self._gradient = Recorded(self._compute_gradient, inference=True)

    def fit(self, rows: Tree, generator: torch.Generator) -> tuple[Tensor, int]:
        """Pass over rows, as `evaluate_rollout` makes them, in an order drawn anew each time.

        Returns:
            The mean loss over all minibatches, 0-d, and their number, which is that of the gradient steps.
        """
        # minibatches are of one size: what remains behind the last is another draw in each epoch
        data = {name: x for name, x in rows.items() if name == "return" or name.startswith("critic_obs/")}
        count = len(rows["return"])
        size, losses = min(self.batch_size, count), []
        for _ in range(self.epochs):
            shuffled = tree_index(data, torch.randperm(count, generator=generator, device=generator.device))
            for part in tree_split(shuffled, size):
                results = self._gradient(part)
                self.optimizer.step(results["gradient"], results["grad_norm"])
                losses.append(results["value_loss"])
        return torch.stack(losses).mean(), len(losses)

    def _compute_gradient(self, data: Tree) -> dict[str, Tensor]:
        """Return the gradient of half the mean squared error."""
        values = self.critic(tree_part(data, "critic_obs"))
        loss = value_loss(values, data["return"], values.detach())
        return {**self.optimizer.gradient(loss), "value_loss": loss.detach()}
