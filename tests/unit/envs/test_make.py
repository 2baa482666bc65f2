"""From ids to environments: backends, errors with the nearest ids, and imports that stay lazy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import habilis.tasks  # noqa: F401  (registers)
from habilis.core.errors import ConfigError, EnvError, HabilisError
from habilis.core.specs import DiscreteAction
from habilis.envs.make import NATIVE, list_env_ids, make_vec_env, register_native
from habilis.envs.probes import ProbeEnv


def test_the_default_is_native_where_there_is_one():
    for id, backend in (
        ("HalfCheetah-v5", "native"),
        ("CartPole-v1", "native"),
        ("Taxi-v4", "gymnasium"),
        ("probe/Memory-v0", "native"),
    ):
        env = make_vec_env(id, 2, threads=1)
        assert env.spec.backend == backend
        assert env.num_envs == 2
        env.close()


@pytest.mark.parametrize("backend", ["gymnasium", "envpool", "native"])
def test_a_backend_can_be_chosen(backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    env = make_vec_env("HalfCheetah-v5", 2, backend=backend, threads=1)
    assert env.spec.backend == backend
    assert env.reset(0)["policy"].shape == (2, 17)
    assert env.step(torch.zeros(2, 6)).reward.shape == (2,)
    env.close()


def test_asynchronous_means_gymnasium():
    env = make_vec_env("Pendulum-v1", 2, asynchronous=True)
    assert env.spec.backend == "gymnasium"
    assert type(env.env).__name__ == "AsyncVectorEnv"
    env.close()
    for backend in ("native", "envpool"):
        with pytest.raises(ConfigError, match="asynchronous"):
            make_vec_env("HalfCheetah-v5", backend=backend, asynchronous=True)


def test_arguments_reach_the_environment():
    env = make_vec_env("Pendulum-v1", max_episode_steps=4, g=1.0)
    assert env.spec.max_episode_steps == 4
    env.reset(0)
    assert [bool(env.step(torch.zeros(1, 1)).truncated) for _ in range(4)] == [False] * 3 + [True]
    with pytest.raises(ConfigError, match="nonsense"):
        make_vec_env("Pendulum-v1", nonsense=1)
    with pytest.raises(EnvError, match="nonsense"):
        make_vec_env("Pendulum-v1", backend="gymnasium", nonsense=1)


@pytest.mark.parametrize(
    ("id", "argument", "value"),
    [
        ("HalfCheetah-v5", "reset_noise_scale", "abc"),
        ("Hopper-v5", "healthy_z_range", 3),
        ("Hopper-v5", "terminate_when_unhealthy", "no"),  # which would count as true
        ("Hopper-v5", "frame_skip", 0),
        ("CartPole-v1", "sutton_barto_reward", "no"),
        ("Pendulum-v1", "g", "abc"),
        ("probe/BitFlip-v0", "bits", 0),
    ],
)
def test_arguments_of_the_wrong_kind_are_told(id, argument, value):
    with pytest.raises(HabilisError, match=argument):
        make_vec_env(id, **{argument: value})


def test_who_has_an_environment_that_gymnasium_lacks_is_said():
    pytest.importorskip("envpool")
    with pytest.raises(ConfigError, match=r"EnvPool has \S+: --env-backend envpool"):
        make_vec_env("FetchReach-v4")


def test_who_has_an_environment_that_cannot_be_made_is_said():
    pytest.importorskip("envpool")
    with pytest.raises(EnvError, match=r"cannot be made .*: EnvPool has FetchReach-v4: --env-backend envpool"):
        make_vec_env("no_such_package:FetchReach-v4")


@pytest.mark.parametrize(
    ("id", "backend", "message"),
    [
        ("CartPol-v1", None, "did you mean 'CartPole-v1'"),
        ("halfcheeta-v5", None, "did you mean 'HalfCheetah-v5'"),
        ("probe/Memry-v0", None, "did you mean 'probe/Memory-v0'"),
        ("FrozenLake-v1", "native", "no native environment"),
        ("probe/Memory-v0", "gymnasium", "there is no environment 'probe/Memory-v0'"),
        ("CartPole-v1", "envpol", "native, gymnasium, envpool"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(id, backend, message):
    with pytest.raises(ConfigError, match=message):
        make_vec_env(id, backend=backend)


def test_no_environments_are_refused():
    with pytest.raises(ConfigError, match="num_envs"):
        make_vec_env("CartPole-v1", 0)


@pytest.mark.parametrize(
    ("id", "kwargs"),
    [("Pendulum-v1", {"backend": "gymnasium"}), ("Pendulum-v1", {"render_mode": "rgb_array"}), ("Taxi-v4", {})],
)
def test_the_seed_of_an_environment_of_gymnasiums_decides_where_it_starts(id, kwargs):
    one, same, other = (make_vec_env(id, 3, seed=seed, **kwargs).reset()["policy"] for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


TASKS = ["ObjectSorting", "PointReach", "QuadrupedWalk", "Catch"]


@pytest.mark.parametrize("backend", ["native", "gymnasium"])
@pytest.mark.parametrize("id", ["Pendulum-v1", "HalfCheetah-v5", *(f"habilis/{name}-v0" for name in TASKS)])
def test_a_reset_without_a_seed_goes_on_to_other_episodes(id, backend):
    env = make_vec_env(id, 4, backend=backend, seed=3, threads=1)
    first, second, first_again, second_again = (env.reset(seed)["policy"] for seed in (3, None, 3, None))
    assert not torch.equal(first, second)
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    env.close()


@pytest.mark.parametrize("id", ["Pendulum-v1", "HalfCheetah-v5", "habilis/GridWorld-v0"])
@pytest.mark.parametrize("backend", ["native", "gymnasium"])
def test_a_reset_starts_the_count_of_steps_anew(id, backend):
    env = make_vec_env(id, 2, backend=backend, threads=1, max_episode_steps=3)
    env.reset(0)
    choices = isinstance(env.spec.action, DiscreteAction)
    action = torch.zeros(2, dtype=torch.long) if choices else torch.zeros(2, env.spec.action.dim)
    env.step(action)
    env.reset()
    assert [bool(env.step(action).truncated.all()) for _ in range(3)] == [False, False, True]
    env.close()


def test_a_higher_floor_registers_its_own():
    def build(id, num_envs, *, seed, threads, gain=1):
        env = ProbeEnv("probe/Memory-v0", num_envs, seed=seed)
        env.made_with = (id, num_envs, seed, threads, gain)
        return env

    if "test/Registered-v0" not in NATIVE:
        register_native("test/Registered-v0", build)
    env = make_vec_env("test/Registered-v0", 3, seed=4, threads=2, gain=5)
    assert env.made_with == ("test/Registered-v0", 3, 4, 2, 5)
    assert "test/Registered-v0" in list_env_ids("native")
    with pytest.raises(ConfigError, match="already registered"):
        register_native("test/Registered-v0", build)


def test_lists_of_ids():
    assert {"HalfCheetah-v5", "probe/Memory-v0", "CartPole-v1"} <= set(list_env_ids())
    assert "FrozenLake-v1" not in list_env_ids("native")
    assert "probe/Memory-v0" not in list_env_ids("gymnasium")
    with pytest.raises(ConfigError, match="no backend"):
        list_env_ids("nonsense")


def test_importing_it_imports_no_simulator():
    code = "import sys, habilis.envs.make; print([m for m in ('gymnasium', 'mujoco', 'envpool') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_id_with_its_module_is_found_among_native_ones(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_tasks_of_test.py").write_text(
        "from habilis.envs.make import register_native\n"
        "from habilis.envs.probes import ProbeEnv\n"
        "def build(id, num_envs, *, seed, threads):\n"
        "    return ProbeEnv('probe/Memory-v0', num_envs, seed=seed)\n"
        "register_native('mine/Probe-v0', build)\n"
    )
    with pytest.raises(ConfigError, match=r"your own file registers is found as `module:id`"):
        make_vec_env("mine/Probe-v0")
    assert make_vec_env("my_tasks_of_test:mine/Probe-v0", 2).num_envs == 2
    with pytest.raises(EnvError, match="No module named"):
        make_vec_env("there_is_no_such_module:mine/Probe-v1")
