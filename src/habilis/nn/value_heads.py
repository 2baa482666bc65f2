"""From features to the return of every action: its mean, or its whole distribution in one of three descriptions.

A head gives `[B, A, K]`: K numbers for each of A actions, which are the mean alone (K = 1), the logits of fixed atoms
(C51, Bellemare et al. 2017), values of fixed quantiles (QR-DQN, Dabney et al. 2018a) or of quantiles that are asked for
(IQN, Dabney et al. 2018b). It knows how to rank actions by them, `scores`, and how wrong they are, `loss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from habilis.core.config import require
from habilis.functional.quantiles import midpoints, quantile_loss
from habilis.functional.value_losses import (
    categorical_cvar,
    categorical_loss,
    categorical_projection,
    quantile_cvar,
    td_loss,
)
from habilis.nn.activations import ACTIVATIONS, Activation
from habilis.nn.constants import follow_configuration
from habilis.nn.init import linear
from habilis.nn.noisy import NoisyLinear

COSINES = 64
"""Numbers in the embedding of a fraction (implicit quantiles)."""


class Stream(nn.Module):
    """A hidden layer (or none) and a linear output, `[..., in] -> [..., out]`; both with noisy weights if asked for.

    Args:
        in_dim: width of the input.
        hidden: width of the hidden layer; None for no such layer.
        out_dim: width of the output.
        activation: of the hidden layer.
        noisy: whether weights are noisy.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int | None,
        out_dim: int,
        activation: Activation,
        noisy: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        widths = [in_dim, out_dim] if hidden is None else [in_dim, hidden, out_dim]
        self.layers = nn.ModuleList(
            NoisyLinear(i, o, generator) if noisy else linear(i, o, generator) for i, o in pairwise(widths)
        )
        self.activation = ACTIVATIONS[activation]()
        self.noise_sizes = [layer.noise_size for layer in self.layers if isinstance(layer, NoisyLinear)]

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Apply the layers; `noise` is that of all of them in one vector, None for mean weights."""
        parts = noise.split(self.noise_sizes, -1) if noise is not None else [None] * len(self.layers)
        for k, (layer, part) in enumerate(zip(self.layers, parts, strict=True)):
            x = self.activation(x) if k else x
            x = layer(x, part) if isinstance(layer, NoisyLinear) else layer(x)
        return x


class Streams(nn.Module):
    """`[..., in] -> [..., A, K]` by one stream, or by two whose sum it is (dueling, Wang et al. 2016, equation 9).

    The dueling streams are the value of the state `[..., 1, K]` and the advantages of the actions, whose mean over the
    actions is subtracted.

    Args:
        in_dim: width of the features.
        hidden: width of each stream's hidden layer; None for none.
        actions: A.
        outputs: K.
        dueling: two streams.
        activation: of the hidden layer.
        noisy: whether weights are noisy.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int | None,
        actions: int,
        outputs: int,
        *,
        dueling: bool,
        activation: Activation,
        noisy: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.in_dim, self.actions, self.outputs = in_dim, actions, outputs
        self.advantage = Stream(in_dim, hidden, actions * outputs, activation, noisy, generator)
        self.value = Stream(in_dim, hidden, outputs, activation, noisy, generator) if dueling else None
        self.advantage_noise = sum(self.advantage.noise_sizes)
        self.noise_size = self.advantage_noise + (sum(self.value.noise_sizes) if self.value is not None else 0)

    def forward(self, features: Tensor, noise: Tensor | None) -> Tensor:
        """Apply the streams; `noise` is `[..., noise_size]` for weights of each row's own or `[noise_size]`."""
        own = None if noise is None else noise[..., : self.advantage_noise]
        advantage = self.advantage(features, own).unflatten(-1, (self.actions, self.outputs))
        if self.value is None:
            return advantage  # type: ignore[no-any-return]
        rest = None if noise is None else noise[..., self.advantage_noise :]
        value = self.value(features, rest).unsqueeze(-2)
        return value + advantage - advantage.mean(-2, keepdim=True)  # type: ignore[no-any-return]


Backup = Callable[[Tensor], Tensor]
"""From returns of the best next action, `[B, K]` or `[K]`, to what those of the action taken should be, `[B, K]`."""


