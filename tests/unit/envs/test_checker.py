"""The checker finds each of the mistakes it knows, and finds none in sound environments."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.envs.checker import _actions, check_env
from habilis.envs.gymnasium import GymnasiumVecEnv, make_gymnasium
from habilis.envs.make import make_vec_env
from habilis.envs.probes import ProbeEnv


class Walk:
    """A sound environment (a random walk of 7 steps) in which a test breaks one thing."""

    spec = EnvSpec(
        id="Walk",
        obs={"policy": ObsGroup((2,))},
        action=BoxAction(-np.ones(1, np.float32), np.ones(1, np.float32)),
        max_episode_steps=7,
        saves_state=True,
    )
    num_envs = 3

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.reset(0)

    def observe(self):
        return {"policy": torch.stack([self.position, self.time.float()], 1)}

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.time = torch.zeros(3, dtype=torch.int64)
        self.position = torch.rand(3, generator=self.generator)
        return self.observe()

    def step(self, action):
        self.time = self.time + 1
        self.position = self.position + action[:, 0] + 0.1 * torch.rand(3, generator=self.generator)
        done = self.time >= 7
        obs = next_obs = self.observe()
        reward = -self.position.abs()
        if done.any():
            self.time = torch.where(done, 0, self.time)
            self.position = torch.where(done, torch.rand(3, generator=self.generator), self.position)
            obs = self.observe()
        return Step(obs, next_obs, reward, torch.zeros_like(done), done, torch.ones_like(done), {"x": self.position})

    def state_dict(self):
        return {"time": self.time, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.time, self.position = state["time"], state["position"]
        self.generator.set_state(state["generator"])

    def close(self):
        pass


def changed(change):
    """Return a walk each step of which goes through `change(step, number)`."""

    class Changed(Walk):
        number = -1

        def step(self, action):
            self.number += 1
            return change(super().step(action), self.number)

    return Changed()


def with_spec(**fields):
    env = Walk()
    env.spec = replace(Walk.spec, **fields)
    return env


def with_bounds(low, high):
    return with_spec(action=BoxAction(np.array(low, np.float32), np.array(high, np.float32)))


class UnseededNoise(Walk):
    def reset(self, seed=None):
        return super().reset(None)


class SharedBuffer(Walk):
    buffer = torch.zeros(3, 2)

    def observe(self):
        self.buffer[:] = super().observe()["policy"]
        return {"policy": self.buffer}


class ForgetsItsStream(Walk):
    def load_state_dict(self, state):
        self.time, self.position = state["time"], state["position"]


class LiveState(Walk):
    """Goes on writing to the very arrays that it was given to restore."""

    def state_dict(self):
        return {k: v.clone() for k, v in super().state_dict().items()}

    def step(self, action):
        position = self.position
        step = super().step(action)
        position[:] = self.position
        self.position = position
        return step


class Raising(Walk):
    def step(self, action):
        raise RuntimeError("it broke")


def nan_reward(step, number):
    return replace(step, reward=step.reward / 0) if number == 5 else step


def late_info(step, number):
    return replace(step, info={**step.info, "late": step.reward}) if number > 5 else step


def lost_info(step, number):
    return replace(step, info={}) if number == 5 else step


BROKEN = {
    "no observation group 'policy'": (lambda: with_spec(obs={"state": ObsGroup((2,))}), "error"),
    "'policy' is [3, 2] float32": (lambda: with_spec(obs={"policy": ObsGroup((3,))}), "error"),
    "observation groups are": (lambda: with_spec(obs={"policy": ObsGroup((2,)), "critic": ObsGroup((1,))}), "error"),
    "reward is [3] float64": (lambda: changed(lambda s, n: replace(s, reward=s.reward.double())), "error"),
    "terminated is [3] int64": (lambda: changed(lambda s, n: replace(s, terminated=s.terminated.long())), "error"),
    "no bounds": (lambda: with_bounds([-np.inf], [np.inf]), "warning"),
    "low is not below": (lambda: with_bounds([1], [1]), "error"),
    "not symmetric": (lambda: with_bounds([0], [1]), "warning"),
    "scaled badly: bounds from 1000": (lambda: with_bounds([-1000], [1000]), "warning"),
    "scaled badly: bounds from 0.001": (lambda: with_bounds([-0.001, -1], [0.001, 1]), "warning"),
    "reward is not finite": (lambda: changed(nan_reward), "error"),
    "'policy' reaches": (
        lambda: changed(lambda s, n: replace(s, obs=(o := {"policy": 1e5 * s.obs["policy"]}), next_obs=o)),
        "warning",
    ),
    "rewards reach": (lambda: changed(lambda s, n: replace(s, reward=1e5 * s.reward)), "warning"),
    "never met a reward": (lambda: changed(lambda s, n: replace(s, reward=0 * s.reward)), "warning"),
    "are both true": (lambda: changed(lambda s, n: replace(s, terminated=s.truncated)), "error"),
    "next_obs equals obs wherever": (lambda: changed(lambda s, n: replace(s, next_obs=s.obs)), "error"),
    "where no episode ended": (
        lambda: changed(lambda s, n: replace(s, next_obs={"policy": s.next_obs["policy"] + 1})),
        "error",
    ),
    "longer than max_episode_steps": (lambda: with_spec(max_episode_steps=6), "error"),
    "terminated at the limit": (
        lambda: changed(lambda s, n: replace(s, terminated=s.truncated, truncated=s.terminated)),
        "warning",
    ),
    "no episode ended": (lambda: changed(lambda s, n: replace(s, truncated=s.terminated, obs=s.next_obs)), "warning"),
    "['late'] are absent": (lambda: changed(late_info), "warning"),
    "['x'] vanish": (lambda: changed(lost_info), "error"),
    "are not [N]": (lambda: changed(lambda s, n: replace(s, info={"x": s.reward.mean()})), "error"),
    "the same seed": (UnseededNoise, "error"),
    "was changed by a later step": (SharedBuffer, "error"),
    "does not restore": (ForgetsItsStream, "error"),
    "restore the environment exactly": (LiveState, "error"),
    "does not raise": (lambda: with_spec(saves_state=False), "error"),
    "raised RuntimeError: it broke": (Raising, "error"),
}


def test_a_sound_environment_has_no_findings():
    findings = check_env(Walk(), 60)
    assert {f.level for f in findings} == {"ok"}
    assert len(findings) == 8


@pytest.mark.parametrize("what", BROKEN)
def test_a_mistake_is_found(what):
    make, level = BROKEN[what]
    found = [f for f in check_env(make(), 60) if what in f.what]
    assert found, [f.what for f in check_env(make(), 60)]
    assert found[0].level == level
    assert found[0].why
    assert found[0].fix


def test_a_counter_that_is_not_saved_is_found_where_the_limit_divides_the_rollouts():
    class ForgetsItsTime(Walk):
        def load_state_dict(self, state):
            super().load_state_dict({**state, "time": self.time})

    found = [f.what for f in check_env(ForgetsItsTime(), 140) if f.level == "error"]
    assert found == ["the state does not restore the environment exactly"]


def test_random_actions_keep_to_a_single_bound():
    env = with_bounds([0, -np.inf, -1], [np.inf, 1, 2])
    actions = torch.stack(_actions(env, 50, 0))
    assert (actions >= torch.from_numpy(env.spec.action.low)).all()
    assert (actions <= torch.from_numpy(env.spec.action.high)).all()
    assert actions[..., 0].max() > 1 > -1 > actions[..., 1].min()


def test_errors_come_first():
    levels = [f.level for f in check_env(changed(nan_reward), 60)]
    assert levels == sorted(levels, key=("error", "warning", "ok").index)


@pytest.mark.parametrize(
    ("id", "backend"), [("CartPole-v1", "gymnasium"), ("CartPole-v1", "envpool"), ("Hopper-v5", "native")]
)
def test_every_backend_passes(id, backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    env = make_vec_env(id, 2, backend=backend, threads=1)
    assert [f for f in check_env(env, 80) if f.level != "ok"] == []
    env.close()


def test_images_that_are_already_scaled():
    env = Walk()
    env.spec = replace(Walk.spec, obs={"policy": ObsGroup((1, 2, 2), "uint8")}, action=DiscreteAction(2))
    plain_step, plain_reset = env.step, env.reset

    def image(obs):
        return {"policy": (obs["policy"] > 0).to(torch.uint8).repeat(1, 2).view(3, 1, 2, 2)}

    def step(action):
        answer = plain_step(action[:, None].float())
        obs = image(answer.obs)
        return replace(answer, obs=obs, next_obs=image(answer.next_obs) if answer.done.any() else obs)

    env.step, env.reset = step, lambda seed=None: image(plain_reset(seed))
    assert any("has no value above 1" in f.what for f in check_env(env, 60))


def test_hybrid_actions_are_drawn_within_bounds_and_choices():
    env = ProbeEnv("probe/IdentityHybrid-v0", 50)
    actions = torch.stack(_actions(env, 40, 0))
    assert actions.shape == (40, 50, 2)
    assert actions[..., 1].unique().tolist() == [0, 1, 2]
    assert float(actions[..., 0].abs().max()) <= 1
    assert float(actions[..., 0].std()) > 0.5
    found = [finding.what for finding in check_env(env, 40)]
    assert "1 actions with sane bounds" in found
    assert "beside values, actions are choices among 3" in found


class Raw(gym.Env):
    """Says what `observation` returns, in a space of its own; episodes of 5 steps."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, space, observation):
        self.observation_space, self.observation = space, observation

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observation(self.time), {}

    def step(self, action):
        self.time += 1
        return self.observation(self.time), 1.0, False, self.time == 5, {}


