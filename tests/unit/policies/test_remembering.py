"""Policies with memory: what they do depends on the episode so far, recorded or not, drawn or not, exploring or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from habilis.algorithms import a2c, dqn, ppo, sac, td3
from habilis.core.recording import RECORD_AFTER
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.tree import zero_rows
from habilis.envs.make import make_vec_env
from habilis.evaluation.evaluator import evaluate
from habilis.nn.memory import MemoryConfig
from habilis.policies.action_filter import ActionConfig

BOX = BoxAction(-np.ones(2, np.float32), np.ones(2, np.float32))
N = 4


def make(module, kind="gru", **config):
    made = {
        "ppo": (ppo, ppo.PPOConfig, BOX),
        "a2c": (a2c, a2c.A2CConfig, DiscreteAction(3)),
        "sac": (sac, sac.SACConfig, BOX),
        "td3": (td3, td3.TD3Config, BOX),
        "dqn": (dqn, dqn.DQNConfig, DiscreteAction(3)),
    }
    module, cls, action = made[module]
    spec = EnvSpec("test", {"policy": ObsGroup((3,))}, action)
    memory = MemoryConfig(kind=kind, size=8, window=4, heads=2)
    policy = module.make_policy(spec, cls(memory=memory, hidden=(16, 16), **config), torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from small first weights
        for parameter in policy.parameters():
            parameter.mul_(2)
    return policy


POLICIES = pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3", "dqn"])
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm", "transformer"])


def sights(count):
    return torch.randn(count, N, 3, generator=torch.Generator().manual_seed(1))


@KINDS
@POLICIES
def test_each_environment_has_a_memory_of_its_own_that_zeros_forget(name, kind):
    policy, obs = make(name, kind), sights(12)
    memory, alone = None, None
    for t in range(12):
        step = policy.act({"policy": obs[t]}, memory, deterministic=True)
        single = policy.act({"policy": obs[t, :1]}, alone, deterministic=True)
        torch.testing.assert_close(step.env_action[:1], single.env_action)
        again, after = policy({"policy": obs[t]}, memory)
        assert torch.equal(step.env_action, again)
        assert torch.equal(step.memory["network"], after["network"])
        memory, alone = step.memory, single.memory
        if t == 5:
            memory, alone = zero_rows(memory, torch.arange(N) == 0), None
    fresh = policy.act({"policy": obs[-1]}, deterministic=True)
    assert not torch.equal(fresh.memory["network"], memory["network"])


@POLICIES
def test_what_is_remembered_does_not_depend_on_what_is_drawn_nor_on_the_recording(name):
    policy, obs = make(name), sights(RECORD_AFTER + 4)
    calm, drawn = None, None
    g = torch.Generator().manual_seed(2)
    for x in obs:
        calm = policy.act({"policy": x}, calm, deterministic=True).memory
        drawn = policy.act({"policy": x}, drawn, generator=g).memory
        torch.testing.assert_close(drawn["network"], calm["network"])
        assert not drawn["network"].requires_grad


def test_predict_carries_what_is_remembered_as_it_is():
    policy, obs = make("ppo"), sights(3).numpy()
    memory, kept = None, None
    for x in obs:
        many, memory = policy.predict(x, memory)
        one, kept = policy.predict(x[1], kept)
        np.testing.assert_allclose(one, many[1], rtol=1e-5)
    assert memory["network"].shape == (N, 8)


def test_memories_of_several_kinds_stand_side_by_side():
    policy = make("td3", action_noise="ornstein_uhlenbeck", action=ActionConfig(smoothing=0.5))
    step = policy.act({"policy": sights(1)[0]}, generator=torch.Generator().manual_seed(0))
    assert sorted(step.memory) == ["last_action", "network", "noise"]
    calm = policy.act({"policy": sights(1)[0]}, step.memory, deterministic=True)
    assert torch.equal(calm.memory["noise"], step.memory["noise"])
    assert not torch.equal(calm.memory["network"], step.memory["network"])


def test_the_evaluator_lets_memories_begin_with_their_episodes(monkeypatch):
    env = make_vec_env("probe/MemoryContinuous-v0", 2)  # of 4 steps
    config = ppo.PPOConfig(memory=MemoryConfig(kind="lstm", size=8))
    policy, seen = ppo.make_policy(env.spec, config, torch.Generator().manual_seed(0)), []
    act = policy.act

    def spy(obs, memory=None, **others):
        seen.append(memory is not None and bool(memory["network"].any()))
        return act(obs, memory, **others)

    monkeypatch.setattr(policy, "act", spy)
    evaluate(policy, env, episodes=4, seed=0)
    assert seen == [False, True, True, True] * 2
