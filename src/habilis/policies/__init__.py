"""F3: what acts. A policy owns its observation normaliser and its action map, and is what gets exported."""

from __future__ import annotations

from habilis.policies.deterministic import DeterministicPolicy
from habilis.policies.stochastic import StochasticPolicy
from habilis.policies.tabular import TabularPolicy
from habilis.policies.value import ValuePolicy

NeuralPolicy = StochasticPolicy | DeterministicPolicy | ValuePolicy | TabularPolicy
"""Any policy that is a module, a network or a table: has a specification, an encoder, and a `forward` to export."""
