"""Linear layers with learnt noise on their weights (Fortunato et al. 2018, "Noisy networks for exploration").

The noise is factorised and given: one vector of standard normal numbers, whose length is `noise_size`. With a vector
for each row, each row is answered by weights of its own, so that environments side by side explore apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from habilis.nn.init import init_

SIGMA = 0.5
"""First deviation of the weights, in units of `1 / sqrt(in_features)`."""


class NoisyLinear(nn.Module):
    """`y = (W + S * noise) x + b + s * noise`: learnt means `W`, `b` and deviations `S`, `s`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        generator: source of the initial means: uniform in `1 / sqrt(in_features)`.
    """

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.noise_size = in_features + out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        init_(self.weight, self.bias, in_features, generator, None)
        initial = SIGMA / math.sqrt(in_features)
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), initial))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), initial))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Apply the layer to `[..., in]`; `noise` is `[noise_size]` or `[..., noise_size]`, None for the means."""
        if noise is None:
            return F.linear(x, self.weight, self.bias)
        # equation 10: the noise of a weight is the product of one number for its input and one for its output
        scaled = noise.sign() * noise.abs().sqrt()
        of_input, of_output = scaled.split([self.in_features, self.out_features], -1)
        if noise.numel() == self.noise_size:  # one set of weights for all rows: one product instead of two
            of_input, of_output = of_input.reshape(-1), of_output.reshape(-1)
            weight = torch.addcmul(self.weight, self.weight_sigma, torch.outer(of_output, of_input))
            return F.linear(x, weight, torch.addcmul(self.bias, self.bias_sigma, of_output))
        deviation = F.linear(x * of_input, self.weight_sigma, self.bias_sigma)
        return F.linear(x, self.weight, self.bias) + of_output * deviation  # type: ignore[no-any-return]
