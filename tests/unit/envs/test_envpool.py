"""The EnvPool adapter: observation kinds, next-step resets, seeds, errors."""

from __future__ import annotations

import sys

import pytest
import torch

from habilis.core.errors import ConfigError, EnvError, MissingExtraError
from habilis.core.specs import BoxAction, DiscreteAction, MultiDiscreteAction, ObsGroup
from habilis.envs.envpool import EnvPoolVecEnv, envpool_ids


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(MissingExtraError, match=r"habilis\[envpool\]"):
        EnvPoolVecEnv("CartPole-v1")


class TestWithEnvPool:
    """What needs EnvPool itself."""

    @pytest.fixture(autouse=True)
    def _need_envpool(self):
        pytest.importorskip("envpool")

    def test_resets_are_steps_that_are_not_valid(self):
        env = EnvPoolVecEnv("CartPole-v1", 4, seed=1, threads=1)
        assert env.spec.obs == {"policy": ObsGroup((4,))}
        assert env.spec.action == DiscreteAction(2)
        assert env.spec.max_episode_steps == 500
        env.reset()
        ended, ends, length = torch.zeros(4, dtype=torch.bool), 0, torch.zeros(4)
        for _ in range(60):
            step = env.step(torch.ones(4, dtype=torch.int64))
            assert torch.equal(step.valid, ~ended)
            length = torch.where(ended, 0, length + 1)
            assert torch.equal(step.info["elapsed_step"][~ended], length[~ended])
            out = step.next_obs["policy"][:, [0, 2]].abs()
            beyond = (out[:, 0] > 2.4) | (out[:, 1] > 0.2095)
            assert torch.equal(beyond, step.terminated)  # the last observation is the one that ended the episode
            assert (step.reward[ended] == 0).all()
            ended = step.done
            ends += int(ended.sum())
        assert ends > 8
        env.close()

    def test_several_agents_are_refused(self):
        env = EnvPoolVecEnv("intersection-multi-agent-v0", 3, threads=1)
        with pytest.raises(EnvError, match="has 2 agents in each environment, and Habilis trains one"):
            env.reset()
        env.close()

    def test_a_time_limit_truncates(self):
        env = EnvPoolVecEnv("HalfCheetah-v5", 2, threads=1, max_episode_steps=5)
        assert isinstance(env.spec.action, BoxAction)
        env.reset()
        steps = [env.step(torch.rand(2, 6) * 2 - 1) for _ in range(7)]
        assert [bool(s.truncated.all()) for s in steps] == [False] * 4 + [True, False, False]
        assert not any(s.terminated.any() for s in steps)
        assert [bool(s.valid.all()) for s in steps] == [True] * 5 + [False, True]
        assert {"reward_run", "reward_ctrl", "elapsed_step"} <= set(steps[0].info)
        assert not {"env_id", "players/env_id"} & set(steps[0].info)
        assert steps[0].obs["policy"].dtype == torch.float32
        env.close()

    @pytest.mark.parametrize(
        ("id", "groups", "action"),
        [
            ("FrozenLake-v1", {"policy": ObsGroup((16,), one_hot=(16,))}, DiscreteAction),
            ("FingerSpin-v1", {"policy": ObsGroup((12,))}, BoxAction),
            ("Highway-v0", {"policy": ObsGroup((25,))}, DiscreteAction),
            ("Connector-v2", {"policy": ObsGroup((201,))}, MultiDiscreteAction),
            (
                "MiniGrid-Empty-5x5-v0",
                {"policy": ObsGroup((100,)), "policy/image": ObsGroup((7, 7, 3), "uint8")},
                DiscreteAction,
            ),
        ],
    )
    def test_observation_kinds(self, id, groups, action):
        env = EnvPoolVecEnv(id, 2, threads=1)
        assert dict(env.spec.obs) == groups
        assert isinstance(env.spec.action, action)
        first = env.reset()
        columns = {
            BoxAction: (2, getattr(env.spec.action, "dim", 0)),
            DiscreteAction: (2,),
            MultiDiscreteAction: (2, 10),
        }
        dtype = torch.float32 if action is BoxAction else torch.int64
        step = env.step(torch.zeros(columns[action], dtype=dtype))
        for obs in (first, step.obs):
            for name, group in groups.items():
                assert obs[name].shape == (2, *group.shape)
                assert obs[name].dtype == getattr(torch, group.dtype)
        env.close()

    def test_seeds(self):
        def play(seed_at_start, seed_at_reset):
            env = EnvPoolVecEnv("CartPole-v1", 3, seed=seed_at_start, threads=1)
            obs = [env.reset(seed_at_reset)["policy"]]
            obs += [env.step(torch.ones(3, dtype=torch.int64)).obs["policy"] for _ in range(20)]
            again = env.reset(seed_at_reset)["policy"]
            env.close()
            return torch.stack(obs), again

        at_start, fresh = play(5, None)
        at_reset, again = play(6, 5)
        assert torch.equal(at_start, at_reset)
        assert torch.equal(again, at_reset[0])
        assert torch.equal(play(5, 5)[1], at_start[0])
        assert not torch.equal(fresh, at_start[0])
        assert not torch.equal(play(6, None)[0], at_start)
        assert len({tuple(row) for row in fresh.tolist()}) == 3

    def test_state_and_unknown_ids_are_refused(self):
        env = EnvPoolVecEnv("CartPole-v1", threads=1)
        assert not env.spec.saves_state
        with pytest.raises(EnvError, match="saves_state"):
            env.state_dict()
        with pytest.raises(EnvError, match="saves_state"):
            env.load_state_dict({})
        env.close()
        with pytest.raises(ConfigError, match="'HalfCheetah-v5'"):
            EnvPoolVecEnv("Halfcheetah-v55")
        with pytest.raises(EnvError, match="cannot make CartPole-v1"):
            EnvPoolVecEnv("CartPole-v1", nonsense=True)
        assert "Ant-v5" in envpool_ids()
