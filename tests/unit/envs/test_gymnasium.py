"""The Gymnasium adapter: autoreset modes, observation kinds, actions, infos, errors, seeds."""

from __future__ import annotations

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate

from habilis.core.errors import EnvError, MissingExtraError
from habilis.core.specs import BoxAction, DiscreteAction, HybridAction, MultiDiscreteAction, ObsGroup
from habilis.envs.gymnasium import GymnasiumVecEnv, _make_guarded, make_gymnasium
from habilis.envs.infos import InfoTable
from habilis.envs.spaces import ActionLayout, ObsLayout
from habilis.policies.action_map import ActionMap


class Counter(gym.Env):
    """Observation (episode, step); episodes of `length` steps. What it returns is one array, written to for ever."""

    def __init__(self, length: int = 3, ending: str = "terminated", info: dict | None = None) -> None:
        self.observation_space = spaces.Box(0, 1000, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length, self.ending, self.info = length, ending, info or {}
        self.buffer = np.array([-1, 0], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer[:] = self.buffer[0] + 1, 0
        return self.buffer, {"fresh": 1.0}

    def step(self, action):
        self.buffer[1] += 1
        end = bool(self.buffer[1] >= self.length)
        both = self.ending == "both"
        terminated, truncated = end and self.ending != "truncated", end and (both or self.ending == "truncated")
        return self.buffer, float(self.buffer[1]), terminated, truncated, {"count": int(self.buffer[1]), **self.info}


class Copying(Counter):
    """The counter with a fresh array every time, which a vector environment that is not ours may need."""

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return observation.copy(), info

    def step(self, action):
        observation, *rest = super().step(action)
        return observation.copy(), *rest


class Nested(Counter):
    """The counter in a Dict or Tuple observation with an image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        parts = {
            "number": spaces.Box(0, 1000, (2,), np.float64),
            "camera": spaces.Box(0, 255, (2, 2, 3), np.uint8),
            "mode": spaces.Discrete(4, start=1),
        }
        self.kind = kind
        self.observation_space = spaces.Tuple(list(parts.values())) if kind == "tuple" else spaces.Dict(parts)

    def _nest(self, observation):
        step = observation[1]
        parts = {
            "number": observation.astype(np.float64),
            "camera": np.full((2, 2, 3), step, np.uint8),
            "mode": np.int64(1 + step),
        }
        return tuple(parts.values()) if self.kind == "tuple" else parts

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return self._nest(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return self._nest(observation), *rest


class Raising(Counter):
    """Raises in its second step where `broken`."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken

    def step(self, action):
        if self.broken and self.buffer[1] == 1:
            raise RuntimeError("the motor burnt out")
        return super().step(action)


class Safe(Counter):
    """A step of six."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, 0.5 * float(self.buffer[1]), terminated, truncated, info


def zeros(env):
    return torch.zeros(env.num_envs, dtype=torch.int64)


def play(env, steps, first=None):
    """Return the valid transitions (obs, next_obs, reward, done) of each environment."""
    obs = env.reset(0)["policy"] if first is None else first
    transitions = [[] for _ in range(env.num_envs)]
    for _ in range(steps):
        step = env.step(zeros(env))
        for i in range(env.num_envs):
            if step.valid[i]:
                after = step.next_obs["policy"][i].tolist()
                transitions[i].append((obs[i].tolist(), after, float(step.reward[i]), bool(step.done[i])))
        obs = step.obs["policy"]
    return transitions


@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_valid_transitions_never_cross_episodes(mode, vector):
    one = Counter if vector is SyncVectorEnv else Copying
    makers = [lambda length=length: one(length) for length in (2, 3, 5)]
    env = GymnasiumVecEnv(vector(makers, autoreset_mode=mode))
    for length, transitions in zip((2, 3, 5), play(env, 23), strict=True):
        assert len(transitions) >= 15
        episode, count = transitions[0][0][0], 0
        for before, after, reward, done in transitions:
            assert before == [episode, count]
            count += 1
            assert after == [episode, count]
            assert reward == count
            assert done == (count == length)
            if done:
                episode, count = episode + 1, 0
    env.close()


def test_environments_of_ours_in_processes_may_reuse_their_arrays():
    env = make_gymnasium(Counter, 2, asynchronous=True)
    ends = [after for *_, after, _, done in play(env, 9)[0] if done]
    assert ends == [[0, 3], [1, 3], [2, 3]]
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_only_next_step_has_dummy_steps(mode):
    env = GymnasiumVecEnv(SyncVectorEnv([lambda: Counter(2)] * 2, autoreset_mode=mode))
    env.reset(0)
    steps = [env.step(zeros(env)) for _ in range(3)]
    assert steps[1].done.all()
    assert steps[2].valid.tolist() == [mode is not AutoresetMode.NEXT_STEP] * 2
    same = torch.equal(steps[1].obs["policy"], steps[1].next_obs["policy"])
    assert same == (mode is AutoresetMode.NEXT_STEP)
    assert steps[0].obs is steps[0].next_obs


def test_a_reset_after_an_end_leaves_no_dummy_step():
    env = GymnasiumVecEnv(SyncVectorEnv([lambda: Counter(1)], autoreset_mode=AutoresetMode.NEXT_STEP))
    env.reset(0)
    assert env.step(zeros(env)).done.all()
    env.reset()
    assert env.step(zeros(env)).valid.all()


def test_gymnasiums_own_vector_environments():
    sync = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    own = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"))
    for env in (sync, own):
        assert env.spec.max_episode_steps == 500
        env.reset(0)
        ended = 0
        for _ in range(60):
            previous = ended
            step = env.step(zeros(env))
            ended = step.done
            assert torch.equal(step.valid, ~torch.as_tensor(previous).bool().expand(2))
        assert step.reward.dtype == torch.float32


def test_a_vector_environment_without_a_mode_is_refused():
    env = SyncVectorEnv([Counter])
    del env.metadata["autoreset_mode"]
    with pytest.raises(EnvError, match="autoreset_mode"):
        GymnasiumVecEnv(env)


def test_same_step_without_final_obs_is_refused():
    class Forgetful(gym.vector.VectorWrapper):
        def step(self, actions):
            *rest, infos = self.env.step(actions)
            return *rest, {k: v for k, v in infos.items() if "final" not in k}

    env = GymnasiumVecEnv(Forgetful(SyncVectorEnv([lambda: Counter(1)], autoreset_mode=AutoresetMode.SAME_STEP)))
    env.reset(0)
    with pytest.raises(EnvError, match="final_obs"):
        env.step(zeros(env))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("shown", ["vector", "table", "nested"])
def test_terminal_observation_of_a_self_resetting_environment(mode, shown):
    show = {"vector": lambda x: x, "table": lambda x: x.reshape(1, 2), "nested": lambda x: {"a": x}}[shown]

    class SelfResetting(Counter):
        def __init__(self):
            super().__init__(2)
            box = self.observation_space
            if shown == "table":
                self.observation_space = spaces.Box(0, 1000, (1, 2), np.float32)
            elif shown == "nested":
                self.observation_space = spaces.Dict({"a": box})

        def reset(self, **settings):
            observation, info = super().reset(**settings)
            return show(observation.copy()), info

        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            observation = show(observation.copy())
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, _ = self.reset()
            return observation, reward, terminated, truncated, info

    env = GymnasiumVecEnv(SyncVectorEnv([lambda: _make_guarded(SelfResetting, 0)] * 2, autoreset_mode=mode))
    env.reset(0)
    env.step(zeros(env))
    step = env.step(zeros(env))
    assert step.done.all()
    assert step.next_obs["policy"].tolist() == [[0, 2]] * 2
    assert step.obs["policy"][:, 1].tolist() == [0, 0]
    assert not any("terminal" in name for name in step.info)


@pytest.mark.parametrize("ending", ["terminated", "truncated", "both"])
def test_terminated_and_truncated_are_never_both_true(ending):
    env = make_gymnasium(lambda: Counter(1, ending))
    env.reset(0)
    step = env.step(zeros(env))
    assert bool(step.terminated) == (ending != "truncated")
    assert bool(step.truncated) == (ending == "truncated")


@pytest.mark.parametrize(("kind", "image"), [("dict", "policy/camera"), ("tuple", "policy/1")])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_nested_observations_become_groups(kind, image, asynchronous):
    env = make_gymnasium(lambda: Nested(kind), 2, asynchronous=asynchronous)
    assert env.spec.obs == {"policy": ObsGroup((6,)), image: ObsGroup((2, 2, 3), "uint8")}
    first = env.reset(0)
    assert first[image].dtype == torch.uint8
    number, mode = first["policy"][0].split([2, 4])
    if kind == "dict":  # Gymnasium orders the keys of a Dict: camera, mode, number
        mode, number = first["policy"][0].split([4, 2])
    assert mode.tolist() == [1, 0, 0, 0]
    assert number[1] == 0
    for _ in range(3):
        step = env.step(zeros(env))
    assert step.done.all()
    assert (step.next_obs[image] == 3).all()
    assert (step.obs[image] == 0).all()
    assert step.next_obs["policy"].sum(1).tolist() == [4 + float(number[0])] * 2
    env.close()


def test_layout_of_spaces():
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    vector = spaces.Box(-1, 1, (2, 3), np.float64)
    assert ObsLayout(image).groups == {"policy": ObsGroup((8, 8, 3), "uint8")}
    assert ObsLayout(vector).groups == {"policy": ObsGroup((6,))}
    assert ObsLayout(spaces.Box(0, 255, (5,), np.uint8)).groups == {"policy": ObsGroup((5,))}
    assert ObsLayout(spaces.MultiBinary((2, 2))).groups == {"policy": ObsGroup((4,))}
    assert ObsLayout(spaces.MultiDiscrete([2, 3])).groups == {"policy": ObsGroup((5,), one_hot=(2, 3))}
    later = spaces.MultiDiscrete([2, 3], start=[1, -1])
    assert ObsLayout(later).groups == {"policy": ObsGroup((5,), one_hot=(2, 3), starts=(1, -1))}
    codes = spaces.Tuple([spaces.Discrete(3), spaces.MultiDiscrete([2, 2])])
    assert ObsLayout(codes).groups == {"policy": ObsGroup((7,), one_hot=(3, 2, 2))}
    mixed = spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,))])
    assert ObsLayout(mixed).groups == {"policy": ObsGroup((5,))}
    keyed = spaces.Dict({"policy": vector, "critic": spaces.Dict({"a": vector, "eye": image}), "depth": image})
    assert ObsLayout(keyed).groups == {
        "policy": ObsGroup((6,)),
        "critic": ObsGroup((6,)),
        "critic/eye": ObsGroup((8, 8, 3), "uint8"),
        "depth": ObsGroup((8, 8, 3), "uint8"),
    }
    # what only training knows is never for the one who acts, whatever the rest is called
    told = {"observation": vector, "critic": spaces.Box(-1, 1, (4,))}
    assert ObsLayout(spaces.Dict(told)).groups == {"policy": ObsGroup((6,)), "critic": ObsGroup((4,))}
    goal = spaces.Box(-1, 1, (2,))
    with_goals = ObsLayout(spaces.Dict({**told, "achieved_goal": goal, "desired_goal": goal})).groups
    assert {name: group.shape for name, group in with_goals.items()} == {
        "policy": (6,),
        "critic": (4,),
        "achieved_goal": (2,),
        "desired_goal": (2,),
    }
    assert set(ObsLayout(spaces.Dict({"critic": vector})).groups) == {"policy"}
    two_eyes = ObsLayout(spaces.Dict({"left": image, "right": image})).groups
    assert set(two_eyes) == {"policy", "policy/right"}
    with pytest.raises(EnvError, match="Text"):
        ObsLayout(spaces.Text(5))


def test_rows_of_spaces():
    space = spaces.Dict(
        {"a": spaces.MultiDiscrete([2, 3]), "b": spaces.Discrete(3, start=-1), "c": spaces.MultiBinary(2)}
    )
    batch = {"a": np.array([[1, 0], [0, 2]]), "b": np.array([-1, 1]), "c": np.array([[0, 1], [1, 1]], np.int8)}
    rows = ObsLayout(space)(batch, 2)["policy"]
    assert rows.tolist() == [[0, 1, 1, 0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0, 0, 1, 1, 1]]
    with pytest.raises(EnvError, match="policy"):
        ObsLayout(spaces.Box(0, 1, (3,)))(np.zeros((2, 4)), 2)


def test_actions_of_spaces():
    box = ActionLayout(spaces.Box(np.array([[-1, -2]]), np.array([[1, 2]]), (1, 2), np.float64))
    assert isinstance(box.spec, BoxAction)
    assert box.spec.high.tolist() == [1, 2]
    converted = box(torch.tensor([[0.5, 1.0], [0.0, 0.1]]))
    assert converted.shape == (2, 1, 2)
    assert converted.dtype == np.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        endless = ActionLayout(spaces.Box(0, np.finfo(np.float64).max, (2,), np.float64))
    assert not endless.spec.bounded.any()
    discrete = ActionLayout(spaces.Discrete(3, start=5))
    assert discrete.spec == DiscreteAction(3, start=5)
    assert discrete(torch.tensor([5, 7])).tolist() == [5, 7]
    several = ActionLayout(spaces.MultiDiscrete([[2, 3]], start=[[1, -1]]))
    assert several.spec == MultiDiscreteAction((2, 3), starts=(1, -1))
    assert several(torch.tensor([[2, 1]])).tolist() == [[[2, 1]]]
    assert ActionLayout(spaces.MultiBinary((2, 2))).spec == MultiDiscreteAction((2, 2, 2, 2))
    integers = ActionLayout(spaces.Box(np.array([-1, 0]), np.array([1, 4]), dtype=np.int32))
    assert integers.spec == MultiDiscreteAction((3, 5), starts=(-1, 0))
    assert integers(torch.tensor([[1, 4]])).tolist() == [[1, 4]]
    with pytest.raises(EnvError, match="actions of a Text space"):
        ActionLayout(spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]))


def test_actions_of_nested_spaces_stand_side_by_side():
    """Real values first, in the order of the leaves, then choices; Gymnasium sorts the keys of a Dict."""
    space = spaces.Dict(
        {
            "turn": spaces.Box(-2, 3, (2,)),
            "kind": spaces.Discrete(3, start=1),
            "more": spaces.Tuple([spaces.MultiDiscrete([2, 4]), spaces.Box(0, 1, (1, 1), dtype=np.float64)]),
        }
    )
    layout = ActionLayout(space)
    assert isinstance(layout.spec, HybridAction)
    assert layout.spec.dim == 6
    assert layout.spec.box.low.tolist() == [0, -2, -2]
    assert layout.spec.box.high.tolist() == [1, 3, 3]
    assert layout.spec.choices == MultiDiscreteAction((3, 2, 4), starts=(1, 0, 0))
    action = layout(torch.tensor([[0.25, 0.5, -1.0, 3, 1, 3], [1.0, 2.0, 3.0, 1, 0, 1]]))
    first, second = iterate(batch_space(space, 2), action)
    assert first in space
    assert second in space
    assert first["kind"] == 3
    assert first["turn"].tolist() == [0.5, -1.0]
    assert first["more"][0].tolist() == [1, 3]
    assert first["more"][1].tolist() == [[0.25]]
    assert second["kind"] == 1
    assert second["turn"].tolist() == [2.0, 3.0]
    alone = layout.for_one(np.array([0.25, 0.5, -1.0, 3, 1, 3], np.float32))
    assert alone in space
    assert (alone["kind"], alone["turn"].tolist(), alone["more"][1].tolist()) == (3, [0.5, -1.0], [[0.25]])
    assert ActionLayout(spaces.Discrete(3, start=5)).for_one(np.int64(6)) == 6
    # of one kind throughout they are nothing new
    boxes = ActionLayout(spaces.Tuple([spaces.Box(-1, 1, (1,)), spaces.Box(0, 4, (2,))]))
    assert isinstance(boxes.spec, BoxAction)
    assert boxes.spec.high.tolist() == [1, 4, 4]
    one, two = boxes(torch.tensor([[0.5, 1.0, 2.0]]))
    assert (one.tolist(), two.tolist()) == ([[0.5]], [[1.0, 2.0]])
    choices = ActionLayout(spaces.Dict(a=spaces.Discrete(2), b=spaces.MultiBinary(1)))
    assert choices.spec == MultiDiscreteAction((2, 2))
    assert {k: v.tolist() for k, v in choices(torch.tensor([[1, 0]])).items()} == {"a": [1], "b": [[0]]}
    alone = ActionLayout(spaces.Dict(a=spaces.Discrete(3, start=1)))
    assert alone.spec == DiscreteAction(3, start=1)
    assert alone(torch.tensor([1, 3]))["a"].tolist() == [1, 3]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nested_actions_reach_the_environment(asynchronous):
    env = make_gymnasium(Gearbox, 2, asynchronous=asynchronous)
    env.reset(0)
    reward = env.step(torch.tensor([[0.5, -0.25, 2.0], [0.0, 1.0, 0.0]])).reward
    env.close()
    assert reward.tolist() == [2 + 0.5 - 0.25, 0 + 0.0 + 1.0]


class Gearbox(gym.Env):
    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Dict(steer=spaces.Box(-1, 1, (2,)), gear=spaces.Discrete(3))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert action in self.action_space
        return np.zeros(1, np.float32), float(action["gear"] + action["steer"].sum()), False, False, {}


@pytest.mark.parametrize("action_space", [spaces.MultiDiscrete([3, 2], start=[0, 1]), spaces.MultiBinary(2)])
def test_actions_reach_the_environment(action_space):
    class Echo(Counter):
        def step(self, action):
            assert action in self.action_space
            return np.asarray(action, np.float32), *super().step(action)[1:]

    def make():
        env = Echo(100)
        env.action_space = action_space
        return env

    env = make_gymnasium(make, 2)
    env.reset(0)
    step = env.step(torch.tensor([[0, 1], [1, 1]]))
    assert step.obs["policy"].tolist() == [[0, 1], [1, 1]]


def test_grey_images_are_images():
    """As Atari's preprocessing gives them: two axes, to 255. Two axes of something else are a vector."""
    grey = ObsLayout(spaces.Box(0, 255, (4, 5), np.uint8))
    assert (grey.groups["policy"].shape, grey.groups["policy"].channel_axis) == ((4, 5, 1), -1)
    picture = np.arange(20, dtype=np.uint8).reshape(4, 5)
    rows = grey(picture[None], 1)["policy"]
    assert rows.dtype == torch.uint8
    assert np.array_equal(rows[0, ..., 0], picture)
    for seen in (picture, picture[..., None]):
        assert np.array_equal(grey.groups["policy"].rows(seen)[0], rows)
    two, single = grey.groups["policy"].rows(np.stack([picture, picture]))
    assert (two.shape, single) == ((2, 4, 5, 1), False)
    assert ObsLayout(spaces.Box(0, 9, (4, 5), np.uint8)).groups["policy"].shape == (20,)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_infos_belong_to_the_step_that_gave_them(mode):
    makers = [lambda: Counter(2, info={"is_success": np.bool_(True)}), lambda: Counter(3)]
    env = GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=mode))
    env.reset(0)
    infos = [env.step(zeros(env)).info for _ in range(3)]
    assert [info["success"].tolist()[1] for info in infos] == [False] * 3
    assert infos[0]["success"].dtype == torch.bool
    assert infos[1]["success"][0]
    assert infos[1]["count"].tolist() == [2, 2]
    assert infos[2]["count"][1] == 3
    if mode is AutoresetMode.SAME_STEP:
        assert "fresh" not in infos[1] or infos[1]["fresh"].isnan().all()


