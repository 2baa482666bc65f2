"""Which network stands between an encoder and an output: one description for policies, values and critics.

Every network answers to the same four calls, so that algorithms need not ask which one it is. `net(x, noise)` is how
it acts: without noise nothing is dropped, and statistics are the running ones. `net.learn(x, noise)` is how it learns,
and returns the batch's statistics beside the result; both are straight-line. `net.noise(rows, generator)` draws the
noise, of no values where nothing is dropped. `net.after_step(statistics)` is called once the optimiser has stepped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from habilis.core.config import coerce_fields, require, require_not_negative
from habilis.nn.activations import Activation
from habilis.nn.mlp import MLP, EnsembleMLP
from habilis.nn.residual import ResidualNetwork

NetworkKind = Literal["mlp", "simba", "simba_v2"]

Trunk = MLP | ResidualNetwork
"""From `[..., in]` to features `[..., out_dim]`."""

Ensemble = EnsembleMLP | ResidualNetwork
"""From `[B, in]` to the outputs `[copies, B, out_dim]` of several networks."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The hidden part of a network."""

    kind: NetworkKind = "mlp"
    """Layers one after the other, or the residual blocks of SimBa or SimBaV2."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers; of a residual network the width of its features, once for each block."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    layer_norm: bool = False
    """Layer normalisation before each activation of an MLP; residual networks have theirs in any case."""
    dropout: float = 0.0
    """Probability with which a value of a hidden layer, of a block its wide one, is left out while learning."""
    batch_renorm: bool = False
    """Batch renormalisation before each layer, of SimBa in place of its own."""
    renorm_warmup: int = 100_000
    """Updates in which batch renormalisation is plain batch normalisation."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require(all(width > 0 for width in self.hidden), f"hidden widths must be positive, got {self.hidden}")
        require(0 <= self.dropout < 1, f"dropout must be at least 0 and less than 1, got {self.dropout}")
        require_not_negative(self, "renorm_warmup")
        others = "layer_norm" if self.layer_norm else "dropout" if self.dropout else None
        require(
            not (self.batch_renorm and others),
            f"batch_renorm and {others} disturb each other: the statistics would be those of something else; "
            "choose one of them",
        )
        require(
            not (self.batch_renorm and self.kind == "simba_v2"),
            "simba_v2 keeps features at length 1, which batch renormalisation would undo: choose simba, or switch "
            "off what the algorithm gives by --algo.no-batch-renorm",
        )
        if self.kind != "mlp":
            require(
                len(set(self.hidden)) == 1,
                f"hidden, and critic_hidden where it is given, of a {self.kind} is one width, repeated for each block, "
                f"such as (128, 128), got {self.hidden}",
            )


def policy_network(c: Any) -> NetworkConfig:
    """Return a policy's network by those fields of its algorithm that are named as here; `network` is the kind.

    What regularises critics alone, `layer_norm` and `dropout`, is left out.
    """
    return NetworkConfig(
        kind=c.network, hidden=c.hidden, activation=c.activation, batch_renorm=getattr(c, "batch_renorm", False)
    )


def critic_network(c: Any) -> NetworkConfig:
    """Return the network of each critic by the same fields, `critic_hidden` instead of `hidden` where it is given."""
    hidden = c.hidden if c.critic_hidden is None else c.critic_hidden
    return replace(policy_network(c), hidden=hidden, layer_norm=c.layer_norm, dropout=getattr(c, "dropout", 0.0))


def make_trunk(config: NetworkConfig, in_dim: int, generator: torch.Generator, *, orthogonal: bool = False) -> Trunk:
    """Build one network that ends with its features.

    Args:
        config: which network.
        in_dim: width of the input.
        generator: source of the initial weights.
        orthogonal: orthogonal initialisation of an MLP; residual networks begin as their papers say.
    """
    c = config
    if c.kind != "mlp":
        return _make_residual(c, None, in_dim, None, generator)
    return MLP(
        in_dim,
        c.hidden,
        None,
        c.activation,
        generator,
        orthogonal=orthogonal,
        layer_norm=c.layer_norm,
        dropout=c.dropout,
        batch_renorm=c.batch_renorm,
        renorm_warmup=c.renorm_warmup,
    )


def make_ensemble(
    config: NetworkConfig, copies: int, in_dim: int, out_dim: int, generator: torch.Generator
) -> Ensemble:
    """Build `copies` networks with linear outputs of width `out_dim`, computed as one."""
    c = config
    if c.kind != "mlp":
        return _make_residual(c, copies, in_dim, out_dim, generator)
    return EnsembleMLP(
        copies,
        in_dim,
        c.hidden,
        out_dim,
        c.activation,
        generator,
        layer_norm=c.layer_norm,
        dropout=c.dropout,
        batch_renorm=c.batch_renorm,
        renorm_warmup=c.renorm_warmup,
    )


def _make_residual(
    c: NetworkConfig, copies: int | None, in_dim: int, out_dim: int | None, generator: torch.Generator
) -> ResidualNetwork:
    assert c.kind != "mlp"
    warmup = c.renorm_warmup if c.batch_renorm else None
    return ResidualNetwork(
        c.kind, copies, in_dim, c.hidden, out_dim, c.activation, generator, dropout=c.dropout, renorm_warmup=warmup
    )
