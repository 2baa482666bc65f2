"""The transformer: a slow twin, no influence of the future nor of what does not belong to the episode."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from habilis.core import acceleration
from habilis.core.errors import ConfigError
from habilis.core.recording import RECORD_AFTER, Recorded
from habilis.nn.transformer import TransformerEncoder

B, T, IN, WIDTH, HEADS = 4, 5, 3, 8, 2


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def net(generator):
    net = TransformerEncoder(IN, T, WIDTH, 2, HEADS, generator)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.fixture
def windows(generator):
    """Steps, and which of them are valid: all, the last three, only the last, and a hole."""
    valid = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 0, 1, 0, 1]], dtype=torch.bool)
    return torch.randn(B, T, IN, generator=generator), valid


def twin(net, steps):
    """Encode one window of valid steps only, `(position, values)`, one query and one head at a time."""

    def norm(layer, x):
        return F.layer_norm(x, (WIDTH,), layer.weight, layer.bias)

    xs = [net.embedding(x) + net.positions[t] for t, x in steps]
    for layer in net.layers:
        normed = [norm(layer.before_attention, x) for x in xs]
        added = []
        for i in range(len(xs)):
            query = layer.query(normed[i])
            keys, values = zip(*(layer.key_value(normed[j]).chunk(2) for j in range(i + 1)), strict=True)
            heads = []
            for h in range(HEADS):
                part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
                scores = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(WIDTH / HEADS)
                heads.append(sum(w * v[part] for w, v in zip(scores.softmax(0), values, strict=True)))
            added.append(layer.attended(torch.cat(heads)))
        xs = [x + y for x, y in zip(xs, added, strict=True)]
        xs = [x + layer.contract(F.gelu(layer.expand(norm(layer.before_hidden, x)))) for x in xs]
    return [norm(net.norm, x) for x in xs]


def test_every_step_is_what_the_valid_steps_up_to_it_give(net, windows):
    x, valid = windows
    every = net.sequence(x, valid)
    assert every.shape == (B, T, WIDTH)
    for b in range(B):
        positions = valid[b].nonzero().flatten().tolist()
        expected = twin(net, [(t, x[b, t]) for t in positions])
        torch.testing.assert_close(every[b, positions], torch.stack(expected))
    assert not every[~valid].any()


def test_called_it_gives_the_last_step(net, windows):
    x, valid = windows
    assert net.out_dim == WIDTH
    torch.testing.assert_close(net(x, valid), net.sequence(x, valid)[:, -1])


@pytest.mark.parametrize("other", [0.0, 1e6, math.nan, math.inf])
def test_what_is_not_valid_has_no_influence(net, windows, other):
    x, valid = windows
    changed = torch.where(valid.unsqueeze(-1), x, torch.tensor(other))
    assert torch.equal(net(changed, valid), net(x, valid))
    assert torch.equal(net.sequence(changed, valid), net.sequence(x, valid))
    x = changed.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, valid).sum() + net.sequence(x, valid).square().sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[~valid].any()
    assert gradient[valid].all()


def test_a_sequence_does_not_see_the_future(net, windows):
    x, valid = windows[0], torch.ones(B, T, dtype=torch.bool)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = net.sequence(x, valid), net.sequence(changed, valid)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(-1).any()


def test_the_order_of_steps_matters(net, windows):
    x, valid = windows[0], torch.ones(B, T, dtype=torch.bool)
    assert not torch.allclose(net(x, valid), net(x[:, [1, 0, 2, 3, 4]], valid), atol=1e-3)


def test_recording_gives_the_same_bits(net, windows, generator):
    parameters = list(net.parameters())

    def gradient(data):
        loss = net(data["x"], data["valid"]).square().sum(-1).sigmoid().mean()
        return {"gradient": torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])}

    recorded = Recorded(gradient)
    for _ in range(RECORD_AFTER + 2):
        data = {"x": torch.randn(B, T, IN, generator=generator), "valid": windows[1]}
        assert torch.equal(recorded(data)["gradient"], gradient(data)["gradient"])


def test_features_are_float32_where_products_are_in_bfloat16(net, windows, monkeypatch):
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    full = net(*windows)
    with acceleration.hidden_precision("bfloat16"):
        reduced = net(*windows)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, full)
    torch.testing.assert_close(reduced, full, atol=0.1, rtol=0.05)


def test_state_and_beginning(generator):
    before = torch.get_rng_state()
    nets = [TransformerEncoder(IN, T, WIDTH, 1, HEADS, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    x, valid = torch.randn(2, T, IN, generator=generator), torch.ones(2, T, dtype=torch.bool)
    assert torch.equal(nets[0](x, valid), nets[1](x, valid))
    assert not torch.equal(nets[0](x, valid), nets[2](x, valid))
    nets[2].load_state_dict(nets[0].state_dict())
    assert torch.equal(nets[0](x, valid), nets[2](x, valid))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_fit_is_refused(generator):
    with pytest.raises(ConfigError, match="multiple of its heads, got 8 and 3"):
        TransformerEncoder(IN, T, 8, 1, 3, generator)
    with pytest.raises(ConfigError, match="at least one layer"):
        TransformerEncoder(IN, T, 8, 0, 2, generator)