def test_info_keys_stay_and_missing_values_are_marked():
    table = InfoTable(2)
    assert table({}) == {}
    shown = table(
        {
            "cost": np.array([2.0, 0.0]),
            "_cost": np.array([True, False]),
            "episode": {"r": np.array([3, 4])},
            "pose": np.zeros((2, 3)),
            "name": np.array(["a", "b"], object),
            "frame": np.zeros((2, 4, 4)),
        }
    )
    assert set(shown) == {"cost", "episode/r", "pose"}
    later = table({})
    assert set(later) == set(shown)
    assert later["cost"].tolist() == [0, 0]
    assert later["episode/r"].isnan().all()
    assert later["pose"].shape == (2, 3)


def test_cost_as_sixth_value_of_a_step():
    env = make_gymnasium(Safe, 2)
    env.reset(0)
    assert [env.step(zeros(env)).info["cost"].tolist() for _ in range(3)] == [[0.5] * 2, [1.0] * 2, [1.5] * 2]


def test_cost_of_a_vector_step_of_six():
    class SafeVector(gym.vector.VectorWrapper):
        def step(self, actions):
            observations, reward, *rest = self.env.step(actions)
            return observations, reward, np.array([1.0, 2.0]), *rest

    env = GymnasiumVecEnv(SafeVector(SyncVectorEnv([Counter] * 2, autoreset_mode=AutoresetMode.SAME_STEP)))
    env.reset(0)
    step = env.step(zeros(env))
    assert step.info["cost"].tolist() == [1, 2]
    assert step.reward.tolist() == [1, 1]


