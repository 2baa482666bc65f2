"""Environments with goals: their groups, what they pay for any goal, and bit flipping."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from habilis.core.errors import EnvError
from habilis.core.specs import ACHIEVED, DESIRED, DiscreteAction, ObsGroup
from habilis.envs.checker import check_env
from habilis.envs.envpool import EnvPoolVecEnv
from habilis.envs.goals import OwnFunction, distance_reward
from habilis.envs.gymnasium import GymnasiumVecEnv, make_gymnasium
from habilis.envs.make import make_vec_env
from habilis.envs.spaces import ObsLayout
from habilis.nn.memory import MemoryConfig, make_encoder

BOX = spaces.Box(-9, 9, (2,), np.float64)
IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)


class Plane(gym.Env):
    """A walk on the integers of a plane; the reward is how near the goal is, and reaching it ends the episode."""

    def __init__(self, goal_space=BOX):
        self.observation_space = spaces.Dict(
            {"observation": spaces.Box(-9, 9, (1,)), "achieved_goal": goal_space, "desired_goal": goal_space}
        )
        self.action_space = spaces.Discrete(2)

    def show(self):
        return {"observation": np.zeros(1, np.float32), "achieved_goal": self.at.copy(), "desired_goal": self.goal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.goal = np.zeros(2), self.np_random.integers(1, 4, 2).astype(float)
        return self.show(), {}

    def step(self, action):
        self.at[action] += 1
        end = self.compute_terminated(self.at, self.goal, {})
        return self.show(), float(self.compute_reward(self.at, self.goal, {})), bool(end), False, {"is_success": end}

    def compute_reward(self, achieved, desired, info):
        return -np.linalg.norm(achieved - desired, axis=-1)

    def compute_terminated(self, achieved, desired, info):
        return np.all(achieved == desired, axis=-1)


class Doubled(gym.Wrapper):
    """Twice the reward, and says so."""

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, 2 * reward, *rest

    def compute_reward(self, achieved, desired, info):
        return 2 * self.unwrapped.compute_reward(achieved, desired, info)


GOALS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0], [1.0, 2.0]])
PAID = [0.0, -5.0, 0.0]


class TestGroups:
    """What becomes of dictionaries with goals."""

    def test_goals_are_groups(self):
        env = make_gymnasium(lambda: gym.wrappers.TimeLimit(Plane(), 5), 2)
        assert dict(env.spec.obs) == {"policy": ObsGroup((1,)), ACHIEVED: ObsGroup((2,)), DESIRED: ObsGroup((2,))}
        assert env.spec.has_goals
        assert env.spec.policy_groups == env.spec.critic_groups == ("policy", DESIRED)
        obs = env.reset(0)
        assert obs[ACHIEVED].tolist() == [[0, 0], [0, 0]]
        assert (obs[DESIRED] >= 1).all()
        assert obs[DESIRED].dtype == torch.float32

    def test_all_else_is_what_acts(self):
        parts = {"observation": BOX, "extra": BOX, "camera": IMAGE, ACHIEVED: BOX, DESIRED: BOX}
        groups = ObsLayout(spaces.Dict(parts)).groups
        assert {name: group.shape for name, group in groups.items()} == {
            "policy": (4,),
            ACHIEVED: (2,),
            DESIRED: (2,),
            "policy/camera": (4, 4, 3),
        }

    def test_pictures_of_goals(self):
        groups = ObsLayout(spaces.Dict({"observation": IMAGE, ACHIEVED: IMAGE, DESIRED: IMAGE})).groups
        assert set(groups) == {"policy", ACHIEVED, DESIRED}
        assert all(group.is_image for group in groups.values())

    def test_one_goal_alone_is_part_of_what_acts(self):
        assert set(ObsLayout(spaces.Dict({"observation": BOX, DESIRED: BOX})).groups) == {"policy"}

    def test_a_name_with_dots_is_one_that_networks_can_have(self):
        picture = spaces.Box(0, 255, (48, 48, 3), np.uint8)
        groups = ObsLayout(spaces.Dict({"observation.state": BOX, "observation.images.top": picture})).groups
        assert set(groups) == {"policy", "policy/observation_images_top"}
        make_encoder(groups, tuple(groups), True, MemoryConfig(), torch.Generator())
        with pytest.raises(EnvError, match="two parts of the observation would be the group 'policy/a/b'"):
            ObsLayout(spaces.Dict({"a": spaces.Dict({"b": IMAGE}), "a/b": IMAGE, "x": BOX}))

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Dict({}),
            spaces.Tuple(()),
            spaces.Box(0, 1, (0,)),
            spaces.Dict({"policy": spaces.Dict({}), "critic": BOX}),
            spaces.Dict({"policy": BOX, "critic": spaces.Box(0, 1, (3, 0))}),
        ],
    )
    def test_a_group_without_values_is_refused(self, space):
        with pytest.raises(EnvError, match="a group of observations is empty"):
            ObsLayout(space)

    def test_named_groups_may_have_goals(self):
        layout = ObsLayout(spaces.Dict({"policy": BOX, "critic": BOX, ACHIEVED: BOX, DESIRED: BOX}))
        assert set(layout.groups) == {"policy", "critic", ACHIEVED, DESIRED}


class TestGymnasium:
    """The functions of a Gymnasium environment."""

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_they_are_found_under_wrappers(self, asynchronous):
        env = make_gymnasium(lambda: gym.wrappers.TimeLimit(Plane(), 5), 2, asynchronous=asynchronous)
        try:
            assert env.compute_reward(*GOALS).tolist() == PAID
            assert env.compute_reward(*GOALS).dtype == torch.float32
            assert env.compute_terminated(*GOALS).tolist() == [True, False, True]
        finally:
            env.close()

    def test_the_outermost_wrapper_that_has_one_is_asked(self):
        env = make_gymnasium(lambda: gym.wrappers.TimeLimit(Doubled(Plane()), 5))
        assert env.compute_reward(*GOALS).tolist() == [2 * paid for paid in PAID]
        assert env.compute_terminated(*GOALS).tolist() == [True, False, True]

    def test_they_agree_with_the_steps(self):
        env = make_gymnasium(lambda: gym.wrappers.TimeLimit(Doubled(Plane()), 5), 3)
        env.reset(0)
        for k in range(40):
            step = env.step(torch.tensor([k % 2, k // 2 % 2, k // 3 % 2]))
            reached, wanted = step.next_obs[ACHIEVED], step.next_obs[DESIRED]
            assert torch.allclose(env.compute_reward(reached, wanted), step.reward)
            assert torch.equal(env.compute_terminated(reached, wanted), step.terminated)
            assert torch.equal(step.info["success"], step.terminated)

    def test_a_vector_environment_may_have_its_own(self):
        class Planes(gym.vector.VectorEnv):
            metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012
            num_envs = 4
            single_observation_space = Plane().observation_space
            single_action_space = Plane().action_space
            compute_reward = Plane.compute_reward

        env = GymnasiumVecEnv(Planes())
        assert env.compute_reward(*GOALS).tolist() == PAID
        assert env.compute_terminated is None

    def test_an_environment_without_goals_has_none(self):
        env = make_gymnasium("CartPole-v1")
        assert env.compute_reward is None
        assert env.compute_terminated is None
        assert not env.spec.has_goals
        assert env.spec.policy_groups == ("policy",)


class TestOwnFunctions:
    """Functions of one goal, of many, and of neither."""

    def ask(self, function, dtype=torch.float32, space=BOX):
        return OwnFunction("f", function, space, dtype)(*GOALS).tolist()

    def test_of_one_goal(self):
        # the norm over both axes is one number for the whole batch
        assert self.ask(lambda a, d, info: -np.linalg.norm(a - d)) == PAID
        assert self.ask(lambda a, d, info: bool(np.linalg.norm(a - d) < 1), torch.bool) == [True, False, True]

    def test_of_one_goal_that_fails_on_more(self):
        assert self.ask(lambda a, d, info: 0.0 if all(a == d) else -1.0) == [0.0, -1.0, 0.0]

    def test_of_many_is_asked_once(self):
        asked = []
        function = OwnFunction("f", lambda a, d, info: asked.append(len(a)) or (a - d).sum(-1), BOX, torch.float32)
        function(*GOALS)
        asked.clear()
        assert function(*GOALS).tolist() == [0.0, -1.0, 0.0]
        assert asked == [3]

    def test_of_one_goal_that_answers_more_with_one_answer(self):
        def farthest(achieved, desired, info):
            return np.full(achieved.shape[:-1], -np.abs(achieved - desired).max())

        function = OwnFunction("f", farthest, BOX, torch.float32)
        assert function(GOALS[0], GOALS[0]).tolist() == [0.0, 0.0, 0.0]  # all reached: any answer looks right
        assert function(*GOALS).tolist() == [0.0, -4.0, 0.0]

    def test_a_constant_counts_for_each(self):
        assert self.ask(lambda a, d, info: False, torch.bool) == [False] * 3

    def test_goals_have_the_shape_and_kind_of_their_space(self):
        seen = []

        def function(achieved, desired, info):
            seen.append((achieved.shape[-2:], achieved.dtype))
            return (achieved == desired).all((-2, -1))

        bits = OwnFunction("f", function, spaces.MultiBinary((2, 1)), torch.float32)
        assert bits(*GOALS).tolist() == [1.0, 0.0, 1.0]
        assert set(seen) == {((2, 1), np.dtype(np.int8))}

    def test_what_needs_more_than_goals_is_refused(self):
        with pytest.raises(EnvError, match="raised KeyError: 'speed'; in hindsight the reward must follow"):
            self.ask(lambda a, d, info: info["speed"])

    def test_goals_in_a_dictionary_are_refused(self):
        with pytest.raises(EnvError, match="Dict space: hindsight needs goals in one array"):
            self.ask(lambda a, d, info: 0.0, space=spaces.Dict({"kettle": BOX}))


def test_distance_by_hand():
    achieved, desired = torch.tensor([[0.0, 0.0], [0.3, 0.4], [3.0, 4.0]]), torch.zeros(3, 2)
    assert distance_reward(achieved, desired, threshold=0.5).tolist() == [0.0, 0.0, -1.0]
    assert distance_reward(achieved, desired, threshold=0.5, dense=True).tolist() == [0.0, -0.5, -5.0]


class TestEnvPool:
    """The robots of EnvPool, whose rewards we compute ourselves."""

    @pytest.fixture(autouse=True)
    def _need_envpool(self):
        pytest.importorskip("envpool")

    @pytest.mark.parametrize("id", ["FetchReach-v4", "FetchReachDense-v4", "FetchPush-v4", "HandReachDense-v3"])
    def test_rewards_are_what_the_rule_says(self, id):
        env = EnvPoolVecEnv(id, n := 64 if id == "FetchReach-v4" else 24, seed=0, threads=1)
        assert env.spec.has_goals
        assert env.compute_terminated is None
        obs = env.reset()
        generator = torch.Generator().manual_seed(0)
        paid = []
        for _ in range(52):
            # a hand that is driven to its goal crosses the threshold
            way = obs[DESIRED] - obs[ACHIEVED]
            action = 2 * torch.rand(n, env.spec.action.dim, generator=generator) - 1
            if "FetchReach" in id:
                action[:, :3] = (10 * way + 0.9 * action[:, :3]).clamp(-1, 1)
            step = env.step(action)
            expected = env.compute_reward(step.next_obs[ACHIEVED], step.next_obs[DESIRED])
            assert torch.allclose(expected[step.valid], step.reward[step.valid], atol=1e-5)
            assert not step.terminated.any()
            if "Dense" not in id:
                assert torch.equal(step.info["success"][step.valid], step.reward[step.valid] == 0)
            paid.append(step.reward[step.valid])
            obs = step.obs
        paid = torch.cat(paid)
        assert len(paid) > 50 * n
        if id == "FetchReach-v4":
            assert set(paid.tolist()) == {0.0, -1.0}
            assert 0.2 < float((paid == 0).float().mean()) < 0.95
        env.close()

    @pytest.mark.parametrize("id", ["HandManipulateBlock-v1", "PointMaze_UMaze-v3", "Pendulum-v1"])
    def test_what_pays_by_another_rule_does_not_say(self, id):
        env = EnvPoolVecEnv(id, 1, threads=1)
        assert env.compute_reward is None
        assert env.spec.has_goals == (id != "Pendulum-v1")
        env.close()


class TestBitFlip:
    """The bits."""

    def test_an_episode_by_hand(self):
        env = make_vec_env("probe/BitFlip-v0", 2, bits=3)
        assert env.spec.action == DiscreteAction(3)
        env._now = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
        env._wanted = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        first = env.step(torch.tensor([1, 2]))
        assert first.obs["policy"].tolist() == first.obs[ACHIEVED].tolist() == [[0, 0, 0], [1, 1, 0]]
        assert first.reward.tolist() == [-1, -1]
        assert not first.done.any()
        second = env.step(torch.tensor([2, 2]))
        assert second.next_obs[ACHIEVED].tolist() == [[0, 0, 1], [1, 1, 1]]
        assert second.reward.tolist() == [0, -1]
        assert second.terminated.tolist() == second.info["success"].tolist() == [True, False]
        third = env.step(torch.tensor([0, 0]))
        assert third.truncated.tolist() == [False, True]
        assert third.next_obs[DESIRED][1].tolist() == [0, 0, 0]

    def test_it_keeps_the_contract(self):
        env = make_vec_env("probe/BitFlip-v0", 3, bits=4, seed=1)
        findings = [finding for finding in check_env(env) if finding.level != "ok"]
        assert findings == []

    def test_bits_are_drawn_evenly(self):
        obs = make_vec_env("probe/BitFlip-v0", 4000, bits=5).reset(3)
        for name in ("policy", DESIRED):
            assert obs[name].mean(0).tolist() == pytest.approx([0.5] * 5, abs=0.04)
        assert float((obs["policy"] == obs[DESIRED]).float().mean()) == pytest.approx(0.5, abs=0.02)
