"""Action distributions: log-probability, entropy, mode, and samples made of given noise.

`torch.distributions` draws from a global state and validates on every call; these do only what policies need. Noise is
an argument, drawn by the head that made the distribution, so that sampling can be recorded (`core/recording.py`).
Shapes: parameters and actions carry any leading axes `[...]`; log-probabilities and entropies are `[...]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
"""Gauss-Hermite quadrature: a smooth function of a normal number is on average a weighted sum of 16 values."""

GAMMA_TRIES = 4
"""Proposals for each gamma variate: of a concentration above 1 one in twenty at most is rejected, all in 170,000."""
EDGE = 1e-6
"""How near a Beta's action comes to a bound, as a share of the range: what is behind it is below float32's rounding."""


class Gaussian:
    """Independent normal distributions: `mean` is `[..., dim]`, `log_std` the same or `[dim]`.

    Where `squashed`, an action counts by its hyperbolic tangent, which whoever takes it applies: densities and entropy
    are those of the tangent, in (-1, 1). Actions themselves stay what they were before it, so that their densities are
    exact however saturated the tangent is, and divergences are those of the normal distributions, which it leaves
    alone.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, *, squashed: bool = False) -> None:
        self.mean = mean
        self.log_std = log_std
        self.squashed = squashed

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn standard normal `noise` `[..., dim]` into actions, gradients passing, and their log-densities."""
        action = self.mean + self.log_std.exp() * noise
        return action, self._log_density(noise, action)

    def mode(self) -> Tensor:
        """Return the mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density."""
        return self._log_density((action - self.mean) * torch.exp(-self.log_std), action)

    def _log_density(self, z: Tensor, action: Tensor) -> Tensor:
        # summed before it is broadcast: a state-independent deviation costs one row, not a batch of them
        density = -0.5 * z.square().sum(-1) - (self.log_std + LOG_SQRT_2PI).sum(-1)
        return density - log_tanh_derivative(action).sum(-1) if self.squashed else density

    def entropy(self) -> Tensor:
        """Return the differential entropy; the logarithm of the tangent's slope is averaged by quadrature."""
        entropy = (self.log_std + 0.5 + LOG_SQRT_2PI).sum(-1).expand(self.mean.shape[:-1])
        if not self.squashed:
            return entropy
        nodes, weights = (self.mean.new_tensor(x) for x in (NODES, WEIGHTS / math.sqrt(2 * math.pi)))
        slopes = log_tanh_derivative(self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * nodes)
        return entropy + (slopes * weights).sum((-2, -1))

    def std(self) -> Tensor:
        """Return the deviation, `[..., dim]` or `[dim]`, of what is not squashed yet."""
        return self.log_std.exp()

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the mean and the logarithm of the deviation."""
        return self.mean, self.log_std.expand(self.mean.shape)

    def kl_from(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return KL(p, this), where p is the distribution of the same kind that has `parameters`."""
        mean, log_std = parameters
        ratio = (2 * (log_std - self.log_std)).exp()
        distance = (mean - self.mean).square() * torch.exp(-2 * self.log_std)
        return (self.log_std - log_std + 0.5 * (ratio + distance - 1)).sum(-1)

    def fisher(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Multiply tensors of the shapes of `parameters` by the Fisher information of those."""
        return tangents[0] * torch.exp(-2 * self.log_std), 2 * tangents[1]


class SquashedGaussian:
    """The hyperbolic tangent of a normal distribution: actions in (-1, 1) (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn standard normal `noise` `[..., dim]` into actions with gradients through them, and their log-densities.

        The densities are exact for saturated actions too.
        """
        pre_tanh = self.mean + self.log_std.exp() * noise
        log_prob = -0.5 * noise.square() - self.log_std - LOG_SQRT_2PI - log_tanh_derivative(pre_tanh)
        return torch.tanh(pre_tanh), log_prob.sum(-1)

    def mode(self) -> Tensor:
        """Return the squashed mean."""
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density of actions in (-1, 1), taken 1e-6 inside for actions nearer to the bounds."""
        pre_tanh = torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))
        z = (pre_tanh - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - LOG_SQRT_2PI - log_tanh_derivative(pre_tanh)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy of the normal before squashing: that of the squashed one has no closed form."""
        return (self.log_std + 0.5 + LOG_SQRT_2PI).sum(-1).expand(self.mean.shape[:-1])


def log_tanh_derivative(x: Tensor) -> Tensor:
    """Return `log(1 - tanh(x)^2)` without cancellation: `2 (log 2 - x - softplus(-2x))`."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


class Beta:
    """Independent Beta distributions stretched to [-1, 1], with one peak each (Chou et al. 2017).

    Made of what its parameters are above 1, `[..., dim]` and positive: of a nearly uniform one float32 would not tell
    the peak from the parameters themselves. There is neither a closed form of the inverse of the distribution function
    nor a gradient through samples: they are ratios of gamma variates, of which each is the first accepted of a few
    proposals (Marsaglia and Tsang 2000), so that sampling is straight-line code.
    """

    NOISE = (2, GAMMA_TRIES, 2)
    """Shape of the noise for each value: two gamma variates, proposals, and a normal and a uniform number for each."""

    def __init__(self, alpha_excess: Tensor, beta_excess: Tensor) -> None:
        self.alpha_excess = alpha_excess
        self.beta_excess = beta_excess
        self.alpha = 1 + alpha_excess
        self.beta = 1 + beta_excess

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn `noise` `[..., dim, *NOISE]` into actions and their log-densities."""
        first, second = noise.unbind(-3)
        one, other = _gamma(self.alpha, first), _gamma(self.beta, second)
        action = ((one - other) / (one + other)).clamp(2 * EDGE - 1, 1 - 2 * EDGE)
        return action, self.log_prob(action)

    def mode(self) -> Tensor:
        """Return the peaks."""
        up, down = self.alpha_excess, self.beta_excess
        return (up - down) / (up + down)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density of actions in [-1, 1], taken a share of `EDGE` inside for those nearer to a bound."""
        share = ((action + 1) / 2).clamp_min(EDGE)
        rest = ((1 - action) / 2).clamp_min(EDGE)
        density = self.alpha_excess * share.log() + self.beta_excess * rest.log()
        return (density - log_beta(self.alpha, self.beta) - math.log(2)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the differential entropy."""
        a, b, up, down = self.alpha, self.beta, self.alpha_excess, self.beta_excess
        slopes = (up + down) * (a + b).digamma() - up * a.digamma() - down * b.digamma()
        return (log_beta(a, b) + slopes + math.log(2)).sum(-1)

    def std(self) -> Tensor:
        """Return the deviation, `[..., dim]`."""
        total = self.alpha + self.beta
        return 2 * (self.alpha * self.beta / (total + 1)).sqrt() / total

    def parameters(self) -> tuple[Tensor, ...]:
        """Return alpha and beta."""
        return self.alpha, self.beta

    def kl_from(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return KL(p, this), where p is the distribution of the same kind that has `parameters`."""
        a, b = parameters
        up, down = a - self.alpha, b - self.beta
        distance = up * a.digamma() + down * b.digamma() - (up + down) * (a + b).digamma()
        return (log_beta(self.alpha, self.beta) - log_beta(a, b) + distance).sum(-1)

    def fisher(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Multiply tensors of the shapes of `parameters` by the Fisher information of those."""
        up, down = tangents
        both = torch.polygamma(1, self.alpha + self.beta) * (up + down)
        return torch.polygamma(1, self.alpha) * up - both, torch.polygamma(1, self.beta) * down - both


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return the logarithm of the Beta function."""
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


def _gamma(concentration: Tensor, noise: Tensor) -> Tensor:
    """Turn `[..., tries, 2]` normal and uniform numbers into gamma variates `[...]` of concentrations above 1."""
    normal, uniform = noise.unbind(-1)
    d = (concentration - 1 / 3).unsqueeze(-1)
    cube = (1 + normal / (9 * d).sqrt()).pow(3)
    tiny = torch.finfo(cube.dtype).tiny
    bound = 0.5 * normal.square() + d * (1 - cube + cube.clamp_min(tiny).log())
    accepted = (cube > 0) & (uniform.clamp_min(tiny).log() < bound)
    # the first of the accepted; where there is none, the first of all, which is no disaster
    which = accepted.to(torch.uint8).argmax(-1, keepdim=True)
    return (d * cube).gather(-1, which).squeeze(-1).clamp_min(tiny)


class Categorical:
    """One choice among n: `logits` is `[..., n]`, actions `[...]` int64."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = logits.log_softmax(-1)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uniform `noise` `[..., n]` into choices by the Gumbel-max trick, and their log-probabilities."""
        gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
        action = (self.log_probs + gumbel).argmax(-1)
        return action, self.log_prob(action)

    def mode(self) -> Tensor:
        """Return the likeliest choice."""
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the logarithms of the probabilities."""
        return (self.log_probs,)

    def kl_from(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return KL(p, this), where p is the distribution of the same kind that has `parameters`."""
        (log_probs,) = parameters
        return (log_probs.exp() * (log_probs - self.log_probs)).sum(-1)

    def fisher(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Multiply tensors of the shapes of `parameters` by the Fisher information of those."""
        return (self.log_probs.exp() * tangents[0],)


class MultiCategorical:
    """Several independent choices: `logits` is `[..., sum(nvec)]`, actions `[..., len(nvec)]` int64."""

    def __init__(self, logits: Tensor, nvec: Sequence[int]) -> None:
        self.nvec = list(nvec)
        self.parts = [Categorical(part) for part in logits.split(self.nvec, -1)]

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uniform `noise` `[..., sum(nvec)]` into choices, and their log-probabilities together."""
        drawn = [p.sample(x) for p, x in zip(self.parts, noise.split(self.nvec, -1), strict=True)]
        return torch.stack([action for action, _ in drawn], -1), torch.stack([x for _, x in drawn]).sum(0)

    def mode(self) -> Tensor:
        """Return the likeliest choices."""
        return torch.stack([p.mode() for p in self.parts], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability of the choices together."""
        return torch.stack([p.log_prob(a) for p, a in zip(self.parts, action.unbind(-1), strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        """Return the entropy of the choices together."""
        return torch.stack([p.entropy() for p in self.parts]).sum(0)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the logarithms of the probabilities of each choice."""
        return tuple(p.log_probs for p in self.parts)

    def kl_from(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return KL(p, this), where p is the distribution of the same kind that has `parameters`."""
        return torch.stack([p.kl_from([x]) for p, x in zip(self.parts, parameters, strict=True)]).sum(0)

    def fisher(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Multiply tensors of the shapes of `parameters` by the Fisher information of those."""
        return tuple(p.fisher([x])[0] for p, x in zip(self.parts, tangents, strict=True))


class Hybrid:
    """Real values and choices side by side, independent of each other given the state.

    An action is `[..., dim + choices]` float: the real values first, then the number of each choice.
    """

    def __init__(self, real: Gaussian | Beta, choices: MultiCategorical) -> None:
        self.real = real
        self.choices = choices

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn noise, that of both parts flat and side by side, into actions and their log-densities."""
        of_choices = sum(self.choices.nvec)
        of_real = noise[..., :-of_choices]
        if isinstance(self.real, Beta):
            of_real = of_real.unflatten(-1, (-1, *Beta.NOISE))
        values, density = self.real.sample(of_real)
        chosen, log_prob = self.choices.sample(noise[..., -of_choices:])
        return torch.cat([values, chosen.to(values.dtype)], -1), density + log_prob

    def mode(self) -> Tensor:
        """Return the mode of each part."""
        values = self.real.mode()
        return torch.cat([values, self.choices.mode().to(values.dtype)], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the logarithm of density times probability."""
        count = len(self.choices.nvec)
        return self.real.log_prob(action[..., :-count]) + self.choices.log_prob(action[..., -count:].long())

    def entropy(self) -> Tensor:
        """Return the entropy of both parts together."""
        return self.real.entropy() + self.choices.entropy()

    def std(self) -> Tensor:
        """Return the deviation of the real values."""
        return self.real.std()

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the two of the real part, then those of the choices."""
        return (*self.real.parameters(), *self.choices.parameters())

    def kl_from(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return KL(p, this), where p is the distribution of the same kind that has `parameters`."""
        return self.real.kl_from(parameters[:2]) + self.choices.kl_from(parameters[2:])

    def fisher(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Multiply tensors of the shapes of `parameters` by the Fisher information of those."""
        return (*self.real.fisher(tangents[:2]), *self.choices.fisher(tangents[2:]))


PolicyDistribution = Gaussian | Beta | Categorical | MultiCategorical | Hybrid
"""What on-policy algorithms learn: distributions with divergences and Fisher information."""


def deviation(distribution: PolicyDistribution) -> dict[str, Tensor]:
    """Return the mean deviation of the real values as the scalar "std", or nothing where there are only choices."""
    if isinstance(distribution, Categorical | MultiCategorical):
        return {}
    return {"std": distribution.std().detach().mean()}