def test_an_error_without_words_is_told_by_its_line():
    def make():
        raise RuntimeError

    with pytest.raises(
        EnvError, match=r"cannot be made \(RuntimeError: raise RuntimeError, line \d+ of .*test_gymnasium.py\)"
    ):
        make_gymnasium(make, 1)


@pytest.mark.parametrize("made", [True, False])
def test_an_environment_that_raises_is_named(made):
    broken = iter([False, True])

    def make():
        return Raising(next(broken))

    env = make_gymnasium(make, 2) if made else GymnasiumVecEnv(SyncVectorEnv([make, make]))
    env.reset(0)
    env.step(zeros(env))
    with pytest.raises(EnvError, match="environment 1 raised RuntimeError in step: the motor burnt out"):
        env.step(zeros(env))


@pytest.mark.filterwarnings("ignore:.*")  # Gymnasium warns with the traceback of the other process
def test_an_asynchronous_environment_that_raises_is_named():
    env = make_gymnasium(lambda: Raising(True), 1, asynchronous=True)
    env.reset(0)
    env.step(zeros(env))
    with pytest.raises(EnvError, match="environment 0 raised RuntimeError in step: the motor burnt out"):
        env.step(zeros(env))
    env.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_seeds(asynchronous):
    def start(seed):
        env = make_gymnasium("Pendulum-v1", 3, seed=7, asynchronous=asynchronous)
        obs = env.reset(seed)["policy"]
        env.close()
        return obs

    assert torch.equal(start(7), start(None))
    assert not torch.equal(start(7), start(8))
    assert len({tuple(row) for row in start(7).tolist()}) == 3
    assert not {tuple(row) for row in start(7).tolist()} & {tuple(row) for row in start(8).tolist()}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_spec_of_a_registered_environment(asynchronous):
    env = make_gymnasium("Pendulum-v1", 2, asynchronous=asynchronous, max_episode_steps=9)
    assert env.spec.id == "Pendulum-v1"
    assert env.spec.max_episode_steps == 9
    assert env.spec.backend == "gymnasium"
    assert not env.spec.saves_state
    assert isinstance(env.spec.action, BoxAction)
    env.reset(0)
    steps = [env.step(torch.zeros(2, 1)) for _ in range(9)]
    assert [bool(step.truncated.all()) for step in steps] == [False] * 8 + [True]
    with pytest.raises(EnvError, match="saves_state"):
        env.state_dict()
    env.close()
    endless = make_gymnasium("Pendulum-v1", asynchronous=asynchronous, max_episode_steps=-1)
    assert endless.spec.max_episode_steps is None
    assert endless.spec.control_dt == (None if asynchronous else 0.05)  # of another process it is not known
    endless.close()


