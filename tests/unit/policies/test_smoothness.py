"""The penalties of smoothness: what they compare, against sums by hand, and that they make policies smooth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from habilis.algorithms import ppo, sac, td3
from habilis.core.batches import RolloutBatch
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, HybridAction, MultiDiscreteAction, ObsGroup
from habilis.core.tree import tree_join, tree_part
from habilis.nn.memory import MemoryConfig
from habilis.policies.smoothness import SmoothnessConfig, draw_neighbours, rollout_neighbours, smoothness_loss

BOX = BoxAction(np.array([0, -1], np.float32), np.array([4, 1], np.float32))
GROUPS = {"policy": ObsGroup((3,)), "critic": ObsGroup((2,))}
ALL = SmoothnessConfig(temporal=2.0, spatial=3.0, spatial_std=0.5, local=5.0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def make(algorithm, generator, action=BOX, groups=GROUPS, **config):
    cls = {ppo: ppo.PPOConfig, sac: sac.SACConfig, td3: td3.TD3Config}[algorithm]
    policy = algorithm.make_policy(EnvSpec("test", groups, action), cls(**config), generator)
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.normal_(generator=generator)
    return policy


def transitions(generator, rows=20):
    draw = {f"{part}/{name}": (rows, *group.shape) for part in ("obs", "next_obs") for name, group in GROUPS.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in draw.items()}


@pytest.mark.parametrize("algorithm", [ppo, sac, td3])
def test_the_loss_is_the_weighted_sum_of_three_distances(algorithm, generator):
    policy = make(algorithm, generator, normalize_obs=True)
    policy.encoder.update_normalizers({"policy": torch.randn(50, 3, generator=generator) * 4 + 2})
    data = transitions(generator)
    drawn = draw_neighbours(ALL, policy.encoder.normalize, data, generator)

    def act(normalized):
        head = policy.head(policy.trunk(normalized))
        return head.tanh() if algorithm is td3 else head.mode().clamp(-1, 1)

    norm = policy.encoder.normalizers["policy"]
    here, following = norm(data["obs/policy"]), norm(data["next_obs/policy"])
    noisy = here + 0.5 * drawn["normal/policy"]
    inside = here + (2 * drawn["uniform/policy"] - 1) * (following - here)
    weights = torch.rand(20, generator=generator)
    for weight in (None, weights / weights.sum()):
        rows = torch.full((20,), 1 / 20) if weight is None else weight
        expected = sum(
            scale * (rows * (act(here) - act(x)).square().sum(1)).sum()
            for scale, x in ((2.0, following), (3.0, noisy), (5.0, inside))
        )
        torch.testing.assert_close(smoothness_loss(ALL, policy, drawn, weight), expected)
    only = SmoothnessConfig(local=5.0)
    expected = 5 * (act(here) - act(inside)).square().sum(1).mean()
    torch.testing.assert_close(smoothness_loss(only, policy, drawn), expected)
    assert draw_neighbours(SmoothnessConfig(), policy.encoder.normalize, data, generator) == {}


def test_noise_is_normal_and_shares_are_uniform(generator):
    policy = make(sac, generator)
    drawn = draw_neighbours(ALL, policy.encoder.normalize, transitions(generator, 20_000), generator)
    assert {name.split("/")[1] for name in drawn} == {"policy"}
    assert float(drawn["normal/policy"].std()) == pytest.approx(1.0, rel=0.02)
    assert float(drawn["uniform/policy"].mean()) == pytest.approx(0.5, abs=0.01)
    assert 0 <= float(drawn["uniform/policy"].min()) < 0.01 < 0.99 < float(drawn["uniform/policy"].max()) <= 1


def test_the_neighbours_of_a_rollout_are_true_successors(generator):
    policy = make(ppo, generator, normalize_obs=False)
    obs = {"policy": torch.arange(18.0).reshape(3, 2, 3), "critic": torch.zeros(3, 2, 2)}
    nothing = torch.zeros(2, 2)
    batch = RolloutBatch(
        obs=obs,
        actions=nothing,
        log_probs=nothing,
        rewards=nothing,
        terminated=nothing.bool(),
        truncated=nothing.bool(),
        valid=~nothing.bool(),
        final_index=(torch.tensor([0]), torch.tensor([1])),
        final_obs={"policy": torch.tensor([[100.0, 101.0, 102.0]]), "critic": torch.zeros(1, 2)},
    )
    drawn = rollout_neighbours(ALL, policy.encoder, batch, generator)
    assert torch.equal(drawn["here/policy"], obs["policy"][:2])
    assert drawn["following/policy"][0, 1].tolist() == [100, 101, 102]
    assert torch.equal(drawn["following/policy"][0, 0], obs["policy"][1, 0])
    assert torch.equal(drawn["following/policy"][1], obs["policy"][2])
    assert rollout_neighbours(SmoothnessConfig(), policy.encoder, batch, generator) == {}


def test_of_a_hybrid_action_the_values_count(generator):
    policy = make(ppo, generator, HybridAction(BOX, MultiDiscreteAction((3,))), normalize_obs=False)
    drawn = draw_neighbours(ALL, policy.encoder.normalize, transitions(generator), generator)
    only = SmoothnessConfig(temporal=1.0)
    values = [
        policy.head.real(policy.trunk(drawn[f"{part}/policy"])).mode().clamp(-1, 1) for part in ("here", "following")
    ]
    torch.testing.assert_close(smoothness_loss(only, policy, drawn), (values[0] - values[1]).square().sum(1).mean())


def test_images_are_left_as_they_are(generator):
    image = torch.randint(256, (2, 36, 36, 3), generator=generator, dtype=torch.uint8)
    data = tree_join(
        obs={"policy": torch.zeros(2, 3), "camera": image}, next_obs={"policy": torch.ones(2, 3), "camera": image}
    )
    drawn = draw_neighbours(ALL, dict, data, generator)
    assert set(tree_part(drawn, "normal")) == {"policy"}
    assert torch.equal(drawn["here/camera"], image)


@pytest.mark.parametrize(
    ("algorithm", "config", "message"),
    [
        (sac, {"memory": MemoryConfig(kind="gru")}, "a policy with memory acts on many"),
        (td3, {"n_steps": 3}, "n_steps 3 gives another"),
        (td3, {"groups": {"policy": ObsGroup((36, 36, 3), "uint8")}}, "reads images alone: use temporal"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(algorithm, config, message, generator):
    with pytest.raises(ConfigError, match=message):
        make(algorithm, generator, smoothness=ALL, **config)


def test_what_means_nothing_is_refused():
    for wrong in ({"temporal": -1.0}, {"spatial": -1.0}, {"local": -1.0}, {"spatial_std": 0.0}):
        with pytest.raises(ConfigError, match=f"smoothness.{next(iter(wrong))}"):
            SmoothnessConfig(**wrong)


def test_choices_cannot_be_smooth(generator):
    with pytest.raises(ConfigError, match="smoothness is of real-valued actions: test has choices"):
        ppo.PPO(
            EnvSpec("test", GROUPS, DiscreteAction(3)),
            ppo.PPOConfig(smoothness=ALL),
            num_envs=1,
            streams=RandomStreams(0),
        )
