"""The action map at every kind of bound, and the policy as a user meets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from habilis.algorithms import dqn, ppo, sac, td3
from habilis.core.errors import HabilisError, NonFiniteError
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, HybridAction, MultiDiscreteAction, ObsGroup
from habilis.nn.memory import MemoryConfig
from habilis.policies.action_filter import ActionConfig
from habilis.policies.action_map import ActionMap

INF = np.inf


def box(low, high):
    return BoxAction(np.array(low, np.float32), np.array(high, np.float32))


def make_policy(action, algorithm=ppo, obs=None, **config):
    spec = EnvSpec("test", obs or {"policy": ObsGroup((3,)), "critic": ObsGroup((2,))}, action)
    cls = {ppo: ppo.PPOConfig, sac: sac.SACConfig, td3: td3.TD3Config}[algorithm]
    policy = algorithm.make_policy(spec, cls(**config), torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from the tiny first actions
        for p in policy.head.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))
    return policy


@pytest.mark.parametrize(
    ("low", "high", "action", "expected"),
    [
        (-1, 1, 0.5, 0.5),
        (-1, 1, 3.0, 1.0),
        (0, 10, 0.0, 5.0),  # the middle
        (0, 10, -1.0, 0.0),
        (-2, 6, 0.5, 4.0),  # 2 + 4 * 0.5
        (-2, 6, -7.0, -2.0),
        (-INF, INF, 12.5, 12.5),
        (0, INF, 12.5, 12.5),  # one bound: in the environment's units, clipped to it
        (0, INF, -3.0, 0.0),
        (-INF, 2, 5.0, 2.0),
    ],
)
def test_action_map_by_hand(low, high, action, expected):
    action_map = ActionMap(box([-1, low], [1, high]))
    mapped = action_map(torch.tensor([[0.0, action]]))
    assert mapped.tolist() == [[0.0, expected]]


def test_action_map_of_a_choice_is_the_choice():
    action = torch.tensor([3, 1])
    assert ActionMap(DiscreteAction(4))(action) is action
    assert not list(ActionMap(MultiDiscreteAction((2, 2))).buffers())


ACTIONS = {
    "box": box([0, -1], [4, 1]),
    "choice": DiscreteAction(4),
    "choices": MultiDiscreteAction((3, 2)),
    "hybrid": HybridAction(box([0, -1], [4, 1]), MultiDiscreteAction((3, 2))),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_act(kind):
    policy = make_policy(ACTIONS[kind])
    obs = {"policy": torch.randn(200, 3, generator=torch.Generator().manual_seed(2))}
    step = policy.act(obs, "memory", generator=torch.Generator().manual_seed(3))
    again = policy.act(obs, generator=torch.Generator().manual_seed(3))
    assert torch.equal(step.action, again.action)
    assert step.memory == "memory"
    assert not step.action.requires_grad
    torch.testing.assert_close(step.log_prob, policy.distribution(obs).log_prob(step.action).detach())
    assert torch.equal(step.env_action, policy.action_map(step.action))
    mode = policy.act(obs, deterministic=True)
    assert mode.log_prob is None
    assert torch.equal(mode.env_action, policy(obs)[0])
    assert not torch.equal(mode.action, step.action)
    if kind == "box":
        low, high = torch.tensor([0.0, -1.0]), torch.tensor([4.0, 1.0])
        assert bool(((step.env_action >= low) & (step.env_action <= high)).all())
        assert bool((step.action.abs() > 1).any())  # the stored action is the one that was drawn


def test_predict_takes_one_or_many_and_groups():
    policy = make_policy(ACTIONS["box"])
    many = np.random.default_rng(0).normal(size=(5, 3))
    actions, memory = policy.predict(many)
    assert (actions.shape, actions.dtype, memory) == ((5, 2), np.float32, None)
    np.testing.assert_allclose(policy.predict(many[2])[0], actions[2], rtol=1e-6)
    np.testing.assert_allclose(policy.predict({"policy": many})[0], actions)


def test_predict_refuses_what_it_cannot_read():
    policy = make_policy(ACTIONS["box"])
    with pytest.raises(HabilisError, match=r"has shape \(4,\): expected \(3,\)"):
        policy.predict(np.zeros(4))
    with pytest.raises(HabilisError, match="lacks the group 'policy'"):
        policy.predict({"state": np.zeros(3)})


def test_predict_of_images():
    policy = make_policy(DiscreteAction(3), obs={"policy": ObsGroup((36, 36, 3), "uint8")})
    image = np.random.default_rng(0).integers(256, size=(36, 36, 3), dtype=np.uint8)
    assert policy.predict(image)[0].shape == ()
    assert policy.predict(np.stack([image] * 4))[0].shape == (4,)


@pytest.mark.parametrize("shape", [(36, 36, 3), (4,)], ids=["image", "bytes"])
def test_what_uint8_cannot_hold_is_refused_instead_of_cut_off(shape):
    group = ObsGroup(shape, "uint8")
    values = np.random.default_rng(0).integers(256, size=(2, *shape), dtype=np.uint8)
    for whole in (values, values.astype(np.int64), values.tolist()):
        rows, _ = group.rows(whole)
        assert rows.dtype == np.uint8
        np.testing.assert_array_equal(rows, values)
    told = "images are uint8 from 0 to 255; give them as they come from the camera, not divided by 255"
    for wrong in (
        values / 255,
        values.astype(np.float32),
        values > 128,
        *(values.astype(np.int64) + x for x in (-1000, 1000)),
    ):
        with pytest.raises(
            ValueError, match=told if len(shape) == 3 else "expected uint8, whole numbers from 0 to 255"
        ):
            group.rows(wrong)
    with pytest.raises(ValueError, match="holds whole numbers from -1 to 255"):
        group.rows(np.full((2, *shape), 255) - 256 * np.eye(2, dtype=int)[0].reshape(2, *[1] * len(shape)))


@pytest.mark.parametrize("reading", [np.nan, np.inf, -1e300])
def test_a_reading_that_is_not_finite_is_refused_and_the_memory_is_as_it_was(reading):
    spec = EnvSpec("test", {"policy": ObsGroup((3,))}, ACTIONS["box"])
    config = ppo.PPOConfig(memory=MemoryConfig(kind="gru", size=4), action=ActionConfig(smoothing=0.5))
    policy = ppo.make_policy(spec, config, torch.Generator().manual_seed(0))
    obs = np.ones((2, 3))
    _, memory = policy.predict(obs)
    before = {key: value.clone() for key, value in memory.items()}
    expected, _ = policy.predict(obs, memory)
    obs[1, 2] = reading
    with pytest.raises(
        NonFiniteError, match=r"the observation group 'policy' is (nan|-?inf) at \(1, 2\).* memory .* as it"
    ):
        policy.predict(obs, memory)
    with pytest.raises(NonFiniteError, match=r"'policy' is (nan|-?inf) at \(2,\)"):
        policy.predict({"policy": obs[1]})
    obs[1, 2] = 1.0
    again, _ = policy.predict(obs, memory)
    np.testing.assert_array_equal(again, expected)
    assert all(torch.equal(memory[key], value) for key, value in before.items())
    for key in memory:
        with pytest.raises(NonFiniteError, match=f"the memory '{key}' is not finite"):
            policy.predict(obs, {**memory, key: memory[key] * np.nan})


def test_predict_wants_the_memory_of_as_many_robots():
    policy = make_policy(
        ACTIONS["box"], td3, memory=MemoryConfig(kind="gru", size=4), action_noise="ornstein_uhlenbeck"
    )
    many, one = np.ones((4, 3)), np.ones(3)
    of_many, of_one = (policy.predict(obs, deterministic=False)[1] for obs in (many, one))
    assert set(of_many) == {"network", "noise"}
    for obs, memory, told in (
        (one, of_many, r"'(network|noise)' has shape \(4, .\), expected \(1, .\) for 1 observed"),
        (many, of_one, r"'(network|noise)' has shape \(1, .\), expected \(4, .\) for 4 observed"),
        (one, {**of_one, "noise": of_many["noise"]}, r"'noise' has shape \(4, 2\), expected \(1, 2\)"),
        (one, {"network": np.zeros((1, 5))}, r"'network' has shape \(1, 5\), expected \(1, 4\)"),
        (one, {"noise": of_one["noise"]}, "lacks 'network': hand on what the last call returned"),
        (one, np.zeros((1, 4)), "is of type ndarray, expected arrays by key"),
    ):
        with pytest.raises(HabilisError, match=told):
            policy.predict(obs, memory)
    expected, _ = policy.predict(many, of_many)
    by_numpy = {key: value.numpy().astype(np.float64) for key, value in of_many.items()}
    np.testing.assert_array_equal(policy.predict(many, by_numpy)[0], expected)
    np.testing.assert_array_equal(policy.predict(many, {})[0], policy.predict(many)[0])


def test_groups_of_one_robot_and_of_several_do_not_go_together():
    groups = {"policy": ObsGroup((3,)), "policy/camera": ObsGroup((36, 36, 3), "uint8")}
    policy = make_policy(ACTIONS["box"], obs=groups)
    image = np.zeros((36, 36, 3), np.uint8)
    for vector, camera, told in (
        (np.zeros(3), image[None], r"\('policy' is one alone, 'policy/camera' is a batch of 1\)"),
        (np.zeros((4, 3)), image, r"\('policy' is a batch of 4, 'policy/camera' is one alone\)"),
        (np.zeros((4, 3)), np.stack([image] * 2), "not of the same robots"),
    ):
        with pytest.raises(HabilisError, match=told):
            policy.predict({"policy": vector, "policy/camera": camera})
    assert policy.predict({"policy": np.zeros(3), "policy/camera": image})[0].shape == (2,)


def test_drawing_without_a_generator_differs_each_time_and_leaves_the_global_state():
    policy = make_policy(ACTIONS["box"], sac)
    obs = np.zeros((4, 3))
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, second = (policy.predict(obs, deterministic=False)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


def test_squashed_policy_stays_within_the_bounds():
    policy = make_policy(ACTIONS["box"], sac)
    obs = {"policy": torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 50}
    env_action = policy.act(obs, generator=torch.Generator().manual_seed(1)).env_action
    assert bool(((env_action >= torch.tensor([0.0, -1.0])) & (env_action <= torch.tensor([4.0, 1.0]))).all())


def test_acting_leaves_the_normaliser():
    policy = make_policy(ACTIONS["box"], normalize_obs=True)
    policy.encoder.update_normalizers({"policy": torch.randn(50, 3, generator=torch.Generator().manual_seed(0))})
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    policy.train().act({"policy": torch.full((4, 3), 9.0)}, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_a_deterministic_policy_explores_by_noise_within_the_bounds():
    policy = make_policy(ACTIONS["box"], td3, action_noise_std=0.2)
    policy.head.bias.data.copy_(torch.tensor([0.0, 3.0]))
    policy.head.weight.data.zero_()
    obs = {"policy": torch.zeros(4000, 3)}
    step = policy.act(obs, generator=torch.Generator().manual_seed(0))
    assert step.memory is None
    assert torch.equal(step.env_action, policy.action_map(step.action))
    assert float(step.action[:, 0].std()) == pytest.approx(0.2, rel=0.05)
    assert float(step.action[:, 0].mean()) == pytest.approx(0.0, abs=0.02)
    assert float((step.action[:, 1] == 1).float().mean()) == pytest.approx(0.5, abs=0.05)  # clipped
    assert bool((step.action.abs() <= 1).all())
    still = policy.act(obs, {"kept": step.action}, deterministic=True)
    assert torch.equal(still.env_action, policy(obs)[0])
    assert torch.equal(still.memory["kept"], step.action)


def test_ornstein_uhlenbeck_noise_by_hand():
    """x' = 0.75 x + 0.3 n, from zero; it decays and what is drawn adds up, and zeros are a fresh episode."""
    policy = make_policy(
        ACTIONS["box"], td3, action_noise="ornstein_uhlenbeck", action_noise_std=0.3, action_noise_theta=0.25
    )
    obs = {"policy": torch.zeros(2, 3)}
    draws = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 2, generator=draws) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    step = policy.act(obs, generator=generator)
    torch.testing.assert_close(step.memory["noise"], 0.3 * first)
    torch.testing.assert_close(step.action, (policy.action(obs) + 0.3 * first).clamp(-1, 1).detach())
    step = policy.act(obs, step.memory, generator=generator)
    torch.testing.assert_close(step.memory["noise"], 0.75 * 0.3 * first + 0.3 * second)
    fresh = policy.act(obs, {"noise": torch.zeros(2, 2)}, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fresh.memory["noise"], 0.3 * first)
    action, memory = policy.predict(np.zeros((2, 3)), {"noise": torch.full((2, 2), 100.0)}, deterministic=False)
    assert action.tolist() == [[4.0, 1.0]] * 2
    assert bool((memory["noise"] > 70).all())


