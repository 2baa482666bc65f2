"""Running mean and variance of data that arrives in batches, and the normalisation by them.

The statistics are buffers, so they are saved and exported with the module that owns them. They change only when
`update` is called: of rollouts once an iteration, after optimisation, so that between acting and learning nothing
drifts; of replay after each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from habilis.core.batches import RolloutBatch


class RunningNorm(nn.Module):
    """Normalise rows of `shape` to mean 0 and variance 1, clipped to `[-clip, clip]`.

    The moments are those of all data seen (Chan et al. 1979, parallel variance), held in float64 and applied in the
    data's own precision. Before the first update the data is only clipped. What has hardly moved so far is divided by
    `min_std`, not by less: else a sensor that stood still in simulation would fill the whole range with its noise.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0, min_std: float = 1e-2) -> None:
        super().__init__()
        self.clip = clip
        self.min_std = min_std
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., *shape]`."""
        return ((x - self.mean.to(x.dtype)) * self.scale(x)).clamp(-self.clip, self.clip)

    def invert(self, x: Tensor) -> Tensor:
        """Return the rows whose normalised values are `x`."""
        return x / self.scale(x) + self.mean.to(x.dtype)

    def scale_only(self, x: Tensor) -> Tensor:
        """Divide by the standard deviation without moving the mean, as rewards are normalised."""
        return (x * self.scale(x)).clamp(-self.clip, self.clip)

    def scale(self, x: Tensor) -> Tensor:
        """Return what `[*shape]` is multiplied by, in the precision of `x`."""
        return self.var.clamp_min(self.min_std**2).rsqrt().to(x.dtype)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in a batch `[n, *shape]`, leaving out rows that are not finite: one of them would spoil all to come."""
        x = x[x.isfinite().reshape(len(x), self.mean.numel()).all(1)].to(torch.float64)
        if len(x):
            self.merge(x.mean(0), x.var(0, correction=0), len(x))

    @torch.no_grad()
    def merge(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        """Take in the moments of `count` rows, more than 0."""
        total = self.count + count
        delta = mean - self.mean
        m2 = self.var * self.count + var * count + delta.square() * self.count * count / total
        self.mean += delta * count / total
        self.var.copy_(m2 / total)
        self.count.copy_(total)

    def since(self, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the moments of the rows taken in since the statistics were as given: what `merge` adds to those."""
        rows = self.count - count
        added = (self.mean * self.count - mean * count) / rows
        m2 = self.var * self.count - var * count - (added - mean).square() * count * rows / self.count
        return added, (m2 / rows).clamp_min(0.0), rows


class RewardNorm(nn.Module):
    """Divide rewards by the running standard deviation of the discounted return.

    Rewards beyond 10 deviations are clipped (OpenAI Baselines' `VecNormalize`). With a bound none is: they are divided
    by more where that keeps the returns within it (Lee et al. 2025), and stay as they are until one differs from 0.

    Args:
        num_envs: environments whose returns are followed.
        gamma: discount.
        bound: what no return seen is to exceed once its rewards are scaled; None clips rewards instead.
    """

    running_return: Tensor
    greatest: Tensor | None

    def __init__(self, num_envs: int, gamma: float, bound: float | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.bound = bound
        self.returns = RunningNorm((), min_std=1e-4)
        self.register_buffer("greatest", None if bound is None else torch.zeros(()))
        self.register_buffer("running_return", torch.zeros(num_envs))

    def start(self) -> None:
        """Forget the returns under way, because every environment begins an episode."""
        self.running_return.zero_()

    def forward(self, rewards: Tensor) -> Tensor:
        """Scale rewards of any shape."""
        if self.greatest is None or self.bound is None:
            return self.returns.scale_only(rewards)
        within = (self.bound / self.greatest).to(rewards.dtype)
        return rewards * torch.where(self.greatest > 0, torch.minimum(self.returns.scale(rewards), within), 1.0)

    def learn(self, batch: RolloutBatch) -> Tensor:
        """Take the rewards of a rollout in, and return them scaled, `[T, N]`."""
        self.update(batch.rewards, batch.done, batch.valid)
        return self.forward(batch.rewards)

    @torch.no_grad()
    def update(self, rewards: Tensor, done: Tensor, valid: Tensor) -> None:
        """Follow the returns over a rollout `[T, N]`; they start anew at an end and at what is not valid or finite."""
        valid = valid & rewards.isfinite()
        over = done | ~valid
        returns = torch.empty_like(rewards)
        for t in range(len(rewards)):
            self.running_return.mul_(self.gamma).add_(rewards[t])
            returns[t] = self.running_return
            self.running_return.masked_fill_(over[t], 0.0)
        seen = returns[valid]
        self.returns.update(seen)
        if self.greatest is not None and len(seen):
            self.greatest.copy_(torch.maximum(self.greatest, seen.abs().amax()))