UNIT = spaces.Box(-1, 1, (3,))
MISFITS = {
    "observation 'policy' of environment 0 is 5.0 at [2], its space says at most 1.0": (
        (UNIT, lambda t: np.array([0, -1, 5 * (t == 3)], np.float32)),
        "warning",
    ),
    "observation 'policy' of environment 0 is -5.0 at [0], its space says at least -1.0": (
        (UNIT, lambda t: np.array([-t, 0, 0], np.float32) * (t == 5)),  # in the last observation of an episode
        "warning",
    ),
    "observation 'policy' of environment 0 is float64, its space says float32": (
        (UNIT, lambda t: np.zeros(3)),
        "warning",
    ),
    "observation 'policy' of environment 0 is int64, its space says float32": (
        (UNIT, lambda t: np.zeros(3, np.int64)),
        "warning",
    ),
    "observation 'policy' of environment 0 is float32, its space says uint8": (
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), lambda t: np.full((4, 4, 3), 0.5, np.float32)),
        "error",
    ),
    "observation 'policy' of environment 0 has the shape (2,), its space says (3,)": (
        (UNIT, lambda t: np.zeros(2, np.float32)),
        "error",
    ),
    "observation 'critic' (critic/1) of environment 0 is 4, its space says at most 3": (
        (
            spaces.Dict(policy=UNIT, critic=spaces.Tuple([UNIT, spaces.Discrete(3, start=1)])),
            lambda t: {"policy": np.zeros(3, np.float32), "critic": (np.zeros(3, np.float32), 1 + t % 4)},
        ),
        "warning",
    ),
    "observation 'policy' of environment 0 is 2 at [0], its space says at most 1": (
        (spaces.MultiBinary(2), lambda t: np.array([2 * (t > 3), 0], np.int8)),
        "warning",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_a_space_does_not_allow_is_found_before_it_is_cast(what):
    (space, observation), level = MISFITS[what]
    env = make_gymnasium(lambda: Raw(space, observation), 2)
    found = [f for f in check_env(env, 30) if "its space says" in f.what]
    assert [(f.what, f.level) for f in found] == [(what, level)]
    assert found[0].why
    assert found[0].fix


def test_bounds_are_checked_in_a_vector_environment_of_ones_own():
    vector = gym.vector.SyncVectorEnv([lambda: Raw(UNIT, lambda t: np.full(3, t, np.float32))] * 2)
    env = GymnasiumVecEnv(
        gym.wrappers.vector.TransformObservation(vector, lambda obs: 2 * obs, single_observation_space=UNIT)
    )
    whats = [f.what for f in check_env(env, 30)]
    assert "observation 'policy' of environment 0 is 2.0 at [0], its space says at most 1.0" in whats


def test_what_is_allowed_is_not_complained_of():
    """Bounds themselves, in a wider type rounded to them, and what is not finite, which is another finding."""
    space = spaces.Box(-0.7, 0.7, (3,))  # in float32 a little less
    env = make_gymnasium(lambda: Raw(space, lambda t: np.array([0.7, -0.7, np.nan])), 2)
    assert [f.what for f in check_env(env, 30) if "at most" in f.what or "at least" in f.what] == []
    env = make_gymnasium(lambda: Raw(UNIT, lambda t: np.array([1, -1, 0], np.float32)), 2)
    assert "raw observations are what their space declares" in [f.what for f in check_env(env, 30) if f.level == "ok"]


def test_infos_do_not_make_an_environment_random():
    """Wall time, and a key that is shown at the end of episodes only, say nothing of what is learnt."""
    env = make_gymnasium(lambda: gym.wrappers.RecordEpisodeStatistics(Raw(UNIT, lambda t: UNIT.low)), 2)
    findings = check_env(env, 30)
    assert "deterministic under a seed over 30 steps" in [f.what for f in findings]
    assert [f.what for f in findings if f.level == "error"] == []


def test_infos_that_are_written_to_again_are_found():
    shared = torch.zeros(3)
    env = changed(lambda s, n: replace(s, info={"x": shared.fill_(n)}))
    assert any("was changed by a later step" in f.what for f in check_env(env, 60))
