"""What becomes of an action between the policy and the environment, and what of it is remembered."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from habilis.algorithms import a2c, discrete_sac, dqn, ppo, reinforce, sac, tabular, td3, trpo
from habilis.build import ALGORITHMS
from habilis.core.config import override, to_dict
from habilis.core.errors import ConfigError, HabilisError
from habilis.core.specs import (
    BoxAction,
    DiscreteAction,
    EnvSpec,
    HybridAction,
    MultiDiscreteAction,
    ObsGroup,
    action_parts,
    spec_from_dict,
    spec_to_dict,
)
from habilis.core.tree import zero_rows
from habilis.envs.gymnasium import make_gymnasium
from habilis.nn.memory import MemoryConfig
from habilis.policies.action_filter import LAST, ActionConfig, ActionFilter
from habilis.policies.action_map import ActionMap
from habilis.policies.batch import follow


def box(low, high):
    return BoxAction(np.array(low, np.float32), np.array(high, np.float32))


BOX = box([0, -1], [4, 1])
HYBRID = HybridAction(BOX, MultiDiscreteAction((3, 2)))
BOTH = ActionConfig(smoothing=0.5, rate_limit=0.25)
OBS = {"policy": torch.randn(6, 3, generator=torch.Generator().manual_seed(2)) * 3}


def make(kind, algorithm=ppo, /, **config):
    spec = EnvSpec("test", {"policy": ObsGroup((3,)), "critic": ObsGroup((2,))}, kind)
    classes = {ppo: ppo.PPOConfig, a2c: a2c.A2CConfig, sac: sac.SACConfig, td3: td3.TD3Config}
    cls = (classes | {trpo: trpo.TRPOConfig, reinforce: reinforce.ReinforceConfig})[algorithm]
    policy = algorithm.make_policy(spec, cls(**config), torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from the tiny first actions
        for p in policy.head.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))
    return policy


def test_smoothing_and_limit_by_hand():
    """Towards 1 and -1 from the middle, half of what is missing each time, and never more than a quarter at once."""
    action_map = ActionMap(BOX, BOTH)
    wanted, data, done = torch.tensor([[5.0, -0.2]]), {LAST: torch.zeros(1, 2)}, []
    for _ in range(5):
        env_action, data = action_map.step(wanted, data)
        done.append(data[LAST][0].tolist())
        assert torch.equal(env_action, data[LAST] * torch.tensor([2.0, 1.0]) + torch.tensor([2.0, 0.0]))
    assert [x for x, _ in done] == pytest.approx([0.25, 0.5, 0.75, 0.875, 0.9375])
    assert [y for _, y in done] == pytest.approx([-0.1, -0.15, -0.175, -0.1875, -0.19375])


@pytest.mark.parametrize("config", [{"smoothing": 0.25}, {"rate_limit": 0.5}], ids=str)
def test_each_alone_by_hand(config):
    action_map = ActionMap(BOX, ActionConfig(**config))
    _, after = action_map.step(torch.tensor([[1.0, -0.1]]), {LAST: torch.tensor([[-1.0, 0.5]])})
    expected = [[0.5, 0.05]] if "smoothing" in config else [[-0.5, 0.0]]
    assert after[LAST].tolist() == [pytest.approx(row) for row in expected]


def test_limits_and_rests_of_each_value_by_hand():
    """From rest at half the range and a quarter below the middle; remembered is how far the last one is away."""
    action_map = ActionMap(HYBRID, ActionConfig(rate_limit=(0.5, 0.1), rest=(0.5, -0.25)))
    data, done = {LAST: action_map.filter.fresh(1)}, []
    for _ in range(4):
        env_action, data = action_map.step(torch.tensor([[-1.0, 1.0, 2.0, 1.0]]), data)
        done.append(env_action[0].tolist())
    # of a range from 0 to 4 and one from -1 to 1
    expected = [[2.0, -0.15], [1.0, -0.05], [0.0, 0.05], [0.0, 0.15]]
    assert done == [pytest.approx([*row, 2.0, 1.0]) for row in expected]
    assert data[LAST].tolist() == [pytest.approx([-1.5, 0.4, 2.0, 1.0])]


def test_smoothing_begins_at_rest():
    action_map = ActionMap(BOX, ActionConfig(smoothing=0.5, rest=-1.0))
    _, after = action_map.step(torch.tensor([[1.0, 0.0]]), {LAST: torch.zeros(1, 2)})
    assert after[LAST].tolist() == [pytest.approx([1.0, 0.5])]


def test_a_value_without_two_bounds_rests_where_the_environment_says():
    """Of the second value, of which the unit is the environment's own; the first rests between its bounds."""
    config = ActionConfig(rate_limit=0.1, rest=(0.5, 2.0))
    rests = ActionFilter(config, box([0, -np.inf], [4, np.inf]), 0)
    assert rests.recall({LAST: rests.fresh(1)}).tolist() == [[0.5, 2.0]]
    done = rests(torch.tensor([[0.5, 5.0]]), rests.recall({LAST: rests.fresh(1)}))
    assert done.tolist() == [pytest.approx([0.5, 2.1])]
    with pytest.raises(ConfigError, match=r"from -1 to 1 where a value has two bounds, got \(0.5, 2.0\)"):
        ActionFilter(config, BOX, 0)


