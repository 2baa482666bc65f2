"""Critics teach the encoder of images, and the policy that reads the same images reads their features."""

from __future__ import annotations

import pytest
import torch

from habilis.core.specs import ACHIEVED, DESIRED, ObsGroup
from habilis.nn.memory import MemoryConfig, single

STATE_BESIDES = {"policy": ObsGroup((36, 36, 3), "uint8"), "critic": ObsGroup((5,))}
KINDS = [("td3", "box"), ("sac", "box"), ("discrete_sac", "choice")]


def make(lab, name, action, obs, **config):
    env = lab.env(obs, action)
    algorithm = getattr(lab, name)(env, policy_delay=1, **config) if name != "discrete_sac" else lab.discrete_sac(env)
    return algorithm, lab.replay(algorithm, env).sample(16)


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize(("name", "action"), KINDS)
def test_the_encoder_is_one_and_the_critics_learn_it(lab, name, action):
    algorithm, batch = make(lab, name, action, lab.IMAGES)
    s = algorithm.state
    assert s.policy.encoder.images["policy"] is s.critics.encoder.images["policy"]
    assert s.policy.encoder.images["policy"] is not s.target_critics.encoder.images["policy"]
    size = sum(p.numel() for p in s.policy.encoder.parameters())
    assert size > 0
    assert len(s.policy_optimizer.flat) == sum(p.numel() for p in s.policy.parameters()) - size
    before, rate = parameters(s.policy), s.policy_optimizer.learning_rate.clone()
    s.critic_optimizer.learning_rate.zero_()
    algorithm.update(batch)
    assert moved(s.policy, before) == {n for n in before if not n.startswith("encoder")}
    before = parameters(s.policy)
    s.critic_optimizer.learning_rate.copy_(rate)
    s.policy_optimizer.learning_rate.zero_()
    algorithm.update(batch)
    assert moved(s.policy, before) == {n for n in before if n.startswith("encoder")}


@pytest.mark.parametrize(("name", "action"), KINDS)
def test_features_in_the_place_of_images_change_no_answer(lab, name, action):
    algorithm, batch = make(lab, name, action, lab.IMAGES)
    s = algorithm.state
    seen = s.critics.see(batch.obs)
    assert seen["policy"].shape == (16, 50)
    assert not seen["policy"].requires_grad
    assert torch.equal(
        s.policy.act(seen, deterministic=True).action, s.policy.act(batch.obs, deterministic=True).action
    )
    action_of = () if name == "discrete_sac" else (batch.action,)
    torch.testing.assert_close(s.critics(seen, *action_of), s.critics(batch.obs, *action_of))


def test_the_target_policy_sees_by_the_target_critics_that_follow(lab):
    td3, batch = make(lab, "td3", "box", lab.IMAGES, tau=0.25)
    s = td3.state
    assert s.target_policy.encoder.images["policy"] is s.target_critics.encoder.images["policy"]
    before = parameters(s.target_policy)
    td3.update(batch)
    for name, p in s.target_policy.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.25 * (s.policy.get_parameter(name) - before[name]))


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_who_sees_what_the_critics_do_not_learns_to_by_itself(lab, name):
    algorithm, batch = make(lab, name, "box", STATE_BESIDES)
    s = algorithm.state
    assert not s.critics.encoder.images
    before = parameters(s.policy)
    algorithm.update(batch)
    assert moved(s.policy, before) == set(before)


@pytest.mark.parametrize(("name", "action"), KINDS)
def test_of_several_images_those_that_both_read_are_seen_alike(lab, name, action):
    picture = lab.IMAGES["policy"]
    groups = {"policy": ObsGroup((3,)), "critic": ObsGroup((4,)), ACHIEVED: picture, DESIRED: picture}
    algorithm, batch = make(lab, name, action, groups)
    s = algorithm.state
    assert s.policy.encoder.images[DESIRED] is s.critics.encoder.images[DESIRED]
    seen = s.critics.see(batch.obs)
    features = [s.policy.trunk(s.policy.encoder(obs)) for obs in (seen, batch.obs)]
    torch.testing.assert_close(*features)
    assert all(bool(value.isfinite().all()) for value in algorithm.update(batch).values())


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_it_is_one_under_memories_of_their_own(lab, name):
    env = lab.env(lab.IMAGES, "box")
    algorithm = getattr(lab, name)(env, memory=MemoryConfig(kind="gru", size=8, window=4))
    policy, critics = algorithm.state.policy.encoder, algorithm.state.critics.encoder
    assert single(policy).images["policy"] is single(critics).images["policy"]
    assert policy.core is not critics.core
    own = {id(p) for p in policy.core.parameters()}
    assert own <= {id(p) for p in algorithm.state.policy_optimizer.parameters}


@pytest.mark.parametrize(("name", "action"), KINDS)
def test_what_is_kept_goes_on_bit_for_bit(lab, name, action):
    one, batch = make(lab, name, action, lab.IMAGES)
    other, _ = make(lab, name, action, lab.IMAGES)
    for _ in range(2):
        one.update(batch)
    other.load_state_dict(one.state_dict())
    for algorithm in (one, other):
        algorithm.update(batch)
    for a, b in zip(one.state.policy.parameters(), other.state.policy.parameters(), strict=True):
        assert torch.equal(a, b)
