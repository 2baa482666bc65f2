"""A picture beside a vector: what learns reads both, and what is exported asks for both."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import habilis
from habilis.deploy.runtime import OnnxPolicy

STATE = spaces.Box(-1, 1, (3,), np.float32)
CAMERA = spaces.Box(0, 255, (20, 20, 3), np.uint8)


class Seeing(gym.Env):
    """Rewards nothing; its camera shows noise."""

    def __init__(self, action: str, privileged: bool = False) -> None:
        eyes = spaces.Dict({"state": STATE, "camera": CAMERA})
        self.observation_space = spaces.Dict({"policy": eyes, "critic": eyes}) if privileged else eyes
        self.action_space = spaces.Discrete(3) if action == "choice" else spaces.Box(-1, 1, (2,), np.float32)
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 0.0, False, self.steps == 20, {}


gym.register("test/Seeing-v0", Seeing)

SMALL = {"algo.hidden": (16,), "eval_episodes": 1, "num_envs": 2, "threads": 1}
REPLAY = {**SMALL, "total_timesteps": 60, "algo.learning_starts": 40, "algo.batch_size": 16, "algo.buffer_size": 64}
ROLLOUT = {**SMALL, "total_timesteps": 64, "algo.n_steps": 16}
LEARNERS = {
    "ppo": ("values", ROLLOUT),
    "a2c": ("values", ROLLOUT),
    "sac": ("values", {**REPLAY, "plugins.contrastive": {}}),
    "td3": ("values", REPLAY),
    "dqn": ("choice", REPLAY),
    "discrete_sac": ("choice", REPLAY),
}


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_picture_beside_a_vector_is_read(name, privileged, tmp_path):
    action, settings = LEARNERS[name]
    kwargs = {"action": action, "privileged": privileged}
    run = habilis.train(name, "test/Seeing-v0", run_dir=tmp_path / "run", env_kwargs=kwargs, seed=0, **settings)
    policy = habilis.load(run.path)
    assert policy.spec.policy_groups == ("policy", "policy/camera")
    expected = ("critic", "critic/camera") if privileged else policy.spec.policy_groups
    assert policy.spec.critic_groups == expected
    pictures = torch.randint(256, (8, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    obs = {"policy": torch.zeros(8, 3), "policy/camera": pictures}
    with torch.no_grad():
        assert len({tuple(row) for row in policy.encoder(obs).tolist()}) == 8  # though the vector is one
    runtime = OnnxPolicy(habilis.export(policy, tmp_path / "exported"))
    expected = policy(obs)[0].detach().numpy()
    action, _ = runtime.predict({name: x.numpy() for name, x in obs.items()})
    np.testing.assert_allclose(action, expected, atol=1e-5)
