"""From features to an action distribution: the last layer of a stochastic policy."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from habilis.core.config import require, require_positive
from habilis.core.specs import BoxAction, DiscreteAction, HybridAction, MultiDiscreteAction
from habilis.core.tree import Tree
from habilis.nn.constants import follow_configuration
from habilis.nn.distributions import Beta, Categorical, Gaussian, Hybrid, MultiCategorical, SquashedGaussian
from habilis.nn.init import linear

StdType = Literal["independent", "dependent", "fixed", "annealed"]
DistributionKind = Literal["gaussian", "squashed", "beta"]

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
CONCENTRATION_MAX = 1e3
"""Largest parameter of a Beta less 1, a deviation of 0.02: float32 loses the densities of narrower ones."""


class HeadConfig(Protocol):
    """What a head needs of a configuration, by the names that every on-policy algorithm gives it."""

    @property
    def distribution(self) -> DistributionKind:
        """What real-valued actions are drawn from."""

    @property
    def std_type(self) -> StdType:
        """Where the standard deviation of continuous actions comes from."""

    @property
    def init_std(self) -> float:
        """First standard deviation, in units of half the action range."""

    @property
    def final_std(self) -> float:
        """Last standard deviation under `std_type="annealed"`."""

    @property
    def use_sde(self) -> bool:
        """Explore by state-dependent noise that is held over steps (gSDE)."""

    @property
    def sde_sample_freq(self) -> int:
        """Steps over which that noise is held; -1: to the end of the episode."""


def require_head(config: HeadConfig) -> None:
    """Raise `ConfigError` unless the fields for a head are possible and go together."""
    c = config
    require_positive(c, "init_std", "final_std")
    require_sde(c)
    fits = c.std_type == "independent"
    require(fits or c.distribution != "beta", f"a Beta has no deviation of its own, got std_type {c.std_type!r}")
    require(fits or not c.use_sde, f"the deviation of use_sde is the noise's own, got std_type {c.std_type!r}")
    require(not (c.use_sde and c.distribution == "beta"), "use_sde is normal noise, of which a Beta is not made")


class SDEConfig(Protocol):
    """The fields of state-dependent exploration."""

    @property
    def use_sde(self) -> bool:
        """Whether there is any."""

    @property
    def sde_sample_freq(self) -> int:
        """Steps over which its noise is held."""


def require_sde(config: SDEConfig) -> None:
    """Raise `ConfigError` unless the steps over which noise is held are possible."""
    freq = config.sde_sample_freq
    require(freq > 0 or freq == -1, f"sde_sample_freq must be positive, or -1 for whole episodes, got {freq}")


class StateDependentNoise(nn.Module):
    """Exploration as a smooth function of the state: gSDE (Raffin et al. 2021, arXiv 2005.05719).

    The noise of an action is linear in the features, by a matrix of normal numbers that is held over steps: it changes
    with the state and not by chance. Over all matrices it is a normal distribution whose variance is
    `features^2 @ deviations^2` (equation 7), by which densities are told; deviations are learnt, one for each feature
    and action.

    Args:
        in_dim: width of the features.
        action_dim: number of values in an action.
        init_std: first deviation of an action where every feature is 1 or -1.
        sample_freq: steps over which a matrix is held; -1: to the end of the episode.
    """

    MATRIX, AGE = "sde_matrix", "sde_age"
    """Names in a policy's memory: `[N, in_dim, action_dim]` normal numbers, and `[N]` for how many steps already."""

    def __init__(self, in_dim: int, action_dim: int, init_std: float, sample_freq: int) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((in_dim, action_dim), math.log(init_std / math.sqrt(in_dim))))
        self.sample_freq = sample_freq

    def forward(self, features: Tensor) -> Tensor:
        """Return the logarithm of the deviation `[..., action_dim]`."""
        variance = features.square() @ (2 * self.log_std).exp()
        return 0.5 * (variance + 1e-6).log()

    def standard(self, features: Tensor, matrix: Tensor) -> Tensor:
        """Return the noise that a matrix makes of features, in units of its deviation: `[N, action_dim]`."""
        noise = (features.unsqueeze(-2) @ (self.log_std.exp() * matrix)).squeeze(-2)
        return noise * torch.exp(-self(features))

    def hold(self, memory: Tree, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is remembered for one step more, with new matrices where an episode or their time begins."""
        device = generator.device
        age = memory.get(self.AGE, torch.zeros(rows, dtype=torch.long, device=device))
        begins = age == 0 if self.sample_freq == -1 else age % self.sample_freq == 0
        matrix = memory.get(self.MATRIX)
        if matrix is None or begins.any():
            new = torch.randn(rows, *self.log_std.shape, generator=generator, device=device)
            matrix = new if matrix is None else torch.where(begins.view(-1, 1, 1), new, matrix)
        return {self.MATRIX: matrix, self.AGE: age + 1}


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
        squashed: whether the hyperbolic tangent of an action is what counts.
        sde: where the deviation comes from instead.
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        std_type: StdType,
        init_std: float,
        final_std: float,
        generator: torch.Generator,
        *,
        squashed: bool = False,
        sde: StateDependentNoise | None = None,
    ) -> None:
        super().__init__()
        self.mean = linear(in_dim, action_dim, generator, gain=0.01)
        self.squashed = squashed
        self.sde = sde
        self.std_type = std_type
        self.log_std_range = (math.log(init_std), math.log(final_std))
        initial = torch.full((action_dim,), math.log(init_std))
        if sde is None and std_type == "independent":
            self.log_std: Tensor | nn.Parameter = nn.Parameter(initial)
        elif sde is None:
            self.register_buffer("log_std", initial)
            if std_type == "fixed":
                follow_configuration(self, "log_std")
        self.log_std_of = linear(in_dim, action_dim, generator, gain=0.01) if std_type == "dependent" else None

    def forward(self, features: Tensor) -> Gaussian:
        """Return the distribution for features `[..., in_dim]`."""
        if self.sde is not None:
            log_std = self.sde(features.detach())  # which are learnt for the mean and not for the noise
        elif self.log_std_of is not None:
            log_std = (self.log_std + self.log_std_of(features)).clamp(LOG_STD_MIN, LOG_STD_MAX)
        else:
            log_std = self.log_std
        return Gaussian(self.mean(features), log_std, squashed=self.squashed)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `Gaussian.sample` turns into `rows` actions."""
        return torch.randn(rows, self.mean.out_features, generator=generator, device=generator.device)

    def anneal(self, progress: float) -> None:
        """Set the annealed deviation for `progress` in [0, 1]; the other kinds stay as they are."""
        if self.std_type == "annealed":
            first, last = self.log_std_range
            self.log_std.fill_(first + (last - first) * min(progress, 1.0))


class BetaHead(nn.Module):
    """A Beta distribution in each dimension, with one peak: its parameters are 1 and what the features add to it.

    Args:
        in_dim: width of the features.
        action_dim: number of values in an action.
        init_std: first standard deviation, in units of half the action range; at most 0.48, that of the first
            distribution where there is nothing to say.
        generator: source of the initial weights.
    """

    squashed = False
    sde = None

    def __init__(self, in_dim: int, action_dim: int, init_std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.out = linear(in_dim, 2 * action_dim, generator, gain=0.01)
        # two equal parameters of 1 + x have the variance 1 / (3 + 2 x)
        excess = min(max((init_std**-2 - 3) / 2, math.log(2)), CONCENTRATION_MAX)
        nn.init.constant_(self.out.bias, excess + math.log(-math.expm1(-excess)))

    def forward(self, features: Tensor) -> Beta:
        """Return the distribution for features `[..., in_dim]`."""
        return Beta(*F.softplus(self.out(features)).clamp(1e-6, CONCENTRATION_MAX).chunk(2, -1))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `Beta.sample` turns into `rows` actions."""
        shape, device = (rows, self.action_dim, *Beta.NOISE[:-1]), generator.device
        normal = torch.randn(shape, generator=generator, device=device)
        return torch.stack([normal, torch.rand(shape, generator=generator, device=device)], -1)


class SquashedGaussianHead(nn.Module):
    """A tanh-squashed normal distribution with state-dependent mean and deviation, as in SAC.

    Args:
        in_dim: width of the features.
        action_dim: number of values in an action.
        generator: source of the initial weights.
        sde: where the deviation comes from, else from a linear layer. Features are learnt for its sake as well.
    """

    squashed = False
    """It squashes its actions itself."""

    def __init__(
        self, in_dim: int, action_dim: int, generator: torch.Generator, sde: StateDependentNoise | None = None
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.sde = sde
        self.out = linear(in_dim, 2 * action_dim if sde is None else action_dim, generator)

    def forward(self, features: Tensor) -> SquashedGaussian:
        """Return the distribution for features `[..., in_dim]`."""
        if self.sde is not None:
            return SquashedGaussian(self.out(features), self.sde(features))
        mean, log_std = self.out(features).chunk(2, -1)
        return SquashedGaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `SquashedGaussian.sample` turns into `rows` actions."""
        return torch.randn(rows, self.action_dim, generator=generator, device=generator.device)


class CategoricalHead(nn.Module):
    """One choice or several, from logits that are a linear function of the features."""

    squashed = False
    sde = None

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


class HybridHead(nn.Module):
    """Real values and choices from the same features."""

    sde = None

    def __init__(self, real: GaussianHead | BetaHead, choices: CategoricalHead) -> None:
        super().__init__()
        self.real = real
        self.choices = choices
        self.squashed = real.squashed

    def forward(self, features: Tensor) -> Hybrid:
        """Return the distribution for features `[..., in_dim]`."""
        return Hybrid(self.real(features), self.choices(features))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what `Hybrid.sample` turns into `rows` actions."""
        return torch.cat([part.noise(rows, generator).flatten(1) for part in (self.real, self.choices)], -1)


Head = GaussianHead | BetaHead | SquashedGaussianHead | CategoricalHead | HybridHead
"""Each says whether its real values are `squashed` by whoever takes them, and what its noise is if not independent."""


def make_head(
    action: BoxAction | DiscreteAction | MultiDiscreteAction | HybridAction,
    in_dim: int,
    config: HeadConfig,
    generator: torch.Generator,
) -> Head:
    """Build the head of an on-policy algorithm.

    Args:
        action: what the environment takes.
        in_dim: width of the features.
        config: which distribution real values are drawn from.
        generator: source of the initial weights.

    Raises:
        ConfigError: the distribution is bounded and the actions are not, or what is for real values meets choices.
    """
    if isinstance(action, HybridAction):
        real = make_head(action.box, in_dim, config, generator)
        assert isinstance(real, GaussianHead | BetaHead)
        require(not config.use_sde, "use_sde is for real-valued actions, and some of these are choices: leave it out")
        return HybridHead(real, CategoricalHead(in_dim, action.choices, generator))
    if not isinstance(action, BoxAction):
        require(not config.use_sde, "use_sde is for real-valued actions, and these are choices: leave it out")
        fits = config.std_type == "independent"
        require(fits, f"std_type {config.std_type!r} is for real-valued actions, and these are choices: leave it out")
        require(config.init_std == 1, "init_std is for real-valued actions, and these are choices: leave it out")
        only = f"distribution {config.distribution!r} is for real-valued actions, and these are choices: leave it out"
        require(config.distribution == "gaussian", only)
        return CategoricalHead(in_dim, action, generator)
    require(
        config.distribution == "gaussian" or bool(action.bounded.all()),
        f"distribution {config.distribution!r} needs bounds of every action and some have none: use 'gaussian'",
    )
    if config.distribution == "beta":
        return BetaHead(in_dim, action.dim, config.init_std, generator)
    return GaussianHead(
        in_dim,
        action.dim,
        config.std_type,
        config.init_std,
        config.final_std,
        generator,
        squashed=config.distribution == "squashed",
        sde=make_sde(in_dim, action.dim, config.init_std, config),
    )


def make_sde(in_dim: int, action_dim: int, init_std: float, config: SDEConfig) -> StateDependentNoise | None:
    """Build state-dependent exploration where it is wanted; see `StateDependentNoise`."""
    return StateDependentNoise(in_dim, action_dim, init_std, config.sde_sample_freq) if config.use_sde else None


def anneal(head: Head, progress: float) -> None:
    """Set what a head anneals for `progress` in [0, 1] of the run."""
    for part in head.modules():
        if isinstance(part, GaussianHead):
            part.anneal(progress)
