"""F3: modifiers of learning. A plugin transforms each batch before the algorithm sees it, and learns from it after.

A run's plugins are a mapping of names to their hyper-parameters, in the order in which they transform. One is added to
the house by a file here and an entry in `PLUGINS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

from habilis.core.config import override, require
from habilis.core.protocols import Algorithm, Plugin
from habilis.core.random import RandomStreams
from habilis.core.registry import Registry
from habilis.core.types import Metrics
from habilis.plugins.contrastive import ContrastiveConfig, make_contrastive
from habilis.plugins.next_state_prediction import NextStatePredictionConfig, make_next_state_prediction
from habilis.plugins.random_shift import RandomShift, RandomShiftConfig
from habilis.plugins.reconstruction import ReconstructionConfig, make_reconstruction


@dataclass(frozen=True)
class PluginEntry:
    """What the house knows of a plugin."""

    title: str
    """What it does, and source."""
    config: type
    """Its hyper-parameters."""
    make: Callable[[Any, Any, RandomStreams], Plugin]
    """Builds it from those, the policy that learns, and the run's random streams."""
    takes_rollouts: bool = True
    """Whether it is also for algorithms that learn from what their policy has just done."""


PLUGINS: Registry[PluginEntry] = Registry("plugin")

PLUGINS.add(
    "random_shift",
    PluginEntry(
        "Images are seen moved by a few pixels (Yarats et al. 2022)",
        RandomShiftConfig,
        RandomShift,
        # a rollout's actions would no longer be those that the policy had drawn from what it sees
        takes_rollouts=False,
    ),
)
PLUGINS.add(
    "reconstruction",
    PluginEntry(
        "An encoder of images learns to paint them again (Yarats et al. 2021)",
        ReconstructionConfig,
        make_reconstruction,
    ),
)
PLUGINS.add(
    "next_state_prediction",
    PluginEntry(
        "An encoder of images learns to tell its next features (Ni et al. 2024)",
        NextStatePredictionConfig,
        make_next_state_prediction,
    ),
)
PLUGINS.add(
    "contrastive",
    PluginEntry(
        "An encoder of images learns to know them again when moved (Laskin et al. 2020)",
        ContrastiveConfig,
        make_contrastive,
    ),
)


def learn_with(plugins: Sequence[Plugin], algorithm: Algorithm, batch: Any) -> Metrics:
    """Let each plugin transform a batch in its turn, the algorithm learn from it, and the plugins from what they saw.

    They come after the algorithm, so that nothing a policy stands on moves between its acting and its learning.
    """
    seen = []
    for plugin in plugins:
        seen.append(batch)
        batch = plugin.transform(batch)
    metrics = algorithm.update(batch)
    for plugin, before in zip(plugins, seen, strict=True):
        metrics |= plugin.update(before)
    return metrics


def resolve_plugins(plugins: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of each plugin by name, in the order in which they are named.

    Args:
        plugins: name to configuration, or to what differs from its defaults; `name.option` to a value is taken too.

    Raises:
        ConfigError: there is no such plugin, or it has no such option.
    """
    configs: dict[str, Any] = {}
    for key, value in plugins.items():
        name, _, option = key.replace("-", "_").partition(".")
        known = configs.get(name) or PLUGINS[name].config()
        if is_dataclass(value):
            configs[name] = value
            continue
        changes = {option: value} if option else value
        require(isinstance(changes, Mapping), f"plugins.{name} must be its options and their values, got {value!r}")
        configs[name] = override(known, changes, f"plugins.{name}.")
    return configs
