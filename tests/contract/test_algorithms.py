"""What every algorithm promises."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from cases import EXACT, FRESH, INEXACT, MEMORY, SEEING, SMALL, fingerprint, iterate, save, small_config, small_trainer

from habilis.build import ALGORITHMS
from habilis.checkpoint import load_checkpoint
from habilis.core.config import override, to_dict
from habilis.core.errors import ConfigError
from habilis.core.options import require_used
from habilis.core.specs import BoxAction, spec_from_dict, spec_to_dict
from habilis.plugins import PLUGINS
from habilis.training.config import TrainConfig
from habilis.training.keeping import inexactness, restore

ALL = list(ALGORITHMS)
REPEATABLE = [algorithm for algorithm in ALL if algorithm not in INEXACT]
ENVS = [(algorithm, env) for algorithm in REPEATABLE for env in EXACT[algorithm]]


def test_every_algorithm_is_tested() -> None:
    assert set(ALL) == set(SMALL)


def test_every_plugin_is_tested() -> None:
    assert {name for settings in SEEING.values() for name in settings["plugins"]} == set(PLUGINS)


@pytest.fixture(scope="module")
def go_on_elsewhere() -> Iterator[Callable[[str, str, Path, int], str]]:
    """Yield what goes on with a checkpoint in another process: one for all of them, since starting takes long."""
    script = Path(__file__).with_name("resume_in_another_process.py")
    with subprocess.Popen([sys.executable, str(script)], stdin=PIPE, stdout=PIPE, text=True) as child:
        asked, answers = child.stdin, child.stdout
        assert asked is not None
        assert answers is not None

        def go_on(algorithm: str, env: str, checkpoint: Path, count: int) -> str:
            asked.write(json.dumps([algorithm, env, str(checkpoint), count]) + "\n")
            asked.flush()
            return answers.readline().strip()

        yield go_on


@pytest.mark.parametrize(("algorithm", "env"), ENVS)
def test_resume_in_another_process_is_exact(
    algorithm: str, env: str, tmp_path: Path, go_on_elsewhere: Callable[[str, str, Path, int], str]
) -> None:
    whole = small_trainer(algorithm, env, seed=1)
    iterate(whole, 4)
    before = fingerprint(whole)
    save(whole, tmp_path / "checkpoint")
    iterate(whole, 4)
    assert go_on_elsewhere(algorithm, env, tmp_path / "checkpoint", 4) == fingerprint(whole)
    assert fingerprint(whole) != before


@pytest.mark.parametrize("algorithm", REPEATABLE)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(algorithm: str) -> None:
    runs = [small_trainer(algorithm, EXACT[algorithm][0], seed=seed) for seed in (5, 5, 6)]
    for trainer in runs:
        iterate(trainer, 4)
    first, second, other = map(fingerprint, runs)
    assert first == second
    assert first != other


OFF: dict[str, Any] = {
    "head": "mean",
    "prioritized": False,
    "use_sde": False,
    "std_type": "independent",
    "ent_coef": 0.2,
    "network": "simba",
    "target_networks": False,
    "action_noise": "gaussian",
    "line_search": False,
    "baseline": False,
    "learning_rate_schedule": "constant",
    "exploration_schedule": "linear",
    "kind": "none",
}
"""A value of each field `only_if` names with which what depends on it is off."""
SWITCHED = ("ppo", "a2c", "reinforce", "trpo", "sac", "discrete_sac", "td3", "per_dqn", "q_learning")
"""One algorithm for each kind of configuration."""
OTHER: dict[str, Any] = {"critic_hidden": [7], "target_entropy": -3.0, "sde_sample_freq": 7, "layer_norm": True}


def switched_off(config: Any, prefix: str = "algo.") -> Iterator[tuple[str, Any, str, Any]]:
    """Yield each field that another switches off, a value for it, that other one, and what that is then."""
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from switched_off(value, f"{name}.")
        other = OTHER.get(
            field.name, value / 2 if isinstance(value, float) else value + 1 if type(value) is int else None
        )
        wanted = {switch: OFF[switch] for switch in field.metadata.get("only_if", {})}
        for switch, off in {**wanted, **field.metadata.get("unless", {})}.items():
            yield name, other, f"{prefix}{switch}", off


def test_every_kind_of_configuration_is_asked_what_has_no_effect() -> None:
    assert {ALGORITHMS[name].config for name in SWITCHED} == {ALGORITHMS[name].config for name in ALL}


@pytest.mark.parametrize("algorithm", SWITCHED)
def test_what_is_refused_as_without_effect_has_none(algorithm: str) -> None:
    def learnt(**changes: Any) -> str:
        trainer = small_trainer(algorithm, EXACT[algorithm][0], **changes)
        iterate(trainer, 3)
        return fingerprint(trainer)

    base = small_config(algorithm, EXACT[algorithm][0])
    changes: dict[tuple[str, Any], dict[str, Any]] = {}
    for name, other, switch, off in switched_off(base.algo):
        if name == "algo.memory.burn_in" and not hasattr(base.algo, "buffer_size"):
            continue  # refused in any case
        changes.setdefault((switch, off), {})[name] = other
        with pytest.raises(ConfigError, match=f"{name} has no effect while {switch} is {off!r}"):
            require_used(override(base, {switch: off, name: other}), usual=base)
    for (switch, off), without_effect in changes.items():
        assert learnt(**{switch: off, **without_effect}) == learnt(**{switch: off}), without_effect


@pytest.mark.parametrize("algorithm", ALL)
def test_no_global_random_state_is_touched(algorithm: str) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    iterate(small_trainer(algorithm, EXACT[algorithm][0]), 4)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("algorithm", ALL)
def test_config_goes_to_json_and_back(algorithm: str) -> None:
    config = small_config(algorithm, EXACT[algorithm][0], **{"algo.gamma": 0.875})
    tree = to_dict(config)
    blank = TrainConfig(algorithm=algorithm, env="", algo=ALGORITHMS[algorithm].config())
    assert override(blank, tree) == config


@pytest.mark.parametrize("algorithm", ALL)
def test_a_loaded_policy_predicts_the_same(algorithm: str, tmp_path: Path) -> None:
    trainer = small_trainer(algorithm, EXACT[algorithm][0])
    iterate(trainer, 4)
    save(trainer, tmp_path / "c")
    states, _ = load_checkpoint(tmp_path / "c", ["policy"])
    spec = spec_from_dict(spec_to_dict(trainer.collector.env.spec))
    policy = ALGORITHMS[algorithm].make_policy(spec, trainer.algorithm.config, torch.Generator())
    policy.load_state_dict(states["policy"])
    obs = np.random.default_rng(0).normal(size=(7, *spec.obs["policy"].shape)).astype(np.float32)
    expected, _ = trainer.algorithm.policy.predict(obs)
    action, memory = policy.predict(obs)
    assert memory is None
    assert action.shape == ((7, spec.action.dim) if isinstance(spec.action, BoxAction) else (7,))
    # its weights lie elsewhere in memory, and how a product of few columns rounds depends on that
    assert np.allclose(action, expected, rtol=0, atol=1e-6)
    assert np.allclose(policy.predict(obs[2])[0], expected[2], atol=1e-6)


@pytest.mark.parametrize(("algorithm", "env"), MEMORY)
def test_a_loaded_policy_remembers_the_same(algorithm: str, env: str, tmp_path: Path) -> None:
    trainer = small_trainer(algorithm, env)
    iterate(trainer, 4)
    save(trainer, tmp_path / "c")
    states, _ = load_checkpoint(tmp_path / "c", ["policy"])
    spec = trainer.collector.env.spec
    policy = ALGORITHMS[algorithm].make_policy(spec, trainer.algorithm.config, torch.Generator())
    policy.load_state_dict(states["policy"])
    memory = expected_memory = None
    for obs in np.random.default_rng(0).normal(size=(12, 3, *spec.obs["policy"].shape)).astype(np.float32):
        action, memory = policy.predict(obs, memory)
        expected, expected_memory = trainer.algorithm.policy.predict(obs, expected_memory)
        assert np.allclose(action, expected, rtol=0, atol=1e-6)
    assert memory.keys() == expected_memory.keys() == {"network"}
    torch.testing.assert_close(memory["network"], expected_memory["network"])


@pytest.mark.parametrize("algorithm", ALL)
def test_fresh_episodes_after_resuming_what_cannot_save_its_state(algorithm: str, tmp_path: Path) -> None:
    trainer = small_trainer(algorithm, FRESH[algorithm])
    iterate(trainer, 4)
    save(trainer, tmp_path / "c")
    again = small_trainer(algorithm, FRESH[algorithm])
    restore(again, load_checkpoint(tmp_path / "c")[0])
    iterate(again, 2)
    expected = trainer.counters.env_steps * 6 // 4
    # workers end in the middle of a round, where the run does
    assert again.counters.env_steps == (min(expected, again.total_timesteps) if algorithm == "a3c" else expected)


@pytest.mark.parametrize("algorithm", sorted(INEXACT))
def test_what_does_not_resume_exactly_says_so_and_goes_on_from_what_was_learnt(algorithm: str, tmp_path: Path) -> None:
    env = EXACT[algorithm][-1]
    trainer, again = small_trainer(algorithm, env), small_trainer(algorithm, env, seed=2)
    assert inexactness(trainer)
    iterate(trainer, 2)
    save(trainer, tmp_path / "c")
    restore(again, load_checkpoint(tmp_path / "c")[0])
    assert states_are_equal(again.algorithm.state_dict(), trainer.algorithm.state_dict())
    iterate(again, 1)
    assert not states_are_equal(again.algorithm.state_dict(), trainer.algorithm.state_dict())
    assert again.counters.iteration == 3
    for each in (trainer, again):
        each.close()


def states_are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(states_are_equal(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("algorithm", REPEATABLE)
def test_what_resumes_exactly_says_nothing_else(algorithm: str) -> None:
    assert inexactness(small_trainer(algorithm, EXACT[algorithm][-1])) is None
    assert "cannot save its state" in inexactness(small_trainer(algorithm, FRESH[algorithm]))
