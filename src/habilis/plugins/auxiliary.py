"""What an encoder of images learns besides: a loss of its own on the pictures that the algorithm learns from.

`AuxiliaryLoss` is the plugin around any `Objective`: it takes one gradient step on the objective's own networks and one
on the policy's image encoder, with an optimiser for each, after every update of the algorithm. Where critics share the
encoder with the policy, as those of SAC and TD3 do, it is theirs that learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from habilis.core.batches import VALID, RolloutBatch, TransitionBatch
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.state import bundle_state, load_bundle
from habilis.core.tree import Tree
from habilis.core.types import Metrics, State
from habilis.nn.encoder import ImageEncoder
from habilis.nn.memory import single
from habilis.nn.optimizer import Optimizer


class AuxiliaryConfig(Protocol):
    """What every auxiliary loss is configured by."""

    @property
    def learning_rate(self) -> float:
        """Adam's step size, of the encoder and of the objective's own networks."""

    @property
    def batch_size(self) -> int:
        """Steps of a rollout in a gradient step; batches out of replay are taken whole."""


class Objective(Protocol):
    """What is learnt; an `nn.Module` of the networks that it needs besides the encoder."""

    def loss(self, encoder: ImageEncoder, data: Tree, generator: torch.Generator) -> Tensor:
        """Return the loss, 0-d.

        Args:
            encoder: the policy's.
            data: `image` and `next_image` `[B, *shape]` uint8, and `action` `[B, ...]` in the policy's units.
            generator: source of whatever is random.
        """
        ...

    def after_step(self, encoder: Tensor) -> None:
        """Follow what has been learnt; `encoder` is the vector of the encoder's parameters."""
        ...


@dataclass
class AuxiliaryState:
    """Everything that learning changes but the encoder, which is the algorithm's."""

    objective: Any
    optimizer: Optimizer
    encoder_optimizer: Optimizer


class AuxiliaryLoss:
    """Learns an objective, and with it the policy's image encoder.

    Args:
        name: of the plugin.
        objective: what is learnt.
        image: the observation group that is encoded.
        encoder: the policy's, of this group.
        config: rate and batch size.
        streams: the run's random streams.
    """

    def __init__(
        self,
        name: str,
        objective: Any,
        image: str,
        encoder: ImageEncoder,
        config: AuxiliaryConfig,
        streams: RandomStreams,
    ) -> None:
        device = next(encoder.parameters()).device
        objective.to(device)
        self.name = name
        self.config = config
        self.image, self.encoder = image, encoder
        self.generator = streams.torch(f"plugin/{name}", device)
        self.state = AuxiliaryState(
            objective=objective,
            optimizer=Optimizer((p for p in objective.parameters() if p.requires_grad), config.learning_rate),
            # a part of the vector in which the algorithm's own optimiser has them
            encoder_optimizer=Optimizer(encoder.parameters(), config.learning_rate),
        )

    def transform(self, batch: Any) -> Any:
        """Return the batch as it is."""
        return batch

    def update(self, batch: TransitionBatch | RolloutBatch) -> Metrics:
        """Take a gradient step on a batch out of replay, or one pass over a rollout in parts of `batch_size` steps."""
        s = self.state
        losses = []
        for data in self._parts(batch):
            loss = s.objective.loss(self.encoder, data, self.generator)
            own, seen = s.optimizer.gradient(loss), s.encoder_optimizer.gradient(loss)
            s.optimizer.step(own["gradient"], own["grad_norm"])
            s.encoder_optimizer.step(seen["gradient"], seen["grad_norm"])
            s.objective.after_step(s.encoder_optimizer.flat)
            losses.append(loss.detach())
        return {f"{self.name}_loss": torch.stack(losses).mean()} if losses else {}

    def _parts(self, batch: TransitionBatch | RolloutBatch) -> Iterator[Tree]:
        """Yield what `Objective.loss` takes."""
        if isinstance(batch, RolloutBatch):
            yield from rollout_parts(batch, self.image, self.config.batch_size, self.generator)
        else:
            # of windows the newest step
            seen = ((o[self.image], VALID in o) for o in (batch.obs, batch.next_obs))
            image, following = (images[:, -1] if windows else images for images, windows in seen)
            yield {"image": image, "action": batch.action, "next_image": following}

    def state_dict(self) -> State:
        """Return everything that learning changes but the encoder."""
        return bundle_state(self.state)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        load_bundle(self.state, state)


def rollout_parts(batch: RolloutBatch, image: str, size: int, generator: torch.Generator) -> Iterator[Tree]:
    """Yield the valid steps of a rollout in an order drawn anew, `size` at a time and the rest left out.

    Each part has `image`, `action` and `next_image`, the true successor also at an episode's end.
    """
    images, actions, last = batch.obs[image], batch.actions.flatten(0, 1), batch.final_obs[image]
    num_envs = batch.valid.shape[1]
    ends = torch.full_like(batch.valid, -1, dtype=torch.long)
    ends[batch.final_index] = torch.arange(len(last), device=last.device)
    steps = batch.valid.flatten().nonzero().squeeze(1)
    steps = steps[torch.randperm(len(steps), generator=generator, device=steps.device)]
    size = min(size, len(steps))
    flat, ends = images.flatten(0, 1), ends.flatten()
    for part in steps.split(size)[: len(steps) // size] if size else ():
        following, end = flat[part + num_envs], ends[part]
        following[end >= 0] = last[end[end >= 0]]
        yield {"image": flat[part], "action": actions[part], "next_image": following}


def image_encoder(policy: Any, plugin: str) -> tuple[str, ImageEncoder]:
    """Return the first image that a policy sees, by its group, and what encodes it.

    Raises:
        ConfigError: it sees none.
    """
    images = single(policy.encoder).images
    if not images:
        raise ConfigError(f"{plugin} helps to see and the policy of {policy.spec.id} sees no image: leave it out")
    name: str = next(iter(images))
    found: ImageEncoder = images[name]
    return name, found
