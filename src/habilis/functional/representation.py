"""Losses of what an encoder is to know of pictures, as pure functions of tensors. Each names its paper and equation.

B is the batch, F the width of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reconstruction_loss(decoded: Tensor, image: Tensor, features: Tensor, penalty: float) -> Tensor:
    """Return the loss of a regularised autoencoder (Ghosh et al. 2020, equations 9 to 11; Yarats et al. 2021, 3).

    Args:
        decoded: `[B, ...]`.
        image: `[B, ...]` uint8; 255 is 1. The error is the mean over pixels and batch.
        features: `[B, F]`, half of whose squared length is charged.
        penalty: weight of that charge.
    """
    error = (decoded - image.to(decoded.dtype) / 255).square().mean()
    return error + penalty * 0.5 * features.square().sum(-1).mean()


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of unit vectors, 2 - 2 cos (Grill et al. 2020, equation 2; Schwarzer et al. 2021, 3).

    Both are `[B, F]`; no gradient goes to the target.
    """
    return 2 - 2 * F.cosine_similarity(predicted, target.detach(), dim=-1).mean()


def contrastive_loss(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """Return InfoNCE with bilinear similarity (van den Oord et al. 2018, equation 4; Laskin et al. 2020, section 4.3).

    The cross-entropy of finding each query's own key among those of the batch; no gradient goes to the keys.

    Args:
        query: `[B, F]`.
        key: `[B, F]`, row by row of the same observations.
        weight: `[F, F]`; the similarity of q and k is `q W k`.
    """
    logits = query @ weight @ key.detach().T
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))
