"""Memory: a sequence and a window are their steps, one after the other, and nothing crosses the start of an episode."""

from __future__ import annotations

import pytest
import torch

from habilis.core.batches import MEMORY, VALID
from habilis.core.errors import ConfigError
from habilis.core.recording import RECORD_AFTER, Recorded
from habilis.core.specs import ObsGroup
from habilis.nn.encoder import ObsEncoder
from habilis.nn.memory import MemoryConfig, MemoryEncoder, make_encoder

GROUPS = {"policy": ObsGroup((3,)), "critic": ObsGroup((2,))}
KINDS = ("gru", "lstm", "transformer")
W, T, B = 4, 9, 5


def build(kind, generator, **kwargs):
    config = MemoryConfig(kind=kind, size=8, window=W, heads=2, layers=2 if kind == "transformer" else 1, **kwargs)
    encoder = make_encoder(GROUPS, ("policy", "critic"), True, config, generator, stored=True)
    with torch.no_grad():  # away from where a transformer's layers add next to nothing
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    encoder.update_normalizers({name: 2 + torch.randn(50, *g.shape, generator=generator) for name, g in GROUPS.items()})
    return encoder


def sample(generator, *shape):
    return {name: 2 + torch.randn(*shape, *group.shape, generator=generator) for name, group in GROUPS.items()}


def at(obs, *index):
    return {name: x[index] for name, x in obs.items()}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def remembered(encoder, generator):
    """Return what some steps leave in memory, in some rows fresh."""
    memory = encoder.fresh(B)
    for _ in range(3):
        memory = encoder.step(sample(generator, B), memory)[1]
    return torch.where(torch.arange(B).unsqueeze(1) < 3, memory, 0.0)


def test_a_sequence_is_its_steps_with_memory_zeroed_where_episodes_start(kind, generator):
    encoder = build(kind, generator)
    obs, memory = sample(generator, T, B), remembered(encoder, generator)
    start = torch.rand(T, B, generator=generator) < 0.3
    start[0] = torch.tensor([True, False, True, False, False])
    features, memories = encoder.sequence(encoder.normalize(obs), memory, start)
    assert features.shape == (T, B, encoder.out_dim)
    assert memories.shape == (T, B, encoder.memory_dim)
    for t in range(T):
        memory = torch.where(start[t].unsqueeze(-1), 0.0, memory)
        of_step, memory = encoder.step(at(obs, t), memory)
        torch.testing.assert_close(of_step, features[t])
        torch.testing.assert_close(memory, memories[t])


def test_a_window_is_the_steps_of_its_newest_ones_episode(kind, generator):
    encoder = build(kind, generator)
    before, obs = remembered(encoder, generator), sample(generator, B, W)
    lengths = torch.tensor([W, W - 1, 2, W, 1])
    valid = torch.arange(W) >= W - lengths.unsqueeze(1)
    if kind == "transformer":  # it sees the window and no more
        before.zero_()
    features = encoder({**obs, VALID: valid, MEMORY: before})
    for b, length in enumerate(lengths.tolist()):
        memory = before[b : b + 1] if length == W else encoder.fresh(1)
        for w in range(W - length, W):
            of_step, memory = encoder.step(at(obs, slice(b, b + 1), w), memory)
        torch.testing.assert_close(of_step[0], features[b])


