"""Probe environments: each pays what its table says, ends as it says, and restores exactly."""

from __future__ import annotations

import pytest
import torch

from habilis.core.errors import ConfigError
from habilis.core.specs import BoxAction, DiscreteAction
from habilis.core.types import Step
from habilis.envs.checker import check_env
from habilis.envs.make import make_vec_env
from habilis.envs.probes import PROBES, ProbeEnv

N = 64


def act(env, value=1):
    """The same action everywhere: a choice, or a real number."""
    action = env.spec.action
    if isinstance(action, BoxAction):
        return torch.full((N, action.dim), float(value))
    return torch.full((N,) if isinstance(action, DiscreteAction) else (N, len(action.nvec)), int(value))


def episode(id, choose) -> tuple[list, list[Step]]:
    """Play one episode with `choose(env, obs)`."""
    env = ProbeEnv(id, N, seed=3)
    obs, seen, steps = env.reset(), [], []
    while not steps or not steps[-1].done.any():
        seen.append(obs["policy"])
        steps.append(env.step(choose(env, obs["policy"])))
        obs = steps[-1].obs
    assert steps[-1].done.all()
    return seen, steps


@pytest.mark.parametrize("id", PROBES)
def test_every_probe_keeps_the_contract(id):
    env = make_vec_env(id, 3, seed=1)
    assert env.spec.id == id
    assert [f for f in check_env(env, 40) if f.level == "error"] == []
    assert any("restores its state exactly" in f.what for f in check_env(env, 40))


@pytest.mark.parametrize(
    ("name", "length", "truncates"),
    [
        ("ConstantReward", 1, False),
        ("ObservationReward", 1, False),
        ("TwoStepCredit", 2, False),
        ("ActionReward", 1, False),
        ("ActionObservationReward", 1, False),
        ("Identity", 8, False),
        ("TruncationValue", 5, True),
        ("Memory", 4, False),
    ],
)
@pytest.mark.parametrize("twin", ["", "Continuous"])
def test_length_and_ending(name, length, truncates, twin):
    _, steps = episode(f"probe/{name}{twin}-v0", lambda env, obs: act(env))
    assert len(steps) == length
    assert steps[-1].truncated.all() == truncates
    assert steps[-1].terminated.all() != truncates
    if length > 1:
        assert steps[0].obs is steps[0].next_obs


@pytest.mark.parametrize("twin", ["", "Continuous"])
def test_rewards_that_do_not_depend_on_the_action(twin):
    _, (step,) = episode(f"probe/ConstantReward{twin}-v0", lambda env, obs: act(env, 0))
    assert (step.reward == 1).all()
    (obs,), (step,) = episode(f"probe/ObservationReward{twin}-v0", lambda env, obs: act(env, 0))
    assert torch.equal(step.reward, obs[:, 0])
    assert set(obs[:, 0].tolist()) == {-1, 1}
    seen, steps = episode(f"probe/TwoStepCredit{twin}-v0", lambda env, obs: act(env, 0))
    assert [float(obs.unique()) for obs in seen] == [0, 1]
    assert [float(step.reward.unique()) for step in steps] == [0, 1]
    _, steps = episode(f"probe/TruncationValue{twin}-v0", lambda env, obs: act(env, 0))
    assert all((step.reward == 1).all() for step in steps)


def test_rewards_of_discrete_actions():
    assert (episode("probe/ActionReward-v0", lambda env, obs: act(env, 1))[1][0].reward == 1).all()
    assert (episode("probe/ActionReward-v0", lambda env, obs: act(env, 0))[1][0].reward == -1).all()
    right = lambda env, obs: (obs[:, 0] > 0).long()  # noqa: E731
    assert (episode("probe/ActionObservationReward-v0", right)[1][0].reward == 1).all()
    (obs,), (step,) = episode("probe/ActionObservationReward-v0", lambda env, obs: act(env, 1))
    assert torch.equal(step.reward, obs[:, 0])
    seen, steps = episode("probe/Identity-v0", lambda env, obs: obs.argmax(1))
    assert all((step.reward == 1).all() for step in steps)
    assert not torch.equal(seen[0], seen[1])
    both = lambda env, obs: torch.stack([obs[:, :3].argmax(1), obs[:, 3:].argmax(1)], 1)  # noqa: E731
    assert all((s.reward == 1).all() for s in episode("probe/IdentityMultiDiscrete-v0", both)[1])
    half = lambda env, obs: torch.stack([obs[:, :3].argmax(1), obs[:, 3:].argmin(1)], 1)  # noqa: E731
    assert all((s.reward == 0.5).all() for s in episode("probe/IdentityMultiDiscrete-v0", half)[1])


def test_rewards_of_hybrid_actions():
    """The value comes first in the action, the choice last; the observation shows the choice first."""
    right = lambda env, obs: torch.stack([obs[:, 3], obs[:, :3].argmax(1).float()], 1)  # noqa: E731
    assert all((s.reward == 1).all() for s in episode("probe/IdentityHybrid-v0", right)[1])
    wrong = lambda env, obs: torch.stack([obs[:, 3] + 0.5, obs[:, :3].argmin(1).float()], 1)  # noqa: E731
    rewards = torch.stack([s.reward for s in episode("probe/IdentityHybrid-v0", wrong)[1]])
    assert torch.allclose(rewards, torch.full_like(rewards, -0.25))


def test_rewards_of_continuous_actions():
    best = {
        "ActionReward": lambda env, obs: act(env, 0.5),
        "ActionObservationReward": lambda env, obs: 0.5 * obs,
        "Identity": lambda env, obs: obs,
    }
    for name, choose in best.items():
        assert all((s.reward == 0).all() for s in episode(f"probe/{name}Continuous-v0", choose)[1])
        off = lambda env, obs, choose=choose: choose(env, obs) + 0.5  # noqa: E731
        rewards = torch.stack([s.reward for s in episode(f"probe/{name}Continuous-v0", off)[1]])
        assert torch.allclose(rewards, torch.full_like(rewards, -0.25))


def test_memory_pays_for_the_cue_at_the_last_step_only():
    seen, steps = episode("probe/Memory-v0", lambda env, obs: act(env, 1))
    assert set(seen[0][:, 0].tolist()) == {-1, 1}
    assert not torch.stack(seen[1:]).any()
    assert not torch.stack([s.reward for s in steps[:-1]]).any()
    assert torch.equal(steps[-1].reward, seen[0][:, 0])
    seen, steps = episode("probe/MemoryContinuous-v0", lambda env, obs: act(env, 0.5))
    assert torch.equal(steps[-1].reward, -(0.5 - 0.5 * seen[0][:, 0]).square())


def test_seeds_and_unknown_probes():
    first = ProbeEnv("probe/IdentityContinuous-v0", N, seed=1).reset()["policy"]
    other = ProbeEnv("probe/IdentityContinuous-v0", N, seed=2)
    assert not torch.equal(first, other.reset()["policy"])
    assert torch.equal(other.reset(5)["policy"], other.reset(5)["policy"])
    with pytest.raises(ConfigError, match="probe/Memory-v0"):
        ProbeEnv("probe/Memori-v0")
