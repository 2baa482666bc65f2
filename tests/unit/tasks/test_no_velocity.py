"""Tasks without velocities are the tasks they are made of, less some values of what they show."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401
from habilis.core.actions import uniform_actions
from habilis.core.errors import ConfigError
from habilis.core.specs import BoxAction
from habilis.envs.checker import check_env
from habilis.envs.make import make_vec_env
from habilis.tasks.no_velocity import NO_VELOCITY

SHOWN = {
    "CartPole": (0, 2),
    "Pendulum": (0, 1),
    "HalfCheetah": range(8),
    "Hopper": range(5),
    "InvertedPendulum": range(2),
    "Swimmer": range(3),
    "Walker2d": range(8),
}


@pytest.mark.parametrize("id", NO_VELOCITY)
def test_it_is_the_task_less_its_velocities(id):
    shown = list(SHOWN[id.removeprefix("habilis/").removesuffix("NoVelocity-v0")])
    env, whole = (make_vec_env(name, 3, seed=5, threads=1) for name in (id, NO_VELOCITY[id]))
    action_spec = whole.spec.action
    high = torch.from_numpy(action_spec.high) if isinstance(action_spec, BoxAction) else 1
    g = torch.Generator().manual_seed(0)
    assert env.spec.obs["policy"].size == len(shown)
    assert (env.spec.id, env.spec.max_episode_steps) == (id, whole.spec.max_episode_steps)
    assert torch.equal(env.reset(7)["policy"], whole.reset(7)["policy"][:, shown])
    ends = 0
    for _ in range(250):
        action = uniform_actions(action_spec, 3, g) * high
        ours, theirs = env.step(action), whole.step(action)
        assert torch.equal(ours.obs["policy"], theirs.obs["policy"][:, shown])
        assert torch.equal(ours.next_obs["policy"], theirs.next_obs["policy"][:, shown])
        assert torch.equal(ours.reward, theirs.reward)
        assert torch.equal(ours.done, theirs.done)
        ends += int(ours.done.sum())
    assert (ends > 0) == (id not in ("habilis/HalfCheetahNoVelocity-v0", "habilis/SwimmerNoVelocity-v0"))
    if env.spec.saves_state:
        state = env.state_dict()
        after = env.step(action).obs["policy"]
        env.load_state_dict(state)
        assert torch.equal(env.step(action).obs["policy"], after)
    for each in (env, whole):
        each.close()


def test_pictures_hide_them_already():
    with pytest.raises(ConfigError, match="make HalfCheetah-v5 with pixels"):
        make_vec_env("habilis/HalfCheetahNoVelocity-v0", 1, pixels=16)


def test_it_keeps_the_contract_and_is_known_to_gymnasium():
    for id in ("habilis/HopperNoVelocity-v0", "habilis/PendulumNoVelocity-v0"):
        env = make_vec_env(id, 2, threads=1)
        assert [finding for finding in check_env(env) if finding.level == "error"] == []
        env.close()
    env = gymnasium.make("habilis/PendulumNoVelocity-v0", render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2,)
    assert np.linalg.norm(obs) == pytest.approx(1)
    assert env.render().dtype == np.uint8
    env.close()
