"""Plugins: their configuration, what they do to batches, and that losses fall while only the encoder moves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from habilis.core.batches import MEMORY, VALID, RolloutBatch, TransitionBatch
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, HybridAction, MultiDiscreteAction, ObsGroup
from habilis.nn.augmentation import draw_offsets, shift_images
from habilis.nn.encoder import ObsEncoder
from habilis.nn.optimizer import Optimizer
from habilis.plugins import PLUGINS, resolve_plugins
from habilis.plugins.auxiliary import rollout_parts
from habilis.plugins.contrastive import ContrastiveConfig
from habilis.plugins.next_state_prediction import action_vector
from habilis.plugins.random_shift import RandomShift, RandomShiftConfig
from habilis.plugins.reconstruction import Decoder

BOX = BoxAction(-np.ones(2, np.float32), np.ones(2, np.float32))
AUXILIARY = [name for name in PLUGINS if name != "random_shift"]


class Eye(torch.nn.Module):
    """As much of a policy as plugins know: a specification and an encoder, here with something behind it."""

    def __init__(self, action=BOX, shape=(20, 20, 3), **groups):
        super().__init__()
        self.spec = EnvSpec("seen", {"policy": ObsGroup(shape, "uint8"), **groups}, action)
        g = torch.Generator().manual_seed(0)
        self.encoder = ObsEncoder(self.spec.obs, ["policy"], False, g, "drq")
        self.head = torch.nn.Linear(self.encoder.out_dim, 2)


def dots(rows, g, shape=(20, 20, 3)):
    """Pictures of a white square at a place of its own."""
    images = torch.zeros(rows, *shape, dtype=torch.uint8)
    for image, (i, j) in zip(images, torch.randint(0, 17, (rows, 2), generator=g).tolist(), strict=True):
        image[i : i + 4, j : j + 4] = 255
    return images


def transitions(rows=32, seed=0, action=None, reach=2):
    """A batch in which the action says how far the picture moves, by at most `reach` pixels."""
    g = torch.Generator().manual_seed(seed)
    images = dots(rows, g)
    moves = torch.randint(-reach, reach + 1, (rows, 2), generator=g)
    return TransitionBatch(
        {"policy": images},
        moves / reach if action is None else action,
        torch.zeros(rows),
        torch.zeros(rows, dtype=torch.bool),
        {"policy": shift_images(images, moves)},
        torch.full((rows,), 0.99),
    )


def make(name, policy, seed=0, **config):
    return PLUGINS[name].make(PLUGINS[name].config(**config), policy, RandomStreams(seed))


def test_plugins_are_resolved_in_their_order_whichever_way_they_are_named():
    given = resolve_plugins({"contrastive": {"tau": 0.1}, "random-shift.pad": 2, "reconstruction": {}})
    assert list(given) == ["contrastive", "random_shift", "reconstruction"]
    assert given["contrastive"] == ContrastiveConfig(tau=0.1)
    assert given["random_shift"] == RandomShiftConfig(pad=2)
    assert resolve_plugins(given) == given
    assert resolve_plugins(given | {"contrastive.pad": 3})["contrastive"] == ContrastiveConfig(tau=0.1, pad=3)


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ({"random_shif": {}}, "no plugin 'random_shif' .did you mean 'random_shift'"),
        ({"contrastive": {"tua": 0.1}}, "'plugins.contrastive.tua' .did you mean 'plugins.contrastive.tau'"),
        ({"contrastive": True}, "its options and their values"),
        ({"random_shift": {"pad": 0}}, "pad must be positive"),
        ({"reconstruction": {"feature_penalty": -1.0}}, "must not be negative"),
        ({"next_state_prediction": {"hidden": 0}}, "hidden must be positive"),
        ({"contrastive": {"tau": 0.0}}, "tau must be in"),
    ],
)
def test_what_is_no_plugin_or_no_option_is_refused(plugins, words):
    with pytest.raises(ConfigError, match=words):
        resolve_plugins(plugins)


@pytest.mark.parametrize("name", list(PLUGINS))
def test_who_sees_nothing_needs_no_plugin_for_seeing(name):
    blind = SimpleNamespace(
        spec=EnvSpec("blind", {"policy": ObsGroup((3,))}, BOX),
        encoder=SimpleNamespace(images={}),
        parameters=lambda: iter([torch.zeros(1)]),
    )
    with pytest.raises(ConfigError, match=f"{name}.*blind.*leave"):
        make(name, blind)


def test_images_move_each_by_an_offset_of_its_own_and_nothing_else_does():
    eye = Eye(critic=ObsGroup((4,)), wrist=ObsGroup((3, 9, 9), "uint8"))
    g = torch.Generator().manual_seed(1)
    batch = transitions(64)
    extra = {"critic": torch.randn(64, 4, generator=g), "wrist": torch.randint(256, (64, 3, 9, 9), generator=g).byte()}
    batch = replace(batch, obs=batch.obs | extra, next_obs=batch.next_obs | extra)
    moved = make("random_shift", eye, pad=3).transform(batch)
    same = RandomStreams(0).torch("plugin/random_shift")
    for before, after in ((batch.obs, moved.obs), (batch.next_obs, moved.next_obs)):
        for name, axis in (("policy", -1), ("wrist", -3)):
            assert torch.equal(after[name], shift_images(before[name], draw_offsets(64, same, 3), axis))
            assert not torch.equal(after[name], before[name])
        assert after["critic"] is before["critic"]
    assert moved.action is batch.action
    assert make("random_shift", eye).update(batch) == {}


@pytest.mark.parametrize("name", ["random_shift", "contrastive"])
def test_an_image_may_not_move_out_of_sight(name):
    eye = Eye(shape=(20, 30, 3)) if name == "contrastive" else Eye(wrist=ObsGroup((3, 30, 20), "uint8"))
    make(name, eye, pad=19)
    with pytest.raises(ConfigError, match=r"pad must be less than the .* pixels of an image, got 20"):
        make(name, eye, pad=20)


def test_a_window_moves_as_one():
    shift = RandomShift(RandomShiftConfig(), Eye(), RandomStreams(3))
    window = dots(8, torch.Generator().manual_seed(0)).unsqueeze(1).repeat(1, 5, 1, 1, 1)
    obs = {"policy": window, VALID: torch.ones(8, 5, dtype=torch.bool), MEMORY: torch.zeros(8, 2)}
    moved = shift.transform(replace(transitions(8), obs=obs, next_obs=obs)).obs
    assert moved[VALID] is obs[VALID]
    assert torch.equal(moved["policy"], moved["policy"][:, :1].expand_as(window))
    assert not torch.equal(moved["policy"], window)
    assert len({tuple(image.flatten().tolist()) for image in moved["policy"][:, 0] - window[:, 0]}) > 1


@pytest.mark.parametrize("name", AUXILIARY)
def test_the_loss_falls_and_the_encoder_moves_in_its_optimisers_vector(name):
    eye = Eye()
    algorithm = Optimizer(eye.parameters(), 1e-3)
    # squares that have moved far are not to be told from their neighbours by anything
    plugin = make(name, eye, **({"pad": 1} if name == "contrastive" else {}))
    before, encoder = algorithm.flat.clone(), sum(p.numel() for p in eye.encoder.parameters())
    losses = [float(plugin.update(transitions(seed=i % 4))[f"{name}_loss"]) for i in range(140)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    moved = algorithm.flat != before
    assert moved[:encoder].float().mean() > 0.3
    assert not moved[encoder:].any()
    batch = transitions()
    assert plugin.transform(batch) is batch


@pytest.mark.parametrize("name", AUXILIARY)
def test_a_plugin_goes_on_exactly_from_its_state(name):
    eye, again, streams, later = Eye(), Eye(), RandomStreams(0), RandomStreams(9)
    plugin, other = (PLUGINS[name].make(PLUGINS[name].config(), e, s) for e, s in ((eye, streams), (again, later)))
    for i in range(3):
        plugin.update(transitions(seed=i))
    other.load_state_dict(plugin.state_dict())
    again.load_state_dict(eye.state_dict())
    later.load_state_dict(streams.state_dict())
    for i in range(3):
        assert torch.equal(*(p.update(transitions(seed=i))[f"{name}_loss"] for p in (plugin, other)))
    for one, two in zip(eye.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_a_slow_encoder_is():
    eye = Eye()
    plugin = make("contrastive", eye, tau=0.25)
    first = [p.detach().clone() for p in eye.encoder.parameters()]
    plugin.update(transitions())
    slow = plugin.state.objective.slow.parameters()
    for before, now, kept in zip(first, eye.encoder.parameters(), slow, strict=True):
        torch.testing.assert_close(kept, before + 0.25 * (now - before))


@pytest.mark.parametrize("shape", [(20, 20, 3), (3, 17, 30), (64, 64, 9), (9, 11, 1)])
def test_a_decoder_paints_any_image(shape):
    group = ObsGroup(shape, "uint8")
    assert Decoder(group, 7, torch.Generator().manual_seed(0))(torch.zeros(2, 7)).shape == (2, *shape)


def test_what_is_painted_comes_to_look_like_the_picture():
    eye = Eye()
    plugin = make("reconstruction", eye)
    batch = transitions(16)
    for _ in range(150):
        plugin.update(batch)
    with torch.no_grad():
        painted = plugin.state.objective.decoder(plugin.encoder(batch.obs["policy"]))
    white = batch.obs["policy"] > 0
    assert painted[white].mean() > 0.7
    assert painted[~white].mean() < 0.1


def test_the_model_of_what_follows_uses_the_action():
    eye = Eye()
    plugin = make("next_state_prediction", eye)
    for i in range(250):
        plugin.update(transitions(64, seed=i, reach=4))
    batch = transitions(256, seed=1000, reach=4)
    with torch.no_grad():
        features, following = (plugin.encoder(o["policy"]) for o in (batch.obs, batch.next_obs))
        told, wrong = (
            torch.cosine_similarity(plugin.state.objective.predict(features, a), following)
            for a in (batch.action, batch.action.roll(1, 0))
        )
    assert told.mean() > wrong.mean() + 0.02
    # and pictures have not become alike
    assert torch.cosine_similarity(features, features.roll(1, 0)).mean() < 0.95


@pytest.mark.parametrize(
    ("spec", "action", "expected"),
    [
        (BOX, [[0.5, -1.0]], [[0.5, -1.0]]),
        (DiscreteAction(3), [2], [[0, 0, 1]]),
        (MultiDiscreteAction((2, 3)), [[1, 0]], [[0, 1, 1, 0, 0]]),
        (HybridAction(BOX, MultiDiscreteAction((2,))), [[0.5, -1.0, 1.0]], [[0.5, -1.0, 0, 1]]),
    ],
)
def test_actions_of_every_kind_are_vectors(spec, action, expected):
    assert action_vector(spec, torch.tensor(action)).tolist() == expected
    plugin = make("next_state_prediction", Eye(spec))
    batch = transitions(4, action=torch.tensor(action).repeat_interleave(4, 0))
    assert plugin.update(batch)["next_state_prediction_loss"].isfinite()


def rollout(T=6, N=3):  # noqa: N803
    """A rollout of pictures, each of one number."""
    images = torch.arange((T + 1) * N, dtype=torch.uint8).view(T + 1, N, 1, 1, 1)
    valid = torch.ones(T, N, dtype=torch.bool)
    valid[2, 1] = valid[5, 0] = False
    ends = torch.tensor([1, 4, 5]), torch.tensor([0, 2, 2])
    last = torch.tensor([101, 102, 103], dtype=torch.uint8).view(3, 1, 1, 1)
    zeros = torch.zeros(T, N)
    actions = torch.arange(T * N).view(T, N).float().unsqueeze(-1)
    return RolloutBatch(
        {"policy": images}, actions, zeros, zeros, zeros.bool(), zeros.bool(), valid, ends, {"policy": last}
    )


def test_a_rollout_is_passed_over_once_with_true_successors():
    batch = rollout()
    expected = {}
    for t in range(6):
        for n in range(3):
            if batch.valid[t, n]:
                expected[3 * t + n] = 3 * (t + 1) + n
    for t, n, image in zip(*batch.final_index, batch.final_obs["policy"].flatten(), strict=True):
        expected[3 * int(t) + int(n)] = int(image)
    parts = list(rollout_parts(batch, "policy", 4, torch.Generator().manual_seed(0)))
    assert [len(part["image"]) for part in parts] == [4, 4, 4, 4]
    rows = torch.cat([torch.stack([part[k].flatten() for k in ("image", "action", "next_image")], 1) for part in parts])
    assert len(rows) == len(expected) == len(set(rows[:, 0].tolist()))
    for image, action, following in rows.tolist():
        assert image == action
        assert following == expected[int(image)]
    assert rows[:, 0].tolist() != sorted(rows[:, 0].tolist())


def test_a_rollout_smaller_than_a_part_is_one_and_one_of_nothing_is_none():
    g = torch.Generator().manual_seed(0)
    assert [len(part["image"]) for part in rollout_parts(rollout(), "policy", 100, g)] == [16]
    nothing = replace(rollout(), valid=torch.zeros(6, 3, dtype=torch.bool))
    assert list(rollout_parts(nothing, "policy", 4, g)) == []


@pytest.mark.parametrize("name", AUXILIARY)
def test_the_encoder_and_what_learns_beside_it_step_by_the_rate_that_is_set(name):
    eye = Eye()
    plugin = make(name, eye, learning_rate=0.02)
    networks = eye.encoder, plugin.state.objective
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    plugin.update(transitions())
    for network, kept in zip(networks, before, strict=True):
        learnt = [
            (p - k).detach().abs().max() for p, k in zip(network.parameters(), kept, strict=True) if p.requires_grad
        ]
        assert float(torch.stack(learnt).max()) == pytest.approx(0.02, rel=0.01)  # Adam's first step


def test_parts_of_a_rollout_are_as_large_as_is_set():
    plugin = make("reconstruction", Eye(), batch_size=4)
    assert [len(part["image"]) for part in plugin._parts(rollout())] == [4, 4, 4, 4]


def test_of_a_window_the_newest_picture_is_learnt():
    images = torch.randint(256, (8, 5, 20, 20, 3), generator=torch.Generator().manual_seed(0)).byte()
    obs = {"policy": images, VALID: torch.ones(8, 5, dtype=torch.bool)}
    following = {**obs, "policy": images.flip(0)}
    (part,) = make("reconstruction", Eye())._parts(replace(transitions(8), obs=obs, next_obs=following))
    assert torch.equal(part["image"], images[:, -1])
    assert torch.equal(part["next_image"], images.flip(0)[:, -1])


def test_options_of_what_is_learnt_hold():
    assert {8} < {len(p) for p in make("next_state_prediction", Eye(), hidden=8).state.objective.model.parameters()}
    eye, data = Eye(), {"image": transitions().obs["policy"]}
    without, with_it = (make("reconstruction", eye, feature_penalty=w) for w in (0.0, 2.0))
    with torch.no_grad():
        losses = [p.state.objective.loss(p.encoder, data, p.generator) for p in (without, with_it)]
        squares = with_it.encoder(data["image"]).square().sum(-1).mean()
    torch.testing.assert_close(losses[1] - losses[0], squares, rtol=1e-4, atol=1e-5)