def test_joints_without_limits_rest_where_the_robot_does():
    """At 2 rad, from which targets of positions depart by a tenth of a radian in a step, beside a value with bounds."""
    action_map = ActionMap(box([-np.inf, 0], [np.inf, 4]), ActionConfig(rate_limit=0.1, rest=(2.0, -0.5)))
    data, done = {LAST: action_map.filter.fresh(1)}, []
    for _ in range(2):
        env_action, data = action_map.step(torch.tensor([[-5.0, 1.0]]), data)
        done.append(env_action[0].tolist())
    assert done == [pytest.approx(row) for row in ([1.9, 1.2], [1.8, 1.4])]


def test_a_single_bound_holds_from_the_first_step_on():
    """Zero, from where episodes start, lies beyond both of these."""
    action_map = ActionMap(box([1, -np.inf], [np.inf, -2]), ActionConfig(rate_limit=0.1))
    data, done = {LAST: torch.zeros(1, 2)}, []
    for _ in range(3):
        env_action, data = action_map.step(torch.tensor([[5.0, -5.0]]), data)
        done.append(env_action[0].tolist())
    assert done == [pytest.approx(row) for row in ([1.1, -2.1], [1.2, -2.2], [1.3, -2.3])]


def test_choices_beside_values_are_neither_smoothed_nor_limited_nor_scaled():
    action_map = ActionMap(HYBRID, BOTH)
    env_action, after = action_map.step(torch.tensor([[2.0, 0.0, 2.0, 1.0]]), {LAST: torch.zeros(1, 4)})
    assert env_action.tolist() == [[2.5, 0.0, 2.0, 1.0]]
    assert after[LAST].tolist() == [[0.25, 0.0, 2.0, 1.0]]
    assert action_map.values == 2


def test_squashing_is_of_values_alone():
    action_map = ActionMap(HYBRID, squash=True)
    mapped = action_map(torch.tensor([[0.5, -30.0, 2.0, 1.0]]))
    torch.testing.assert_close(mapped, torch.tensor([[2 + 2 * np.tanh(0.5), -1.0, 2.0, 1.0]], dtype=torch.float32))
    # between what clipping maps to one bound the tangent still tells a difference, and never leaves the range
    near = action_map(torch.tensor([[1.5, 0, 0, 0], [2.5, 0, 0, 0]]))[:, 0]
    assert 3.7 < float(near[0]) < float(near[1]) < 4


@pytest.mark.parametrize("squash", [False, True])
def test_the_inverse_is_the_action_that_was_mapped(squash):
    action_map = ActionMap(HYBRID, squash=squash)
    action = torch.tensor([[0.5, -0.9, 2.0, 1.0], [0.0, 0.25, 0.0, 0.0]])
    torch.testing.assert_close(action_map.inverse(action_map(action)), action)
    # 3 of [0, 4] is half way from the middle to the bound
    half = float(np.arctanh(0.5)) if squash else 0.5
    assert action_map.inverse(torch.tensor([[3.0, 0.0, 2.0, 1.0]])).tolist() == [pytest.approx([half, 0.0, 2.0, 1.0])]
    beyond = torch.tensor([[4.0, -7.0, 0.0, 0.0]])
    found = action_map.inverse(beyond)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(action_map(found), torch.tensor([[4.0, -1.0, 0.0, 0.0]]))


def test_the_inverse_where_there_is_little_to_invert():
    assert ActionMap(DiscreteAction(4)).inverse(torch.tensor([3])).tolist() == [3]
    assert ActionMap(MultiDiscreteAction((2, 3), (1, -1))).inverse(torch.tensor([[2, 1]])).tolist() == [[1, 2]]
    unbounded = ActionMap(box([1, -np.inf, 2], [np.inf, np.inf, 2]))
    assert unbounded.inverse(torch.tensor([[0.5, 7.0, 2.0]])).tolist() == [[1.0, 7.0, 0.0]]


