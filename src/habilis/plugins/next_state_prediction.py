"""An encoder of images whose features tell those of the next picture (Ni et al. 2024, arXiv 2401.08898).

A model of latent dynamics predicts the features of what follows from those of the picture and the action. Encoder and
model learn by the same loss, the angle between prediction and features (Schwarzer et al. 2021, SPR), and no gradient
goes to the features that are predicted: without that the encoder would make all pictures alike (Tang et al. 2023). With
n-step targets what follows is the picture n steps later, of which only the first action is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from habilis.core.config import coerce_fields, require_positive
from habilis.core.random import RandomStreams
from habilis.core.specs import ActionSpec, DiscreteAction, action_parts
from habilis.core.tree import Tree
from habilis.functional.representation import prediction_loss
from habilis.nn.encoder import ImageEncoder
from habilis.nn.mlp import MLP
from habilis.plugins.auxiliary import AuxiliaryLoss, image_encoder


@dataclass(frozen=True, kw_only=True)
class NextStatePredictionConfig:
    """How the features of the next picture are predicted."""

    learning_rate: float = 1e-3
    """Adam's step size, of the encoder and of the model."""
    batch_size: int = 256
    """Steps of a rollout in a gradient step; batches out of replay are taken whole."""
    hidden: int = 256
    """Width of the model's hidden layer."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require_positive(self, "learning_rate", "batch_size", "hidden")


class NextStatePrediction(nn.Module):
    """The objective: see the file."""

    def __init__(
        self, config: NextStatePredictionConfig, action: ActionSpec, features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.action = action
        in_dim = features + action_vector(action, torch.zeros(1, *_shape(action))).shape[1]
        self.model = MLP(in_dim, (config.hidden,), features, "relu", generator)

    def predict(self, features: Tensor, action: Tensor) -> Tensor:
        """Return the features `[B, F]` that the model expects after features `[B, F]` and actions."""
        return self.model(torch.cat([features, action_vector(self.action, action)], -1))  # type: ignore[no-any-return]

    def loss(self, encoder: ImageEncoder, data: Tree, generator: torch.Generator) -> Tensor:
        """Return how far the prediction is from the features of what followed."""
        with torch.no_grad():
            following = encoder(data["next_image"])
        return prediction_loss(self.predict(encoder(data["image"]), data["action"]), following)

    def after_step(self, encoder: Tensor) -> None:
        """Do nothing."""


def action_vector(spec: ActionSpec, action: Tensor) -> Tensor:
    """Return actions as float vectors `[B, dim]`: real values as they are, choices as one-hot codes."""
    box, choices = action_parts(spec)
    values = 0 if box is None else box.dim
    parts = [action[:, :values]] if values else []
    if isinstance(choices, DiscreteAction):
        parts.append(F.one_hot(action.long(), choices.n).float())
    elif choices is not None:
        columns = action[:, values:].long().unbind(1)
        parts += [F.one_hot(x, n).float() for x, n in zip(columns, choices.nvec, strict=True)]
    return torch.cat(parts, -1)


def _shape(spec: ActionSpec) -> tuple[int, ...]:
    """Return the shape of one action."""
    box, choices = action_parts(spec)
    if isinstance(choices, DiscreteAction):
        return ()
    return ((0 if box is None else box.dim) + (0 if choices is None else len(choices.nvec)),)


def make_next_state_prediction(config: NextStatePredictionConfig, policy: Any, streams: RandomStreams) -> AuxiliaryLoss:
    """Build the plugin `next_state_prediction`."""
    image, encoder = image_encoder(policy, "next_state_prediction")
    objective = NextStatePrediction(
        config, policy.spec.action, encoder.out_dim, streams.torch("plugin/next_state_prediction/init")
    )
    return AuxiliaryLoss("next_state_prediction", objective, image, encoder, config, streams)
