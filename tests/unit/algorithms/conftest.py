"""A small random environment of any kind of observation and action, and rollouts and batches from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from habilis.algorithms.a2c import A2C, A2CConfig
from habilis.algorithms.discrete_sac import DiscreteSAC, DiscreteSACConfig
from habilis.algorithms.dqn import DQN, DQNConfig
from habilis.algorithms.ppo import PPO, PPOConfig
from habilis.algorithms.reinforce import Reinforce, ReinforceConfig
from habilis.algorithms.sac import SAC, SACConfig
from habilis.algorithms.td3 import TD3, TD3Config
from habilis.algorithms.trpo import TRPO, TRPOConfig
from habilis.core.random import RandomStreams
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, HybridAction, MultiDiscreteAction, ObsGroup
from habilis.core.types import Step
from habilis.data.replay import ReplayBuffer
from habilis.data.rollout import RolloutBuffer

ACTIONS = {
    "box": BoxAction(np.array([-1, 0], np.float32), np.array([1, 4], np.float32)),
    "choice": DiscreteAction(3),
    "choices": MultiDiscreteAction((3, 2)),
}
ACTIONS["hybrid"] = HybridAction(ACTIONS["box"], ACTIONS["choices"])
VECTOR = {"policy": ObsGroup((3,))}
ASYMMETRIC = {"policy": ObsGroup((3,)), "critic": ObsGroup((5,))}
IMAGES = {"policy": ObsGroup((36, 36, 3), "uint8")}


class ToyEnv:
    """Observations far from mean 0 and variance 1, rewards by observation and action, every kind of ending."""

    def __init__(self, obs, action, num_envs=4, seed=0, ends=0.2, invalid=0.1):
        self.spec = EnvSpec("toy", obs, action)
        self.num_envs = num_envs
        self.ends, self.invalid = ends, invalid
        self.g = torch.Generator().manual_seed(seed)
        self.obs = self.observe()

    def observe(self):
        return {
            name: torch.randint(256, (self.num_envs, *group.shape), generator=self.g, dtype=torch.uint8)
            if group.is_image
            else torch.randn(self.num_envs, *group.shape, generator=self.g) * 5 + 20
            for name, group in self.spec.obs.items()
        }

    def draw(self):
        return torch.rand(self.num_envs, generator=self.g)

    def step(self, env_action):
        reward = self.obs["policy"].flatten(1).float().mean(1) + env_action.float().reshape(self.num_envs, -1).mean(1)
        ended, kind = self.draw() < self.ends, self.draw() < 0.5
        next_obs = self.observe()
        obs = next_obs
        if ended.any():
            reset = self.observe()
            obs = {k: torch.where(ended.view(-1, *[1] * (v.dim() - 1)), reset[k], v) for k, v in next_obs.items()}
        step = Step(obs, next_obs, reward, ended & kind, ended & ~kind, self.draw() >= self.invalid)
        self.obs = obs
        return step


class Lab:
    """Makes algorithms and what they learn from."""

    ACTIONS, VECTOR, ASYMMETRIC, IMAGES = ACTIONS, VECTOR, ASYMMETRIC, IMAGES

    def env(self, obs=VECTOR, action="box", **kwargs):
        return ToyEnv(obs, ACTIONS[action], **kwargs)

    def ppo(self, env, seed=0, **config):
        defaults = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "hidden": (16, 16)}
        return PPO(env.spec, PPOConfig(**defaults | config), num_envs=env.num_envs, streams=RandomStreams(seed))

    def a2c(self, env, seed=0, **config):
        settings = A2CConfig(**{"hidden": (16, 16)} | config)
        return A2C(env.spec, settings, num_envs=env.num_envs, streams=RandomStreams(seed))

    def reinforce(self, env, seed=0, **config):
        settings = ReinforceConfig(**{"batch_size": 8, "n_critic_updates": 2, "hidden": (16, 16)} | config)
        return Reinforce(env.spec, settings, num_envs=env.num_envs, streams=RandomStreams(seed))

    def trpo(self, env, seed=0, **config):
        settings = TRPOConfig(
            **{"batch_size": 8, "n_critic_updates": 2, "cg_max_steps": 5, "hidden": (16, 16)} | config
        )
        return TRPO(env.spec, settings, num_envs=env.num_envs, streams=RandomStreams(seed))

    def sac(self, env, seed=0, **config):
        return SAC(env.spec, SACConfig(**{"hidden": (16, 16), "batch_size": 32} | config), streams=RandomStreams(seed))

    def discrete_sac(self, env, seed=0, **config):
        settings = DiscreteSACConfig(**{"hidden": (16, 16), "batch_size": 32} | config)
        return DiscreteSAC(env.spec, settings, streams=RandomStreams(seed))

    def td3(self, env, seed=0, **config):
        return TD3(env.spec, TD3Config(**{"hidden": (16, 16), "batch_size": 32} | config), streams=RandomStreams(seed))

    def dqn(self, env, seed=0, **config):
        return DQN(env.spec, DQNConfig(**{"hidden": (16, 16), "batch_size": 32} | config), streams=RandomStreams(seed))

    def rollout(self, algorithm, env, n_steps=16, seed=0):
        buffer, g = RolloutBuffer(n_steps), torch.Generator().manual_seed(seed)
        buffer.start(env.obs)
        for _ in range(n_steps):
            policy_step = algorithm.policy.act(env.obs, generator=g)
            buffer.add(policy_step, env.step(policy_step.env_action))
        return buffer.batch()

    def replay(self, algorithm, env, steps=50, seed=0, **kwargs):
        buffer = ReplayBuffer(env.spec, 4000, env.num_envs, generator=np.random.default_rng(seed), **kwargs)
        g = torch.Generator().manual_seed(seed)
        buffer.start(env.obs)
        for _ in range(steps):
            policy_step = algorithm.policy.act(env.obs, generator=g)
            buffer.add(policy_step.action, env.step(policy_step.env_action))
        return buffer


@pytest.fixture
def lab():
    return Lab()
