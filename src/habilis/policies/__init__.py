"""F3: what acts. A policy owns its observation normaliser and its action map, and is what gets exported."""

from __future__ import annotations

from habilis.policies.stochastic import StochasticPolicy
from habilis.policies.value import ValuePolicy

NeuralPolicy = StochasticPolicy | ValuePolicy
"""Any policy that is a network: has a specification, an encoder, and a `forward` that can be exported."""
