"""Native tasks seen by a camera: the same task, and pictures that are true at every step, ends of episodes included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import habilis.tasks as tasks
from habilis.core.errors import ConfigError
from habilis.core.specs import ObsGroup
from habilis.envs.frame_stack import stack_frames
from habilis.envs.make import list_env_ids, make_vec_env
from habilis.envs.mujoco import PIXEL_IDS, make_native

REACHER = "habilis/ReacherPixels-v0"


@pytest.fixture
def make():
    made = []

    def build(id=REACHER, num_envs=2, **kwargs):
        made.append(make_vec_env(id, num_envs, **{"seed": 3, "threads": 1, **kwargs}))
        return made[-1]

    yield build
    for env in made:
        env.close()


def actions(env, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(env.num_envs, env.spec.action.dim, generator=g) * 2 - 1 for _ in range(count)]


def redness(picture):
    """How many pixels are plainly redder than green and blue: the target's."""
    red, green, blue = np.moveaxis(np.asarray(picture, dtype=int), -1, 0)
    return int(((red > green + 40) & (red > blue + 40) & (green < 90)).sum())


def test_every_twin_can_be_seen():
    assert {f"habilis/{name}Pixels-v0" for name in tasks._SEEN} == set(PIXEL_IDS) <= set(list_env_ids("native"))


@pytest.mark.parametrize("id", PIXEL_IDS)
def test_pictures_show_the_robot(make, id):
    env = make(id, 1)
    assert env.spec.obs == {"policy": ObsGroup((64, 64, 3), "uint8", -1)}
    first = env.reset(0)["policy"][0]
    for action in actions(env, 10):
        last = env.step(action).next_obs["policy"][0]
    assert first.float().std() > 3
    assert (first != last).any(-1).sum() > 10  # something in it has moved


def test_it_is_the_same_task(make):
    seen, felt = make(max_episode_steps=7), make("Reacher-v5", max_episode_steps=7)
    for action in actions(seen, 20):
        one, other = seen.step(action), felt.step(action)
        for name in ("reward", "terminated", "truncated", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_the_state_is_shown_where_it_is_asked_for(make):
    seen, felt = make("Reacher-v5", pixels=32, critic_state=True), make("Reacher-v5")
    assert seen.spec.obs == {"policy": ObsGroup((32, 32, 3), "uint8", -1), "critic": felt.spec.obs["policy"]}
    assert seen.spec.critic_groups == ("critic",)
    assert torch.equal(seen.reset(4)["critic"], felt.reset(4)["policy"])


def test_pictures_are_of_this_moment_and_the_last_one_of_its_episode(make):
    env, endless, other = make(max_episode_steps=5), make(max_episode_steps=100), make()
    env.reset(1), endless.reset(1)
    for number, action in enumerate(actions(env, 5), 1):
        step, expected = env.step(action), endless.step(action)
        assert torch.equal(step.next_obs["policy"], expected.obs["policy"])
        assert torch.equal(step.obs["policy"], expected.obs["policy"]) == (number < 5)
        other.simulation.qpos[:], other.simulation.qvel[:] = env.simulation.qpos, env.simulation.qvel
        other._look(np.arange(2))
        assert torch.equal(step.obs["policy"], torch.from_numpy(other._pictures))


def test_a_simulation_that_diverges_keeps_its_last_picture(make):
    env = make()
    env.reset(2)
    before = env.step(actions(env, 1)[0]).obs["policy"]
    env.simulation.qvel[1] = np.nan
    step = env.step(actions(env, 1)[0])
    assert step.valid.tolist() == [True, False]
    assert torch.equal(step.next_obs["policy"][1], before[1])
    assert not torch.equal(step.obs["policy"][1], before[1])
    assert not torch.equal(step.next_obs["policy"][0], before[0])


def test_a_saved_state_goes_on_with_the_same_pictures(make):
    env, again = (stack_frames(make(), 3) for _ in range(2))
    env.reset(5)
    for action in actions(env, 4):
        env.step(action)
    again.load_state_dict(env.state_dict())
    for action in actions(env, 4, seed=1):
        assert torch.equal(env.step(action).obs["policy"], again.step(action).obs["policy"])


@pytest.mark.parametrize("place", [(0.2, 0.0), (-0.2, 0.0), (0.0, 0.2), (0.0, -0.2)])
def test_the_reachers_target_is_in_the_picture_wherever_it_may_be(make, place):
    env = make(num_envs=1)
    env.simulation.qpos[0] = [np.pi / 4, 0.0, *place]
    env._look(np.array([0]))
    assert redness(env._pictures[0]) >= 3
    env.simulation.qpos[0, 2:] = 0.5
    env._look(np.array([0]))
    assert redness(env._pictures[0]) == 0


def test_the_camera_follows_a_walker(make):
    env = make("habilis/Walker2dPixels-v0", 1)
    env.reset(0)
    env.simulation.qpos[0, 0] += 4.0  # two tiles of the floor, so that nothing else changes
    before = env._pictures[0].astype(int)
    env._look(np.array([0]))
    assert np.abs(env._pictures[0] - before)[:, 16:48].mean() < 8


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"camera": "track"}, "with pixels"),
        ({"critic_state": True}, "with pixels"),
        ({"pixels": 0}, "positive"),
        ({"pixels": 32, "camera": "above"}, "no camera 'above'"),
        ({"pixel": 32}, "did you mean 'pixels'"),
    ],
)
def test_what_cannot_be_shown_is_refused(kwargs, words):
    with pytest.raises(ConfigError, match=words):
        make_native("Reacher-v5", 1, seed=0, threads=1, **kwargs)