def test_each_episode_draws_a_deviation_of_its_own():
    """Between 0.1 and 0.5 where the memory is fresh; elsewhere it is held, and the noise is that many times a draw."""
    policy = make_policy(ACTIONS["box"], td3, action_noise_std_min=0.1, action_noise_std=0.5)
    policy.head.weight.data.zero_()
    policy.head.bias.data.zero_()
    obs, generator = {"policy": torch.zeros(1000, 3)}, torch.Generator().manual_seed(0)
    first = policy.act(obs, generator=generator)
    std = first.memory["noise_std"]
    assert std.shape == (1000, 1)
    assert 0.1 <= float(std.min()) < 0.11
    assert 0.49 < float(std.max()) <= 0.5
    memory = {"noise_std": torch.where(torch.arange(1000).view(-1, 1) < 300, 0.0, std)}
    draws = torch.Generator().set_state(generator.get_state())
    second = policy.act(obs, memory, generator=generator)
    again = second.memory["noise_std"]
    assert torch.equal(again[300:], std[300:])
    torch.testing.assert_close(again[:300], 0.1 + 0.4 * torch.rand(1000, 1, generator=draws)[:300])
    torch.testing.assert_close(second.action, (again * torch.randn(1000, 2, generator=draws)).clamp(-1, 1))
    still = policy.act(obs, second.memory, deterministic=True)
    assert torch.equal(still.memory["noise_std"], again)
    assert not still.action.any()
    both = make_policy(
        ACTIONS["box"], td3, action_noise="ornstein_uhlenbeck", action_noise_std_min=0.1, action_noise_std=0.5
    )
    assert set(both.act(obs).memory) == {"noise", "noise_std"}