def test_what_cannot_be_is_refused():
    for wrong in ({"smoothing": 1.0}, {"smoothing": -0.1}, {"rate_limit": 0.0}, {"rate_limit": (0.1, -0.1)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ActionConfig(**wrong)
    for beyond in ((0.0, 1.5), -1.01):
        with pytest.raises(ConfigError, match=r"action.rest must be from -1 to 1 where a value has two bounds, got"):
            make(BOX, action=ActionConfig(rate_limit=0.1, rest=beyond))
    with pytest.raises(ConfigError, match=r"action.rest must be finite"):
        ActionConfig(rate_limit=0.1, rest=np.inf)
    with pytest.raises(ConfigError, match=r"action\.rest has no effect without action\.smoothing"):
        ActionConfig(rest=0.5)
    for name in ("rate_limit", "rest"):
        config = ActionConfig(**{"rate_limit": 0.1, name: (0.1, 0.2, 0.3)})
        with pytest.raises(ConfigError, match=f"action.{name} must be one number for each of the 2 real values, .* 3"):
            make(BOX, action=config)
    with pytest.raises(ConfigError, match="for real values, not for choices"):
        make(DiscreteAction(3), action=BOTH)


def test_configurations_are_nested():
    config = override(ppo.PPOConfig(), {"action.rate_limit": 0.25, "action": {"smoothing": 0.5}})
    assert config.action == BOTH
    assert override(ppo.PPOConfig(), to_dict(config)) == config


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [(ppo, {}), (ppo, {"memory": MemoryConfig(kind="gru", size=4)}), (sac, {}), (td3, {"action_noise_std": 0.5})],
    ids=str,
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_policies_carry_the_last_action(algorithm, config, deterministic):
    policy = make(BOX, algorithm, action=BOTH, **config)
    plain = make(BOX, algorithm, **config)
    assert set(policy.fresh_memory(6)) == ({"last_action", "network"} if "memory" in config else {"last_action"})
    memory, last, generators = None, torch.zeros(6, 2), [torch.Generator().manual_seed(3) for _ in range(2)]
    before = None
    for step in range(12):
        if step == 7:  # the third environment begins anew
            rows = torch.arange(6) == 2
            memory, last = zero_rows(memory, rows), last.masked_fill(rows[:, None], 0)
            before = before and zero_rows(before, rows)
        obs = {"policy": OBS["policy"] + step % 3}
        acted = policy.act(obs, memory, deterministic=deterministic, generator=generators[0])
        other = plain.act(obs, before, deterministic=deterministic, generator=generators[1])
        # what a learner stores is what the policy wanted
        assert torch.equal(acted.action, other.action)
        wanted = other.action.clamp(-1, 1)
        expected = wanted + 0.5 * (last - wanted)
        expected = torch.maximum(torch.minimum(expected, last + 0.25), last - 0.25)
        torch.testing.assert_close(acted.memory["last_action"], expected)
        torch.testing.assert_close(acted.env_action, expected * torch.tensor([2.0, 1.0]) + torch.tensor([2.0, 0.0]))
        memory, before, last = acted.memory, other.memory, expected
    assert "last_action" not in (before or {})


def test_forward_is_what_acts_and_predict_remembers():
    policy = make(BOX, action=BOTH)
    action, memory = policy.predict(OBS["policy"].numpy())
    forward, after = policy(OBS, policy.fresh_memory(6))
    np.testing.assert_allclose(action, forward.detach().numpy())
    again, _ = policy.predict(OBS["policy"].numpy(), memory)
    np.testing.assert_allclose(again, policy(OBS, after)[0].detach().numpy())
    assert not np.allclose(again, action)


@pytest.mark.parametrize("config", [{}, {"memory": MemoryConfig(kind="gru", size=4)}], ids=str)
def test_a_policy_that_is_told_what_to_do_remembers_it(config):
    policy = make(BOX, sac, action=BOTH, **config)
    told = torch.full((6, 2), 0.3)
    first = follow(policy, told, OBS, None)
    assert torch.equal(first.action, told)
    torch.testing.assert_close(first.memory["last_action"], torch.full((6, 2), 0.15))
    second = follow(policy, told, OBS, first.memory)
    torch.testing.assert_close(second.memory["last_action"], torch.full((6, 2), 0.225))
    if config:
        acted = policy.act(OBS, first.memory, deterministic=True)
        assert torch.equal(acted.memory["network"], second.memory["network"])
    assert follow(make(BOX, sac), told, OBS, None).memory is None


def test_bounded_policies_stay_within_the_bounds_without_being_clipped():
    low, high = torch.tensor([0.0, -1.0]), torch.tensor([4.0, 1.0])
    many = {"policy": torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 5}
    for distribution in ("squashed", "beta"):
        policy = make(BOX, distribution=distribution)
        step = policy.act(many, generator=torch.Generator().manual_seed(1))
        assert bool(((step.env_action >= low) & (step.env_action <= high)).all())
        torch.testing.assert_close(step.log_prob, policy.distribution(many).log_prob(step.action), atol=1e-3, rtol=1e-3)
        if distribution == "squashed":
            assert torch.equal(
                step.env_action, (step.action.tanh() * torch.tensor([2.0, 1.0]) + torch.tensor([2.0, 0.0]))
            )
        else:
            assert bool((step.action.abs() < 1).all())


def test_hybrid_policies_act_and_travel():
    policy = make(HYBRID)
    step = policy.act(OBS, generator=torch.Generator().manual_seed(1))
    assert step.action.shape == step.env_action.shape == (6, 4)
    assert torch.equal(step.env_action[:, 2:], step.action[:, 2:])
    assert bool(((step.env_action[:, 2] >= 0) & (step.env_action[:, 2] <= 2)).all())
    assert policy.predict(OBS["policy"][0].numpy())[0].shape == (4,)
    again = spec_from_dict(spec_to_dict(policy.spec))
    assert again.action.choices == HYBRID.choices
    assert again.action.box.high.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("module", "config", "action", "message"),
    [
        (
            sac,
            sac.SACConfig(),
            HYBRID,
            "SAC needs real-valued actions and test has values and choices at once: use",
        ),
        (
            td3,
            td3.TD3Config(),
            HYBRID,
            "TD3 needs real-valued actions and test has values and choices at once: use",
        ),
        (dqn, dqn.DQNConfig(), HYBRID, "needs one choice among several and test has values and choices at once"),
        (dqn, dqn.DQNConfig(), MultiDiscreteAction((3, 2)), "and test has several choices at once: use ppo or a2c"),
        (
            discrete_sac,
            discrete_sac.DiscreteSACConfig(),
            HYBRID,
            "needs one choice among several and test has values and",
        ),
        (tabular, tabular.TabularConfig(), BOX, "a table needs one choice among several and test has real-valued"),
    ],
    ids=str,
)
def test_who_does_not_take_an_action_says_who_does(module, config, action, message):
    spec = EnvSpec("test", {"policy": ObsGroup((3,))}, action)
    with pytest.raises(ConfigError, match=message):
        module.make_policy(spec, config, torch.Generator())


def test_what_is_for_real_values_is_refused_of_choices():
    spec = EnvSpec("test", {"policy": ObsGroup((3,))}, MultiDiscreteAction((3, 2)))
    for config in ({"use_sde": True}, {"std_type": "annealed"}, {"distribution": "beta"}, {"init_std": 0.5}):
        with pytest.raises(ConfigError, match="for real-valued actions, and these are choices: leave it out"):
            ppo.make_policy(spec, ppo.PPOConfig(**config), torch.Generator())


@pytest.mark.parametrize(("algorithm", "held"), [(ppo, 4), (a2c, 4), (trpo, 4), (reinforce, 4), (sac, 7)])
def test_noise_is_held_over_episodes_only_where_gradients_do_not_take_it_for_their_own(algorithm, held):
    policy = make(BOX, algorithm, use_sde=True)
    generator, memory, matrices = torch.Generator().manual_seed(5), None, []
    for _ in range(7):
        memory = policy.act(OBS, memory, generator=generator).memory
        matrices.append(memory["sde_matrix"])
    assert [torch.equal(matrices[0], matrix) for matrix in matrices] == [time < held for time in range(7)]


@pytest.mark.parametrize("algorithm", [ppo, sac])
def test_state_dependent_exploration_is_smooth_and_changes_when_its_time_comes(algorithm):
    """In one state noise stays as it is while a matrix is held; its density is that of the marginal distribution."""
    policy = make(BOX, algorithm, use_sde=True, sde_sample_freq=3)
    generator, memory, actions = torch.Generator().manual_seed(5), None, []
    for _ in range(7):
        step = policy.act(OBS, memory, generator=generator)
        told = policy.distribution(OBS).log_prob(step.action).detach()
        clear = (step.action.abs() < 0.99).all(1) | (algorithm is ppo)  # not where float32 has squashed them to one
        torch.testing.assert_close(step.log_prob[clear], told[clear], atol=1e-2, rtol=1e-2)
        memory = step.memory
        actions.append(step.action)
    changes = [not torch.equal(a, b) for a, b in zip(actions[1:], actions, strict=False)]
    assert changes == [False, False, True, False, False, True]
    assert memory["sde_age"].tolist() == [7] * 6
    assert policy.act(OBS, memory, deterministic=True).memory is memory
    assert not torch.equal(policy.act(OBS, memory, deterministic=True).action, actions[-1])
    # the memory of one row begins anew
    fresh = policy.act(OBS, zero_rows(memory, torch.arange(6) == 1), generator=generator)
    assert fresh.memory["sde_age"].tolist() == [8, 1, 8, 8, 8, 8]


def test_state_dependent_exploration_is_of_the_mean_and_the_features():
    policy = make(BOX, use_sde=True)
    step = policy.act(OBS, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        features = policy.trunk(policy.encoder(OBS))
        noise = torch.einsum("nf,nfa->na", features, policy.head.sde.log_std.exp() * step.memory["sde_matrix"])
        torch.testing.assert_close(step.action, policy.head.mean(features) + noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ["ppo", "dqn", "q_learning"])
def test_policies_answer_in_the_numbers_of_the_environment(algorithm):
    """Actions that start at -1 and states that start at 2: learnt by what acts, and told from outside in the same."""

    class Shifted(gym.Env):
        observation_space = spaces.Discrete(3, start=2)
        action_space = spaces.Discrete(3, start=-1)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.state = 3
            return self.state, {}

        def step(self, action):
            assert action in self.action_space
            return self.state, float(action == -1), False, False, {}

    env = make_gymnasium(Shifted, 2)
    assert (env.spec.obs["policy"].one_hot, env.spec.obs["policy"].starts) == ((3,), (2,))
    policy = ALGORITHMS[algorithm].make_policy(env.spec, ALGORITHMS[algorithm].config(), torch.Generator())
    obs = env.reset(0)
    for deterministic in (True, False):
        acted = policy.act(obs, deterministic=deterministic, generator=torch.Generator().manual_seed(0))
        assert torch.equal(acted.env_action, acted.action - 1)
        env.step(acted.env_action)
    assert int(policy.predict(np.int64(3))[0]) == int(policy.predict(np.eye(3, dtype=np.float32)[1])[0])
    assert set(policy.predict(np.array([2, 3, 4, 4]))[0].tolist()) <= {-1, 0, 1}
    with pytest.raises(HabilisError, match="holds the state 5: expected 2 to 4"):
        policy.predict(np.int64(5))


def test_choices_are_counted_from_where_the_environment_starts():
    """Beside values, alone and several; a spec that was written down and read again keeps it."""
    several = MultiDiscreteAction((3, 2), starts=(1, 0))
    assert ActionMap(several)(torch.tensor([[2, 1], [0, 0]])).tolist() == [[3, 1], [1, 0]]
    assert ActionMap(HybridAction(box([0], [4]), several))(torch.tensor([[0.5, 2, 1], [-1, 0, 0]])).tolist() == [
        [3, 3, 1],
        [0, 1, 0],
    ]
    assert not ActionMap(DiscreteAction(3)).state_dict()
    for action in (several, HybridAction(box([0], [4]), several), DiscreteAction(4, start=-2)):
        spec = EnvSpec("codes", {"policy": ObsGroup((5,), one_hot=(3, 2), starts=(4, 0))}, action)
        again = spec_from_dict(spec_to_dict(spec))
        assert again.obs == spec.obs
        assert action_parts(again.action)[1] == action_parts(action)[1]


def test_numbers_of_states_become_codes():
    group = ObsGroup((5,), one_hot=(3, 2), starts=(4, 0))
    rows, single = group.rows(np.array([5, 1]))
    assert (rows.tolist(), single, rows.dtype) == ([[0, 1, 0, 0, 1]], True, np.float32)
    rows, single = group.rows(np.array([[6, 0], [4, 1]]))
    assert (rows.tolist(), single) == ([[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]], False)
    for wrong, what in (([7, 0], "holds the state 7: expected 4 to 6"), ([4, 0, 0], "has shape"), (4, "has shape")):
        with pytest.raises(ValueError, match=what):
            group.rows(np.array(wrong))
