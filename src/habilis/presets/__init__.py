"""F6: configurations for an algorithm on an environment.

A preset is a mapping of dotted configuration keys to values, as on the command line. What a preset leaves out has the
default of the configuration; an environment without a preset gets the algorithm's general one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from habilis.presets.a2c import A2C_GENERAL, A2C_NAMES, A2C_PRESETS, A3C_GENERAL
from habilis.presets.dqn import DQN_GENERAL, DQN_NAMES, DQN_PRESETS
from habilis.presets.ppo import PPO_GENERAL, PPO_PRESETS
from habilis.presets.reinforce import REINFORCE_GENERAL, REINFORCE_PRESETS
from habilis.presets.sac import DISCRETE_SAC_PRESETS, SAC_GENERAL, SAC_NAMES, SAC_PRESETS
from habilis.presets.tabular import TABULAR_GENERAL, TABULAR_NAMES, TABULAR_PRESETS
from habilis.presets.td3 import FAST_TD3_GENERAL, TD3_GENERAL, TD3_NAMES, TD3_PRESETS
from habilis.presets.trpo import TRPO_GENERAL, TRPO_NAMES, TRPO_PRESETS

_GENERAL: dict[str, Mapping[str, Any]] = {
    "ppo": PPO_GENERAL,
    **dict.fromkeys((*SAC_NAMES, "discrete_sac"), SAC_GENERAL),
    "reinforce": REINFORCE_GENERAL,
    **dict.fromkeys(A2C_NAMES, A2C_GENERAL),
    "a3c": A3C_GENERAL,
    **dict.fromkeys(TRPO_NAMES, TRPO_GENERAL),
    **dict.fromkeys(DQN_NAMES, DQN_GENERAL),
    **dict.fromkeys(TABULAR_NAMES, TABULAR_GENERAL),
    **dict.fromkeys(TD3_NAMES, TD3_GENERAL),
    "fast_td3": FAST_TD3_GENERAL,
}
_SPECIAL: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "ppo": PPO_PRESETS,
    **SAC_PRESETS,
    "discrete_sac": DISCRETE_SAC_PRESETS,
    "reinforce": REINFORCE_PRESETS,
    **A2C_PRESETS,
    **TRPO_PRESETS,
    **DQN_PRESETS,
    **TABULAR_PRESETS,
    **TD3_PRESETS,
}

_FROM_PICTURES: Mapping[str, Any] = {"frame_stack": 3}
"""For pictures of robots that were never tried: one alone shows no speed."""

_REPLAYED_PICTURES: Mapping[str, Any] = {"plugins": {"random_shift": {}}, "algo.buffer_size": 100_000}
"""Besides, where they are replayed: critics learn few pictures by heart, and a million take 12 GB."""


def preset(algorithm: str, env: str) -> dict[str, Any]:
    """Return the dotted keys for an algorithm on an environment."""
    usual = dict(_GENERAL[algorithm])
    if env.endswith("Pixels-v0") and algorithm not in TABULAR_NAMES:
        usual |= _FROM_PICTURES
        usual |= _REPLAYED_PICTURES if algorithm in (*SAC_NAMES, *TD3_NAMES, "fast_td3") else {}
    return usual | dict(_SPECIAL[algorithm].get(env, {}))


def tuned_environments(algorithm: str) -> list[str]:
    """Return the environments that have a preset of their own."""
    return sorted(_SPECIAL[algorithm])