def test_a_single_environment():
    env = GymnasiumVecEnv(gym.make("CartPole-v1", render_mode="rgb_array"))
    assert env.num_envs == 1
    assert env.spec.id == "CartPole-v1"
    assert env.reset(3)["policy"].shape == (1, 4)
    assert env.spec.max_episode_steps == 500


def test_render_needs_a_mode():
    env = make_gymnasium("CartPole-v1")
    env.reset(0)
    with pytest.raises(EnvError, match="rgb_array"):
        env.render()


def test_returned_tensors_are_not_written_to():
    env = make_gymnasium(lambda: Nested("dict"), 2)
    first = env.reset(0)
    step = env.step(zeros(env))
    returned = [*first.values(), *step.obs.values(), step.reward, step.terminated, step.info["count"]]
    kept = [tensor.clone() for tensor in returned]
    for _ in range(4):
        env.step(zeros(env))
    assert all(torch.equal(now, then) for now, then in zip(returned, kept, strict=True))


@pytest.mark.parametrize(("theirs", "ours"), [("box2d", "box2d"), ("classic_control", "video"), ("toy-text", "video")])
def test_a_missing_package_names_our_extra(theirs, ours):
    def missing():
        raise gym.error.DependencyNotInstalled(f'run `pip install "gymnasium[{theirs}]"`')

    with pytest.raises(MissingExtraError, match=rf"pip install 'habilis\[{ours}\]'"):
        make_gymnasium(missing)
    env = make_gymnasium("CartPole-v1", render_mode="rgb_array")
    env.env.envs[0].render = missing
    with pytest.raises(MissingExtraError, match=rf"pip install 'habilis\[{ours}\]'"):
        env.render()


