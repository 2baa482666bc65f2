"""The checker finds each of the mistakes it knows, and finds none in sound environments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.envs.checker import _actions, check_env
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
