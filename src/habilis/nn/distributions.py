"""Action distributions: log-probability, entropy, mode, and samples made of given noise.

`torch.distributions` draws from a global state and validates on every call; these do only what policies need. Noise is
an argument, drawn by the head that made the distribution, so that sampling can be recorded (`core/recording.py`).
Shapes: parameters and actions carry any leading axes `[...]`; log-probabilities and entropies are `[...]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """A distribution over actions."""

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn noise into one action for each row, and its log-probability (density)."""
        ...

    def mode(self) -> Tensor:
        """Return the action to take when nothing is left to chance."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability (density) of actions."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy in nats."""
        ...


class Gaussian:
    """Independent normal distributions: `mean` is `[..., dim]`, `log_std` the same or `[dim]`."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn standard normal `noise` `[..., dim]` into actions, gradients passing, and their log-densities."""
        return self.mean + self.log_std.exp() * noise, self._log_density(noise)

    def mode(self) -> Tensor:
        """Return the mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density."""
        return self._log_density((action - self.mean) * torch.exp(-self.log_std))

    def _log_density(self, z: Tensor) -> Tensor:
        # summed before it is broadcast: a state-independent deviation costs one row, not a batch of them
        return -0.5 * z.square().sum(-1) - (self.log_std + LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """Return the differential entropy."""
        return (self.log_std + 0.5 + LOG_SQRT_2PI).sum(-1).expand(self.mean.shape[:-1])

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