class ValueHead(Protocol):
    """What a policy and a learner ask of a head, which is an `nn.Module`."""

    streams: Streams
    drawn: int
    """Quantiles to draw for a loss, of the return that is learnt and as many of its target; 0 where they are fixed."""

    def __call__(self, features: Tensor, noise: Tensor | None = None, fractions: Tensor | None = None) -> Tensor:
        """Return `[B, A, K]` for features `[B, F]`, the noise of `Streams` and, where they are drawn, which quantiles.

        `fractions` is `[B, K]` in (0, 1); None for those by which actions are ranked.
        """
        ...

    def scores(self, values: Tensor) -> Tensor:
        """Return `[B, A]`, by which actions are ranked: the mean return, or that of its worst fraction."""
        ...

    def rank_by_risk(self, level: float) -> None:
        """Rank actions from now on by the mean of this share of the worst returns, in (0, 1]."""
        ...

    def loss(
        self, values: Tensor, next_values: Tensor, backup: Backup, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss `[B]` and the size of the error `[B]`, by which transitions are prioritised.

        `values` and `next_values` are `[B, K]`, of the action taken and of the best next one.
        """
        ...


class MeanHead(nn.Module):
    """The mean return: K = 1.

    Args:
        streams: from features to outputs.
        threshold: of Huber's loss; None for the squared error.
    """

    drawn = 0

    def __init__(self, streams: Streams, threshold: float | None) -> None:
        super().__init__()
        self.streams = streams
        self.threshold = threshold

    def forward(self, features: Tensor, noise: Tensor | None = None, fractions: Tensor | None = None) -> Tensor:
        """Return the means `[B, A, 1]`."""
        return self.streams(features, noise)  # type: ignore[no-any-return]

    def scores(self, values: Tensor) -> Tensor:
        """Return the means."""
        return values.squeeze(-1)

    def rank_by_risk(self, level: float) -> None:
        """Refuse all but the mean."""
        require(level == 1, "a risk level needs a distribution of returns, and this policy has learnt their mean alone")

    def loss(
        self, values: Tensor, next_values: Tensor, backup: Backup, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of the temporal difference, and its absolute value."""
        target = backup(next_values)
        loss = td_loss(values, target, self.threshold)
        return loss.squeeze(1), (target - values.detach()).abs().squeeze(1)


class AtomsHead(nn.Module):
    """Logits of evenly spaced atoms (C51).

    Args:
        streams: from features to outputs, one an atom.
        v_min: the first atom: the least return that can be told.
        v_max: the last one.
        risk_level: share of the worst returns whose mean ranks the actions; 1 for all.
    """

    atoms: Tensor
    drawn = 0

    def __init__(self, streams: Streams, v_min: float, v_max: float, risk_level: float) -> None:
        super().__init__()
        self.streams = streams
        self.risk_level = risk_level
        self.register_buffer("atoms", torch.linspace(v_min, v_max, streams.outputs))
        follow_configuration(self, "atoms")

    def forward(self, features: Tensor, noise: Tensor | None = None, fractions: Tensor | None = None) -> Tensor:
        """Return the logits `[B, A, atoms]`."""
        return self.streams(features, noise)  # type: ignore[no-any-return]

    def rank_by_risk(self, level: float) -> None:
        """Rank actions from now on by the mean of this share of the worst returns."""
        self.risk_level = level

    def scores(self, values: Tensor) -> Tensor:
        """Return the mean over the atoms, or that of the worst part."""
        probs = values.softmax(-1)
        return probs @ self.atoms if self.risk_level == 1 else categorical_cvar(self.atoms, probs, self.risk_level)

    def loss(
        self, values: Tensor, next_values: Tensor, backup: Backup, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy with the projected target, and the divergence from it."""
        target = categorical_projection(self.atoms, backup(self.atoms), next_values.softmax(-1))
        return categorical_loss(values, target)


class QuantileHead(nn.Module):
    """Values of evenly spaced quantiles (QR-DQN).

    Args:
        streams: from features to outputs, one a quantile.
        threshold: of Huber's loss; 0 for the plain quantile loss.
        risk_level: share of the worst returns whose mean ranks the actions; 1 for all.
    """

    fractions: Tensor
    drawn = 0

    def __init__(self, streams: Streams, threshold: float, risk_level: float) -> None:
        super().__init__()
        self.streams = streams
        self.threshold = threshold
        self.risk_level = risk_level
        self.register_buffer("fractions", midpoints(streams.outputs))

    def forward(self, features: Tensor, noise: Tensor | None = None, fractions: Tensor | None = None) -> Tensor:
        """Return the quantiles `[B, A, K]`."""
        return self.streams(features, noise)  # type: ignore[no-any-return]

    def rank_by_risk(self, level: float) -> None:
        """Rank actions from now on by the mean of this share of the worst returns."""
        self.risk_level = level

    def scores(self, values: Tensor) -> Tensor:
        """Return the mean of the quantiles, or of the worst of them."""
        return values.mean(-1) if self.risk_level == 1 else quantile_cvar(values, self.risk_level)

    def loss(
        self, values: Tensor, next_values: Tensor, backup: Backup, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the quantile loss, and the error of the mean."""
        target = backup(next_values)
        error = (target.mean(1) - values.detach().mean(1)).abs()
        return quantile_loss(values, self.fractions, target, self.threshold), error


class ImplicitQuantileHead(nn.Module):
    """Values of any quantiles (IQN): the features are multiplied by an embedding of each fraction in cosines.

    Actions are ranked by the mean of evenly spaced quantiles instead of drawn ones, so that a policy answers alike each
    time it is asked.

    Args:
        streams: from features to outputs, one for each action.
        threshold: of Huber's loss; 0 for the plain quantile loss.
        risk_level: share of the worst returns whose mean ranks the actions; 1 for all.
        drawn: quantiles drawn for a loss, of the return that is learnt and as many of its target.
        acting: quantiles by which actions are ranked.
        generator: source of the initial weights of the embedding.
    """

    fractions: Tensor
    frequencies: Tensor

    def __init__(
        self,
        streams: Streams,
        threshold: float,
        risk_level: float,
        drawn: int,
        acting: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.streams = streams
        self.threshold = threshold
        self.drawn = drawn
        self.embedding = linear(COSINES, streams.in_dim, generator)
        self.register_buffer("fractions", midpoints(acting) * risk_level)
        self.register_buffer("frequencies", math.pi * torch.arange(COSINES))
        follow_configuration(self, "fractions")

    def forward(self, features: Tensor, noise: Tensor | None = None, fractions: Tensor | None = None) -> Tensor:
        """Return the quantiles `[B, A, K]` (Dabney et al. 2018b, equation 4)."""
        which = self.fractions if fractions is None else fractions
        embedded = torch.relu(self.embedding(torch.cos(which.unsqueeze(-1) * self.frequencies)))
        # the noise is that of a row, whichever quantile is asked for
        values = self.streams(features.unsqueeze(-2) * embedded, None if noise is None else noise.unsqueeze(-2))
        return values.squeeze(-1).transpose(-1, -2)  # type: ignore[no-any-return]

    def rank_by_risk(self, level: float) -> None:
        """Rank actions from now on by quantiles of this share of the worst returns."""
        self.fractions.copy_(midpoints(len(self.fractions)) * level)

    def scores(self, values: Tensor) -> Tensor:
        """Return the mean of the quantiles; those asked for lie in the worst part already."""
        return values.mean(-1)

    def loss(
        self, values: Tensor, next_values: Tensor, backup: Backup, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the quantile loss, and the error of the mean."""
        assert fractions is not None
        target = backup(next_values)
        error = (target.mean(1) - values.detach().mean(1)).abs()
        return quantile_loss(values, fractions, target, self.threshold), error


def make_value_head(in_dim: int, actions: int, c: Any, generator: torch.Generator) -> ValueHead:
    """Build the head that DQN's configuration asks for, by those fields that are named as here.

    Args:
        in_dim: width of the features.
        actions: how many there are.
        c: `head`, what it needs, and of the streams `dueling`, `activation`, `exploration` and the last of `hidden`.
        generator: source of the initial weights.
    """
    streams = Streams(
        in_dim,
        c.hidden[-1] if c.hidden else None,
        actions,
        {"mean": 1, "categorical": c.n_atoms, "quantile": c.n_quantiles, "implicit_quantile": 1}[c.head],
        dueling=c.dueling,
        activation=c.activation,
        noisy=c.exploration == "noisy",
        generator=generator,
    )
    if c.head == "mean":
        return MeanHead(streams, c.huber_threshold)
    if c.head == "categorical":
        return AtomsHead(streams, c.v_min, c.v_max, c.risk_level)
    threshold = 1.0 if c.huber_threshold is None else c.huber_threshold  # without any they would not be quantiles
    if c.head == "quantile":
        return QuantileHead(streams, threshold, c.risk_level)
    return ImplicitQuantileHead(streams, threshold, c.risk_level, c.n_fractions, c.n_acting_fractions, generator)


def of_action(values: Tensor, action: Tensor) -> Tensor:
    """Return `[B, K]` of the actions `[B]` among `[B, A, K]`."""
    return values.gather(1, action.view(-1, 1, 1).expand(-1, 1, values.shape[2])).squeeze(1)