def test_what_is_not_valid_has_no_influence(kind, generator):
    encoder = build(kind, generator)
    obs, valid = sample(generator, B, W), torch.arange(W).expand(B, W) >= 2
    features = encoder({**obs, VALID: valid, MEMORY: torch.ones(B, encoder.memory_dim)})
    for x in obs.values():
        x[:, :2] = torch.inf
    assert torch.equal(features, encoder({**obs, VALID: valid, MEMORY: -torch.ones(B, encoder.memory_dim)}))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_burning_in_changes_gradients_alone(kind, generator):
    encoder = build(kind, generator)
    obs, memory = sample(generator, B, W), remembered(encoder, generator).requires_grad_()
    obs["policy"].requires_grad_()
    batch = {**obs, VALID: torch.ones(B, W, dtype=torch.bool), MEMORY: memory}
    whole = encoder(batch)
    encoder.burn_in = 2
    burnt = encoder(batch)
    assert torch.equal(burnt, whole)
    of_obs, of_memory = torch.autograd.grad(burnt.sum(), (obs["policy"], memory), allow_unused=True)
    assert of_memory is None
    assert (of_obs != 0).any(-1).any(0).tolist() == [False, False, True, True]
    assert torch.autograd.grad(whole.sum(), memory)[0].any()


def test_an_encoder_that_stores_nothing_begins_afresh(kind, generator):
    encoder = build(kind, generator)
    batch = {**sample(generator, B, W), VALID: torch.ones(B, W, dtype=torch.bool)}
    expected = encoder({**batch, MEMORY: encoder.fresh(B)})
    encoder.stored = False
    assert torch.equal(encoder({**batch, MEMORY: torch.ones(B, encoder.memory_dim)}), expected)


def test_gradients_do_not_cross_the_start_of_an_episode(kind, generator):
    encoder = build(kind, generator)
    obs, memory = sample(generator, T, B), remembered(encoder, generator).requires_grad_()
    start = torch.zeros(T, B, dtype=torch.bool)
    start[2, 1] = True
    normalized = {name: x.requires_grad_() for name, x in encoder.normalize(obs).items()}
    features, _ = encoder.sequence(normalized, memory, start)
    of_x, of_memory = torch.autograd.grad(features[3, :3].square().sum(), (normalized["policy"], memory))
    reached = of_x.abs().sum(-1) > 0
    assert reached[:4, 0].all()
    assert reached[:4, 1].tolist() == [False, False, True, True]
    assert not reached[4:].any()
    assert bool(of_memory[2].any()) == (kind != "transformer")  # which has forgotten it after three more steps
    assert not of_memory[1].any()


@pytest.mark.parametrize("call", ["sequence", "window"])
def test_recording_gives_the_same_bits(kind, call, generator):
    encoder = build(kind, generator, burn_in=0 if kind == "transformer" else 2)
    parameters = list(encoder.parameters())

    def gradient(data):
        if call == "window":
            features = encoder(data)
        else:
            turned = {name: data[name].transpose(0, 1) for name in GROUPS}
            features, _ = encoder.sequence(encoder.normalize(turned), data[MEMORY], ~data[VALID].T)
        gradients = torch.autograd.grad(features.square().sum(-1).sigmoid().mean(), parameters)
        return {"gradient": torch.cat([g.flatten() for g in gradients])}

    recorded = Recorded(gradient)
    for _ in range(RECORD_AFTER + 2):
        valid = torch.arange(W) >= torch.randint(0, W, (B, 1), generator=generator)
        data = {**sample(generator, B, W), VALID: valid, MEMORY: encoder.fresh(B)}
        assert torch.equal(recorded(data)["gradient"], gradient(data)["gradient"])


def test_without_memory_there_is_an_encoder_as_ever(generator):
    plain = make_encoder(GROUPS, ("policy",), True, MemoryConfig(), generator)
    assert type(plain) is ObsEncoder
    assert isinstance(build("gru", generator), MemoryEncoder)
    assert not MemoryConfig().used
    assert MemoryConfig(kind="gru").used


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "rnn"}, "'kind' must be one of 'none', 'gru', 'lstm', 'transformer', got 'rnn'"),
        ({"size": 0}, "memory.size must be positive"),
        ({"window": 1}, "memory.window must be at least 2"),
        ({"window": 4, "burn_in": 4}, "memory.burn_in must be in"),
        ({"kind": "transformer", "burn_in": 1}, "no meaning for a transformer"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MemoryConfig(**changes)
