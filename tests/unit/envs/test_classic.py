"""The twins of classic control: the numbers of Gymnasium's environments, their ends and starts, and their own state."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from habilis.core.errors import ConfigError, EnvError, NonFiniteError
from habilis.core.specs import DiscreteAction
from habilis.envs.classic import CLASSIC, ClassicEnv
from habilis.envs.make import describe_env, make_vec_env

CASES = [
    *((id, {}) for id in CLASSIC),
    ("CartPole-v1", {"sutton_barto_reward": True}),
    ("Pendulum-v1", {"g": 3.0}),
    ("MountainCar-v0", {"goal_velocity": 0.02}),
    ("MountainCarContinuous-v0", {"goal_velocity": 0.02}),
]


def draw(env, rng):
    """Draw actions, forces beyond their bounds among them."""
    if isinstance(env.spec.action, DiscreteAction):
        return torch.from_numpy(rng.integers(env.spec.action.n, size=env.num_envs))
    return torch.from_numpy(rng.uniform(-3, 3, (env.num_envs, 1)).astype(np.float32))


def show(gym_env, state):
    """Put Gymnasium's environment into a state."""
    gym_env.reset(seed=0)
    # Gymnasium's continuous car goes on from float32
    gym_env.unwrapped.state = np.array(state, np.float32 if "Continuous" in gym_env.spec.id else np.float64)


@pytest.mark.parametrize(("id", "arguments"), CASES)
def test_a_thousand_steps_are_those_of_gymnasium(id, arguments):
    env = make_vec_env(id, 3, seed=1, **arguments)
    assert isinstance(env, ClassicEnv)
    theirs = gymnasium.make(id, **arguments).unwrapped
    assert env.spec.max_episode_steps == gymnasium.spec(id).max_episode_steps
    assert env.spec.obs["policy"].shape == theirs.observation_space.shape
    assert env.spec.control_dt == getattr(theirs, "dt", None)
    rng = np.random.default_rng(2)
    ends = 0
    for k in range(1000):
        if k % 50 == 25:  # where chance seldom comes
            if "MountainCar" in id:
                env.state[:] = [[0.49, -1.19, 0.0], [0.03, -0.05, 0.07]]
            else:
                env.state += rng.normal(0, 0.5, env.state.shape)
        before, action = env.state.copy(), draw(env, rng)
        step = env.step(action)
        for i in range(3):
            show(theirs, before[:, i])
            obs, reward, terminated, _, _ = theirs.step(action[i].numpy() if action.dim() > 1 else int(action[i]))
            np.testing.assert_allclose(step.next_obs["policy"][i], obs, rtol=0, atol=2e-6)
            np.testing.assert_allclose(step.reward[i], reward, rtol=1e-6)
            assert bool(step.terminated[i]) == terminated
            ends += terminated
        assert (step.next_obs is step.obs) == (not step.done.any())
        assert step.valid.all()
    assert ends or "Pendulum" in id


@pytest.mark.parametrize("id", CLASSIC)
def test_episodes_begin_as_gymnasiums(id):
    env = make_vec_env(id, 4000)
    theirs = gymnasium.make(id)
    starts = np.stack([theirs.reset(seed=k)[0] for k in range(4000)])
    ours = env.reset(3)["policy"].numpy()
    for quantile in (0, 0.25, 0.5, 0.75, 1):
        spread = starts.max(0) - starts.min(0)
        difference = np.quantile(ours, quantile, axis=0) - np.quantile(starts, quantile, axis=0)
        assert (np.abs(difference) <= 0.05 * spread + 1e-7).all()