def test_a_package_that_no_extra_of_ours_brings_is_named_as_gymnasium_does():
    def missing():
        raise gym.error.DependencyNotInstalled("run `pip install ale_py`")

    with pytest.raises(EnvError, match="ale_py"):
        make_gymnasium(missing)


class Telling(Counter):
    """The counter with infos by the number of its environment and step."""

    def __init__(self, tell) -> None:
        super().__init__()
        self.tell = tell

    def step(self, action):
        *rest, _ = super().step(action)
        return *rest, self.tell(int(self.buffer[1]))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_infos_are_read_for_what_they_are(asynchronous):
    tells = (
        lambda step: {"d": 0, 1: 2, "is_success": np.array([True]), "v": [1], "w": np.ones(1 + step), "n": {"x": True}},
        lambda step: {
            "d": 0.7,
            1: 3.5,
            "is_success": np.array([False]),
            "w": np.ones(2),
            "n": None,
            "t": np.timedelta64(1),
        },
    )
    makers = [lambda tell=tell: Telling(tell) for tell in tells]
    vector = AsyncVectorEnv if asynchronous else SyncVectorEnv
    env = GymnasiumVecEnv(vector([lambda make=make: _make_guarded(make, 0) for make in makers]))
    env.reset(0)
    infos = [env.step(zeros(env)).info for _ in range(2)]
    env.close()
    for info in infos:
        assert set(info) == {"d", "1", "success", "w", "n/x"} | set(infos[0])
        assert info["d"].tolist() == pytest.approx([0.0, 0.7])
        assert info["1"].tolist() == [2.0, 3.5]
        assert info["success"].tolist() == [True, False]
        assert info["n/x"][0] == 1
        assert info["n/x"][1].isnan()
    assert infos[0]["w"].tolist() == [[1, 1], [1, 1]]
    assert infos[1]["w"].isnan().all()  # of another length


