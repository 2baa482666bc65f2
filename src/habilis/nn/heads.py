"""From features to an action distribution: the last layer of a stochastic policy."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.specs import DiscreteAction, MultiDiscreteAction
from habilis.nn.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian
from habilis.nn.init import linear

StdType = Literal["independent", "dependent", "fixed", "annealed"]

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class GaussianHead(nn.Module):
    """A normal distribution whose mean is a linear function of the features.

    Args:
        in_dim: width of the features.
        action_dim: number of values in an action.
        std_type: where the standard deviation comes from: `independent` of the state and learnt; `dependent` on it
            through a linear layer; `fixed` at `init_std`; `annealed` from `init_std` to `final_std`, linearly in its
            logarithm, as training goes on.
        init_std: first standard deviation, in units of half the action range.
        final_std: last one under `annealed`.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        std_type: StdType,
        init_std: float,
        final_std: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.mean = linear(in_dim, action_dim, generator, gain=0.01)
        self.std_type = std_type
        self.log_std_range = (math.log(init_std), math.log(final_std))
        initial = torch.full((action_dim,), math.log(init_std))
        if std_type == "independent":
            self.log_std: Tensor | nn.Parameter = nn.Parameter(initial)
        else:
            self.register_buffer("log_std", initial)
        self.log_std_of = linear(in_dim, action_dim, generator, gain=0.01) if std_type == "dependent" else None

    def forward(self, features: Tensor) -> Gaussian:
        """Return the distribution for features `[..., in_dim]`."""
        log_std = self.log_std
        if self.log_std_of is not None:
            log_std = (log_std + self.log_std_of(features)).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return Gaussian(self.mean(features), log_std)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `Gaussian.sample` turns into `rows` actions."""
        return torch.randn(rows, self.mean.out_features, generator=generator, device=generator.device)

    def anneal(self, progress: float) -> None:
        """Set the annealed deviation for `progress` in [0, 1]; the other kinds stay as they are."""
        if self.std_type == "annealed":
            first, last = self.log_std_range
            self.log_std.fill_(first + (last - first) * min(progress, 1.0))


class SquashedGaussianHead(nn.Module):
    """A tanh-squashed normal distribution with state-dependent mean and deviation, as in SAC."""

    def __init__(self, in_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.out = linear(in_dim, 2 * action_dim, generator)

    def forward(self, features: Tensor) -> SquashedGaussian:
        """Return the distribution for features `[..., in_dim]`."""
        mean, log_std = self.out(features).chunk(2, -1)
        return SquashedGaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `SquashedGaussian.sample` turns into `rows` actions."""
        return torch.randn(rows, self.action_dim, generator=generator, device=generator.device)


class CategoricalHead(nn.Module):
    """One choice or several, from logits that are a linear function of the features."""

    def __init__(self, in_dim: int, action: DiscreteAction | MultiDiscreteAction, generator: torch.Generator) -> None:
        super().__init__()
        self.nvec = action.nvec if isinstance(action, MultiDiscreteAction) else None
        size = sum(action.nvec) if isinstance(action, MultiDiscreteAction) else action.n
        self.logits = linear(in_dim, size, generator, gain=0.01)

    def forward(self, features: Tensor) -> Categorical | MultiCategorical:
        """Return the distribution for features `[..., in_dim]`."""
        logits = self.logits(features)
        return Categorical(logits) if self.nvec is None else MultiCategorical(logits, self.nvec)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `Categorical.sample` turns into `rows` choices."""
        return torch.rand(rows, self.logits.out_features, generator=generator, device=generator.device)


Head = GaussianHead | SquashedGaussianHead | CategoricalHead