HEADS = [
    {},
    {"dueling": True},
    {"head": "categorical", "v_min": -5.0, "v_max": 5.0},
    {"head": "quantile", "risk_level": 0.3},
    {"head": "implicit_quantile", "exploration": "noisy"},
]


@pytest.mark.parametrize("config", HEADS, ids=str)
def test_a_value_policy_acts_by_its_best_score(config):
    spec = EnvSpec("test", {"policy": ObsGroup((3,)), "critic": ObsGroup((2,))}, DiscreteAction(4))
    policy = dqn.make_policy(spec, dqn.DQNConfig(**config), torch.Generator().manual_seed(0))
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 5
    with torch.no_grad():
        scores = policy.scores({"policy": torch.from_numpy(obs)})
    assert scores.shape == (50, 4)
    action, memory = policy.predict(obs)
    assert memory is None
    assert action.tolist() == scores.argmax(1).tolist()
    assert len(set(action.tolist())) > 1
    assert policy.predict(obs[7])[0].shape == ()
    drawn = policy.act({"policy": torch.from_numpy(obs)})  # the operating system's entropy
    assert drawn.action.dtype == torch.int64
    assert not drawn.action.requires_grad
    with pytest.raises(HabilisError, match=r"'policy' has shape \(2, 5\)"):
        policy.predict(np.zeros((2, 5), np.float32))