@pytest.mark.parametrize("id", CLASSIC)
def test_episodes_are_gymnasiums_under_the_same_seed(id):
    """The first three of each environment, ended by the limit of steps."""
    starts = {}
    for backend in ("native", "gymnasium"):
        env = make_vec_env(id, 3, backend=backend, seed=1, max_episode_steps=4)
        starts[backend] = [env.reset(5)["policy"]]
        action = torch.ones(3, dtype=torch.long) if isinstance(env.spec.action, DiscreteAction) else torch.zeros(3, 1)
        while len(starts[backend]) < 3:
            step = env.step(action)
            if step.truncated.all():
                starts[backend].append(step.obs["policy"])
        env.close()
    for ours, theirs in zip(*starts.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("id", CLASSIC)
def test_steps_are_its_own_and_in_order(id):
    env, rng = make_vec_env(id, 3, seed=0), np.random.default_rng(0)
    given = []
    for _ in range(5):
        obs = env.step(draw(env, rng)).obs["policy"]
        assert obs.is_contiguous()
        assert env.state.dtype == np.float64
        given.append((obs, obs.clone()))
        env.state += 0.01
    assert all(torch.equal(obs, then) for obs, then in given)  # nothing that was given out changes later


def test_an_episode_is_cut_off_and_the_next_begins_in_the_same_step():
    env = make_vec_env("Pendulum-v1", 2, max_episode_steps=3)
    env.reset(0)
    steps = [env.step(torch.zeros(2, 1)) for _ in range(4)]
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert not any(step.terminated.any() for step in steps)
    assert not torch.equal(steps[2].obs["policy"], steps[2].next_obs["policy"])


def test_one_that_ends_leaves_the_others_alone():
    env = make_vec_env("CartPole-v1", 3)
    env.reset(0)
    env.state[0, 1] = 3.0
    step = env.step(torch.zeros(3, dtype=torch.long))
    assert step.terminated.tolist() == [False, True, False]
    assert step.next_obs["policy"][1, 0] > 2.9
    assert step.obs["policy"][1].abs().max() <= 0.05
    assert torch.equal(step.obs["policy"][[0, 2]], step.next_obs["policy"][[0, 2]])
    assert env.state_dict()["elapsed"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("id", CLASSIC)
def test_state_is_exact(id):
    env, rng = make_vec_env(id, 2, max_episode_steps=7), np.random.default_rng(0)
    env.reset(5)
    actions = [draw(env, rng) for _ in range(40)]
    for action in actions[:20]:
        env.step(action)
    saved = env.state_dict()
    first = [env.step(action).obs["policy"] for action in actions[20:]]
    other = make_vec_env(id, 2, max_episode_steps=7, seed=9)
    for _ in range(2):  # the second time from a state that the environment has gone on from
        other.load_state_dict(saved)
        assert all(
            torch.equal(other.step(action).obs["policy"], obs) for action, obs in zip(actions[20:], first, strict=True)
        )


def test_wrong_actions_and_arguments_are_refused():
    cart, pendulum = make_vec_env("CartPole-v1", 2), make_vec_env("Pendulum-v1", 2)
    for wrong in (torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([0])):
        with pytest.raises(EnvError, match="from 0 to 1"):
            cart.step(wrong)
    with pytest.raises(EnvError, match=r"as int64, got torch\.int32"):
        cart.step(torch.tensor([0, 1], dtype=torch.int32))
    for env, array in ((cart, np.zeros(2, np.int64)), (pendulum, np.zeros((2, 1), np.float32))):
        with pytest.raises(EnvError, match=r"tensors, got ndarray: torch.as_tensor\(action\)"):
            env.step(array)
    with pytest.raises(EnvError, match="shape"):
        pendulum.step(torch.zeros(2))
    with pytest.raises(NonFiniteError, match="environment 1"):
        pendulum.step(torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ConfigError, match="did you mean 'sutton_barto_reward'"):
        make_vec_env("CartPole-v1", sutton_bart_reward=True)


def test_minus_one_is_no_limit_as_in_gymnasium():
    for id in ("Pendulum-v1", "HalfCheetah-v5"):
        env = make_vec_env(id, 2, max_episode_steps=-1)
        assert env.spec.max_episode_steps is None
        action = torch.zeros(2, env.spec.action.dim)
        assert not any(env.step(action).truncated.any() for _ in range(210))
        with pytest.raises(ConfigError, match="must be positive, or -1 for no limit, got 0"):
            make_vec_env(id, 2, max_episode_steps=0)


def test_it_says_what_it_is():
    assert describe_env(make_vec_env("CartPole-v1", 2)) == "CartPole-v1: native batched twin (NumPy), 2 environments"


@pytest.mark.parametrize("id", CLASSIC)
def test_its_pictures_are_gymnasiums(id):
    env, theirs = make_vec_env(id, 2), gymnasium.make(id, render_mode="rgb_array").unwrapped
    for seed in (1, 2):
        env.reset(seed)
        theirs.reset(seed=0)
        theirs.state = env.state[:, 0]
        np.testing.assert_array_equal(env.render(), theirs.render())
    env.close()
    theirs.close()


def test_gymnasium_opens_the_window():
    drawn = make_vec_env("Pendulum-v1", render_mode="rgb_array", max_episode_steps=9, g=3.0)
    assert drawn.spec.backend == "gymnasium"
    assert drawn.spec.max_episode_steps == 9
    assert drawn.env.envs[0].unwrapped.g == 3.0
    drawn.reset(0)
    assert drawn.render().shape == (500, 500, 3)
