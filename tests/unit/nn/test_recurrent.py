"""GRU and LSTM: PyTorch's own, a sequence is its steps, episodes know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from habilis.core import acceleration
from habilis.core.recording import RECORD_AFTER, Recorded
from habilis.nn.recurrent import Recurrent

KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])
T, B, IN, OUT = 7, 4, 3, 5


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def sample(kind, generator):
    net = Recurrent(kind, IN, OUT, generator)
    x = torch.randn(T, B, IN, generator=generator)
    memory = torch.randn(B, net.memory_dim, generator=generator)
    start = torch.rand(T, B, generator=generator) < 0.3
    start[0] = torch.tensor([True, False, True, False])
    return net, x, memory, start


@KINDS
def test_network_is_pytorchs(generator, kind):
    net, x, memory, _ = sample(kind, generator)
    twin = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](IN, OUT)
    with torch.no_grad():
        for theirs, ours in zip(twin.parameters(), ("of_input", "of_memory"), strict=False):
            theirs.copy_(getattr(net, ours).weight)
        twin.bias_ih_l0.copy_(net.of_input.bias)
        twin.bias_hh_l0.copy_(net.of_memory.bias)
    state = memory.unsqueeze(0) if kind == "gru" else tuple(part.contiguous()[None] for part in memory.chunk(2, -1))
    expected, last = twin(x, state)
    features, memories = net.sequence(x, memory, torch.zeros(T, B, dtype=torch.bool))
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(memories[-1], last[0] if kind == "gru" else torch.cat(last, -1)[0])


@KINDS
def test_sequence_is_its_steps_with_memory_zeroed_where_episodes_start(generator, kind):
    net, x, memory, start = sample(kind, generator)
    features, memories = net.sequence(x, memory, start)
    assert features.shape == (T, B, OUT)
    assert memories.shape == (T, B, net.memory_dim)
    for t in range(T):
        memory = torch.where(start[t].unsqueeze(-1), torch.zeros_like(memory), memory)
        of_step, memory = net.step(x[t], memory)
        torch.testing.assert_close(of_step, features[t])
        torch.testing.assert_close(memory, memories[t])


@KINDS
def test_gradients_do_not_cross_the_start_of_an_episode(generator, kind):
    net, x, memory, start = sample(kind, generator)
    start[:] = False
    start[4, 1] = True
    x, memory = x.requires_grad_(), memory.requires_grad_()
    of_x, of_memory = torch.autograd.grad(net.sequence(x, memory, start)[0][6].sum(), (x, memory))
    reached = of_x.abs().sum(-1) > 0
    assert reached[:, 0].all()
    assert reached[:, 1].tolist() == [False] * 4 + [True] * 3
    assert bool((of_memory[0] != 0).any())
    assert not of_memory[1].any()


@KINDS
def test_recording_gives_the_same_bits(generator, kind):
    net = Recurrent(kind, IN, OUT, generator)
    parameters = list(net.parameters())

    def gradient(data):
        loss = net.sequence(data["x"], data["memory"], data["start"])[0].square().mean()
        return {"gradient": torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])}

    recorded = Recorded(gradient)
    for _ in range(RECORD_AFTER + 2):
        data = {
            "x": torch.randn(3, B, IN, generator=generator),
            "memory": torch.randn(B, net.memory_dim, generator=generator),
            "start": torch.rand(3, B, generator=generator) < 0.3,
        }
        assert torch.equal(recorded(data)["gradient"], gradient(data)["gradient"])


@KINDS
def test_memory_stays_in_float32_where_products_are_in_bfloat16(generator, kind, monkeypatch):
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    net, x, memory, start = sample(kind, generator)
    full, _ = net.sequence(x, memory, start)
    with acceleration.hidden_precision("bfloat16"):
        features, memories = net.sequence(x, memory, start)
        of_step, after = net.step(x[0], memory)
    assert {y.dtype for y in (features, memories, of_step, after)} == {torch.float32}
    assert not torch.equal(features, full)
    torch.testing.assert_close(features, full, atol=0.03, rtol=0.03)


@KINDS
def test_weights_come_from_the_given_generator(kind):
    before = torch.get_rng_state()
    nets = [Recurrent(kind, IN, OUT, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)
