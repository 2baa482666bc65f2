"""Critics of actions: one encoder, and an ensemble of networks that is computed as one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec
from habilis.core.tree import tree_map
from habilis.core.types import Obs
from habilis.nn.encoder import ImageEncoderKind
from habilis.nn.memory import Encoder, MemoryConfig, make_encoder, single
from habilis.nn.network import NetworkConfig, make_ensemble

IMAGE_ENCODER: ImageEncoderKind = "drq"
"""By what critics of actions see images, and policies with them."""


def share_images(policy: Encoder, critics: Critics | ChoiceCritics) -> None:
    """Let a policy see the images that its critics read too as these do, instead of by an encoder of its own.

    The critics learn it, as their loss says more of what is to be seen than the policy's (Yarats et al. 2021), and the
    policy reads features that `Critics.see` gives it, without a gradient.
    """
    own, theirs = single(policy).images, single(critics.encoder).images
    for name in own.keys() & theirs.keys():
        own[name] = theirs[name]


def choose_copies(ensemble: nn.Module, which: Tensor) -> nn.Module:
    """Return an ensemble of the copies with indices `which`, whose gradients reach the parameters of the whole.

    The whole stays as it is, as another thread may be computing with it.
    """
    chosen = copy.copy(ensemble)
    for name in ("_parameters", "_buffers"):
        tensors = getattr(ensemble, name)
        setattr(chosen, name, {key: x.index_select(0, which) if x.dim() else x for key, x in tensors.items()})
    chosen._modules = {key: choose_copies(part, which) for key, part in ensemble._modules.items() if part is not None}
    return chosen


class Critics(nn.Module):
    """What every critic says at once of observations `[B, *shape]` and actions `[B, dim]`: `[critics, B, K]`.

    Args:
        spec: whose group `critic` they read where there is one, else `policy`, and what is wanted.
        copies: how many critics.
        outputs: K, the numbers by which each describes a return: 1 for its mean, or quantiles.
        network: the hidden layers of each.
        normalize_obs: normalise vector observations by running statistics.
        memory: what they remember, all of them together, from the first step of a window on.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        spec: EnvSpec,
        copies: int,
        outputs: int,
        network: NetworkConfig,
        normalize_obs: bool,
        memory: MemoryConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert isinstance(spec.action, BoxAction)
        self.encoder = make_encoder(spec.obs, spec.critic_groups, normalize_obs, memory, generator, IMAGE_ENCODER)
        self.q = make_ensemble(network, copies, self.encoder.out_dim + spec.action.dim, outputs, generator)

    def forward(self, obs: Obs, action: Tensor, noise: Tensor | None = None, which: Tensor | None = None) -> Tensor:
        """Evaluate raw observations and actions in the policy's units.

        Args:
            obs: groups `[B, *shape]`.
            action: `[B, dim]`.
            noise: dropout's, `[critics, B, values]` from `q.noise`; None to drop nothing.
            which: `[k]` int64, the critics to ask, and the others are not computed; None for all.
        """
        x = torch.cat([self.encoder(obs), action], -1)
        if which is None:
            return self.q(x, noise)  # type: ignore[no-any-return]
        return choose_copies(self.q, which)(x, None if noise is None else noise.index_select(0, which))  # type: ignore[no-any-return]

    @torch.no_grad()
    def see(self, obs: Obs) -> dict[str, Tensor]:
        """Return an observation with the features of the images that they read in place, for a policy to read."""
        return self.encoder.see(obs)

    def learn_both(
        self, obs: Obs, action: Tensor, next_obs: Obs, next_action: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch and what follows it as one, so that both are normalised by the same statistics.

        Returns:
            What the critics say of the one, `[critics, B, outputs]`, and of the other, which has no gradient; and what
            is for `q.after_step`.
        """
        both = tree_map(lambda now, then: torch.cat([now, then]), obs, next_obs)
        values, statistics = self.learn(both, torch.cat([action, next_action]), noise)
        now, then = values.chunk(2, 1)
        return now, then.detach(), statistics

    def learn(self, obs: Obs, action: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate a batch as it is learnt from; the second result is for `q.after_step`."""
        return self.q.learn(torch.cat([self.encoder(obs), action], -1), noise)


class ChoiceCritics(nn.Module):
    """What every critic says at once of each choice: `[B, *shape] -> [critics, B, choices]`; see `Critics`."""

    def __init__(
        self,
        spec: EnvSpec,
        copies: int,
        network: NetworkConfig,
        normalize_obs: bool,
        memory: MemoryConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert isinstance(spec.action, DiscreteAction)
        self.encoder = make_encoder(spec.obs, spec.critic_groups, normalize_obs, memory, generator, IMAGE_ENCODER)
        self.q = make_ensemble(network, copies, self.encoder.out_dim, spec.action.n, generator)

    def forward(self, obs: Obs) -> Tensor:
        """Evaluate raw observations."""
        return self.q(self.encoder(obs))  # type: ignore[no-any-return]

    @torch.no_grad()
    def see(self, obs: Obs) -> dict[str, Tensor]:
        """Return an observation with features in the place of images; see `Critics.see`."""
        return self.encoder.see(obs)

    def learn(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Evaluate a batch as it is learnt from; the second result is for `q.after_step`."""
        return self.q.learn(self.encoder(obs))