def test_costs_are_not_whole_numbers_because_the_first_is():
    def make(cost):
        class Costing(Counter):
            def step(self, action):
                obs, reward, *rest = super().step(action)
                return obs, reward, cost, *rest

        return Costing

    env = GymnasiumVecEnv(SyncVectorEnv([lambda cost=cost: _make_guarded(make(cost), 0) for cost in (0, 0.9)]))
    env.reset(0)
    assert env.step(zeros(env)).info["cost"].tolist() == pytest.approx([0.0, 0.9])


def test_what_is_reached_of_a_goal_is_seen_where_nothing_else_is():
    box = spaces.Box(-1, 1, (3,), np.float32)
    layout = ObsLayout(spaces.Dict({"achieved_goal": box, "desired_goal": box}))
    assert {name: group.shape for name, group in layout.groups.items()} == {
        "achieved_goal": (3,),
        "desired_goal": (3,),
        "policy": (3,),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_action_leaves_its_bounds(dtype):
    generator = np.random.default_rng(0)
    for _ in range(200):
        size = 10.0 ** generator.uniform(-3, 3, 4)
        low, high = np.sort(generator.normal(size=(2, 4)) * size, axis=0).astype(dtype)
        space = spaces.Box(low, high, dtype=dtype)
        layout = ActionLayout(space)
        action_map = ActionMap(layout.spec)
        for action in (torch.ones(1, 4), -torch.ones(1, 4)):
            mapped = layout(action_map(action))[0]
            assert space.contains(mapped)
            assert np.abs(mapped - (high if action[0, 0] > 0 else low)) == pytest.approx(0, abs=2e-6 * abs(size).max())
    for top in (0.1, 0.1 + 1e-9):  # no float32 lies between
        alike = ActionLayout(spaces.Box(np.array([0.1, -1.0]), np.array([top, 1.0]), dtype=np.float64)).spec
        assert (alike.low <= alike.high).all()
        assert alike.low.tolist() == pytest.approx([0.1, -1.0])
    wide = ActionLayout(spaces.Box(np.array([-1e300, 0.0]), np.array([1e300, np.inf]), dtype=np.float64)).spec
    assert not wide.bounded.any()
    with pytest.raises(EnvError, match="more than 1,000,000"):
        ActionLayout(spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64))


