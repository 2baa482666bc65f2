"""What no algorithm accepts: numbers that would turn learning round, or stop it, without a word."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from habilis.build import ALGORITHMS
from habilis.core.config import field_types, override
from habilis.core.errors import ConfigError
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.nn.memory import MemoryConfig
from habilis.nn.network import NetworkConfig
from habilis.plugins import PLUGINS
from habilis.policies.action_filter import ActionConfig
from habilis.policies.smoothness import SmoothnessConfig
from habilis.presets import preset

CONFIGS = {known[name].config for known in (ALGORITHMS, PLUGINS) for name in known}
CONFIGS |= {MemoryConfig, NetworkConfig, SmoothnessConfig, ActionConfig}


@pytest.mark.parametrize("kind", sorted(CONFIGS, key=lambda kind: kind.__name__))
def test_a_configuration_is_held_to_the_types_of_its_fields(kind):
    for name in field_types(kind):
        with pytest.raises(ConfigError, match=f"'{name}' must be"):
            kind(**{name: "none of the choices" if isinstance(getattr(kind(), name), str) else object()})


def test_a_configuration_takes_lists_and_whole_numbers():
    config = ALGORITHMS["ppo"].config(hidden=[32, 16], learning_rate=1)
    assert (config.hidden, config.learning_rate, type(config.learning_rate)) == ((32, 16), 1.0, float)


def has(algorithm, name):
    return name in {field.name for field in dataclasses.fields(ALGORITHMS[algorithm].config)}


def cases(name, *values):
    return [(algorithm, name, value) for algorithm in ALGORITHMS if has(algorithm, name) for value in values]


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        *cases("max_grad_norm", -1.0, 0.0),
        *cases("hidden", (8, 0), (-4,)),
        *((algorithm, "critic_hidden", (0,)) for algorithm in ("ppo", "a2c", "trpo", "reinforce")),
        *cases("gamma", -0.1, 1.1),
        *cases("gae_lambda", 1.1),
        *cases("learning_rate", 0.0),
        *cases("vf_coef", -1.0),
        *cases("rms_prop_eps", -1.0),
        *cases("n_sampled_goal", 0),
        *cases("desired_kl", 0.0, -1.0),
        *cases("target_kl", -1.0),
        *cases("clip_range_vf", -0.2),
        ("ppo", "batch_size", 1),
    ],
)
def test_impossible_numbers_are_refused(algorithm, name, value):
    spec = EnvSpec("toy", {"policy": ObsGroup((3,), one_hot=(3,))}, DiscreteAction(2))
    if ALGORITHMS[algorithm].config.__name__ in ("SACConfig", "TD3Config"):
        spec = dataclasses.replace(spec, action=BoxAction(-np.ones(2, np.float32), np.ones(2, np.float32)))
    with pytest.raises(ConfigError, match=name):  # some widths are looked at where networks are made
        ALGORITHMS[algorithm].make_policy(
            spec, override(ALGORITHMS[algorithm].config(), {name: value}), torch.Generator()
        )


@pytest.mark.parametrize("algorithm", ["sac", "tqc", "crossq", "td3", "ddpg", "fast_td3"])
@pytest.mark.parametrize("high", [[1.0, np.inf], [np.inf, np.inf]])
def test_actions_without_bounds_are_refused_where_there_is_nothing_to_scale_to(algorithm, high):
    """They would stay within [-1, 1], or lie on the one bound that there is."""
    action = BoxAction(np.array([-1.0, 0.0], np.float32), np.array(high, np.float32))
    spec = EnvSpec("toy", {"policy": ObsGroup((3,))}, action)
    with pytest.raises(ConfigError, match=r"the actions \[(0, )?1\] of toy do not have two finite ones"):
        ALGORITHMS[algorithm].make_policy(spec, ALGORITHMS[algorithm].config(), torch.Generator())
    ALGORITHMS["ppo"].make_policy(spec, ALGORITHMS["ppo"].config(), torch.Generator())


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "trpo", "reinforce", "dqn", "rainbow"])
def test_an_encoder_of_images_has_no_meaning_without_images(algorithm):
    config = ALGORITHMS[algorithm].config(image_encoder="impala")
    for groups in ({"policy": ObsGroup((3,))}, {"policy": ObsGroup((36, 36, 3), "uint8")}):
        spec = EnvSpec("toy", groups, DiscreteAction(2))
        if groups["policy"].is_image:
            ALGORITHMS[algorithm].make_policy(spec, config, torch.Generator())
        else:
            with pytest.raises(ConfigError, match="image_encoder 'impala' is for images, and none is observed"):
                ALGORITHMS[algorithm].make_policy(spec, config, torch.Generator())


def test_pictures_of_robots_are_stacked_and_where_they_are_replayed_moved():
    for algorithm in ("sac", "crossq", "td3", "fast_td3"):
        given = preset(algorithm, "habilis/HopperPixels-v0")
        assert given["frame_stack"] == 3
        assert given["plugins"] == {"random_shift": {}}
        assert given["algo.buffer_size"] == 100_000
    assert preset("ppo", "habilis/HopperPixels-v0") == preset("ppo", "none") | {"frame_stack": 3}
    assert preset("td3", "habilis/ReacherPixels-v0")["plugins"] == {"random_shift": {"pad": 2}}


def test_one_step_does_not_teach_what_to_remember():
    with pytest.raises(ConfigError, match="what to remember is learnt over several steps, and n_steps is 1"):
        override(ALGORITHMS["a2c"].config(), {"n_steps": 1, "memory.kind": "gru"})


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "trpo", "reinforce"])
def test_a_distribution_of_real_values_has_no_meaning_for_choices(algorithm):
    config = ALGORITHMS[algorithm].config(distribution="beta")
    spec = EnvSpec("toy", {"policy": ObsGroup((3,))}, DiscreteAction(2))
    with pytest.raises(ConfigError, match="distribution 'beta' is for real-valued actions"):
        ALGORITHMS[algorithm].make_policy(spec, config, torch.Generator())