class Teller(Counter):
    """The counter, of which every copy tells something of its own; `tell` gives a step's reward and info."""

    def __init__(self, index, tell):
        super().__init__(2)
        self.index, self.tell = index, tell

    def step(self, action):
        observation, _, terminated, truncated, _ = super().step(action)
        return observation, *self.tell(self.index)[:1], terminated, truncated, self.tell(self.index)[1]


def tellers(tell):
    indices = itertools.count()
    env = make_gymnasium(lambda: Teller(next(indices), tell), 2)
    env.reset(0)
    return env


def test_vectors_of_one_number_and_of_more_may_be_told_by_copies():
    env = tellers(lambda index: (1.0, {"contacts": np.ones(1 + index), "one": np.full(1, 3.0)}))
    info = env.step(zeros(env)).info
    assert info["one"].tolist() == [3, 3]
    assert info["contacts"][1].tolist() == [1, 1]
    assert info["contacts"][0].isnan().all()


def test_a_reward_is_one_number_however_it_is_given():
    for reward in (2, np.array([2.0]), np.float64(2), torch.tensor(2.0)):
        env = tellers(lambda index, reward=reward: (reward, {}))
        assert env.step(zeros(env)).reward.tolist() == [2, 2]
    env = tellers(lambda index: (np.ones(1 + index), {}))
    with pytest.raises(EnvError, match=r"environment 1 gave the reward array\(\[1., 1.\]\), expected one number"):
        env.step(zeros(env))


def test_last_observations_in_the_infos_are_those_of_the_space_or_none():
    env = tellers(lambda index: (1.0, {"terminal_observation": None}))
    env.step(zeros(env))
    assert env.step(zeros(env)).done.all()
    env = tellers(lambda index: (1.0, {"terminal_observation": [0.0] * 7}))
    env.step(zeros(env))
    with pytest.raises(EnvError, match=r"info\['terminal_observation'\] that is none of its observations"):
        env.step(zeros(env))
