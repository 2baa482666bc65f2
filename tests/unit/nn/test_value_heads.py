"""Value heads and noisy layers: what they compute, layer by layer, and what their randomness does."""

from __future__ import annotations

import math

import pytest
import torch

from habilis.algorithms.dqn import DQNConfig
from habilis.nn.noisy import NoisyLinear
from habilis.nn.value_heads import (
    COSINES,
    AtomsHead,
    ImplicitQuantileHead,
    MeanHead,
    QuantileHead,
    Streams,
    make_value_head,
    of_action,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_streams(outputs=1, *, dueling=False, noisy=False, hidden=8, actions=3, in_dim=5):
    return Streams(
        in_dim,
        hidden,
        actions,
        outputs,
        dueling=dueling,
        activation="relu",
        noisy=noisy,
        generator=generator(),
    )


def features(rows=4, in_dim=5):
    return torch.randn(rows, in_dim, generator=generator(1))


def squashed(x):
    return math.copysign(math.sqrt(abs(x)), x)


def test_noisy_weights_one_by_one():
    layer = NoisyLinear(3, 2, generator())
    with torch.no_grad():
        layer.weight_sigma.uniform_(0.1, 1, generator=generator(5))
        layer.bias_sigma.uniform_(0.1, 1, generator=generator(6))
    x, noise = torch.randn(4, 3, generator=generator(1)), torch.randn(5, generator=generator(2))
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for o in range(2):
        of_output = squashed(float(noise[3 + o]))
        for i in range(3):
            weight[o, i] += layer.weight_sigma[o, i].detach() * of_output * squashed(float(noise[i]))
        bias[o] += layer.bias_sigma[o].detach() * of_output
    torch.testing.assert_close(layer(x, noise), x @ weight.T + bias)
    torch.testing.assert_close(layer(x, None), x @ layer.weight.T + layer.bias)


def test_noise_of_each_row():
    layer = NoisyLinear(3, 2, generator())
    x, noise = torch.randn(4, 3, generator=generator(1)), torch.randn(4, 5, generator=generator(2))
    rows = torch.stack([layer(x[k : k + 1], noise[k])[0] for k in range(4)])
    torch.testing.assert_close(layer(x, noise), rows)
    assert bool((layer(x, noise[0]) != layer(x, noise[1])).all())


def test_first_deviation_is_that_of_the_paper():
    layer = NoisyLinear(16, 2, generator())
    assert set(layer.weight_sigma.flatten().tolist() + layer.bias_sigma.tolist()) == {0.5 / 4}
    assert float(layer.weight.detach().abs().max()) <= 1 / 4


def test_plain_streams_layer_by_layer():
    streams = make_streams(2)
    first, last = streams.advantage.layers
    x = features()
    expected = torch.relu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(streams(x, None), expected.view(4, 3, 2))


def test_streams_without_a_hidden_layer_are_linear():
    (layer,) = make_streams(hidden=None).advantage.layers
    assert layer.weight.shape == (3, 5)


@pytest.mark.parametrize("outputs", [1, 4])
def test_dueling_streams_by_hand(outputs):
    streams = make_streams(outputs, dueling=True)
    x = features()
    value, advantage = streams.value(x, None).detach(), streams.advantage(x, None).detach().view(4, 3, outputs)
    got = streams(x, None).detach()
    for b in range(4):
        for a in range(3):
            for k in range(outputs):
                mean = sum(float(advantage[b, other, k]) for other in range(3)) / 3
                expected = float(value[b, k]) + float(advantage[b, a, k]) - mean
                assert float(got[b, a, k]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(got.mean(1), value)


@pytest.mark.parametrize("dueling", [False, True])
def test_every_noisy_weight_has_noise_of_its_own(dueling):
    streams = make_streams(2, dueling=dueling, noisy=True)
    assert streams.noise_size == (5 + 8) + (8 + 6) + dueling * ((5 + 8) + (8 + 2))
    assert make_streams().noise_size == 0
    noise = torch.randn(streams.noise_size, generator=generator(3))
    before = streams(features(), noise)
    # the last numbers are those of the outputs' biases; a hidden unit may be asleep for every row
    for k in range(streams.noise_size - 2, streams.noise_size):
        changed = noise.clone()
        changed[k] += 3.0
        assert not torch.equal(streams(features(), changed), before)
    assert not torch.equal(streams(features(), torch.zeros_like(noise)), before)
    torch.testing.assert_close(streams(features(), torch.zeros_like(noise)), streams(features(), None))


def test_scores_are_means():
    x = features()
    mean = MeanHead(make_streams(), 1.0)
    torch.testing.assert_close(mean.scores(mean(x)), make_streams()(x, None)[..., 0])
    categorical = AtomsHead(make_streams(11), -2.0, 3.0, 1.0)
    logits = categorical(x)
    expected = (logits.softmax(-1) * torch.linspace(-2, 3, 11)).sum(-1)
    torch.testing.assert_close(categorical.scores(logits), expected)
    quantile = QuantileHead(make_streams(7), 1.0, 1.0)
    torch.testing.assert_close(quantile.scores(quantile(x)), quantile(x).mean(-1))


def test_risk_levels_choose_the_safe_action():
    """Action 0 returns 0 for sure, action 1 returns 10 or -5 with equal chance."""
    logits = torch.full((1, 2, 16), -1e9)
    logits[0, 0, 5], logits[0, 1, 0], logits[0, 1, 15] = 0.0, 0.0, 0.0
    for level, best in ((1.0, 1), (0.9, 1), (0.5, 0), (0.2, 0)):
        head = AtomsHead(make_streams(16, actions=2), -5.0, 10.0, level)
        assert int(head.scores(logits).argmax()) == best
        quantiles = torch.tensor([[[0.0] * 4, [10.0, -5.0, 10.0, -5.0]]])
        assert int(QuantileHead(make_streams(4, actions=2), 1.0, level).scores(quantiles).argmax()) == best


def implicit(risk_level=1.0, acting=4, **kwargs):
    return ImplicitQuantileHead(make_streams(**kwargs), 1.0, risk_level, 3, acting, generator(4))


def test_implicit_quantiles_one_by_one():
    head = implicit()
    x, fractions = features(), torch.rand(4, 3, generator=generator(7))
    got = head(x, None, fractions)
    assert got.shape == (4, 3, 3)
    for b in range(4):
        for k in range(3):
            cosines = torch.tensor([math.cos(math.pi * i * float(fractions[b, k])) for i in range(COSINES)])
            embedded = torch.relu(cosines @ head.embedding.weight.T + head.embedding.bias)
            expected = head.streams((x[b] * embedded).unsqueeze(0), None)[0, :, 0]
            torch.testing.assert_close(got[b, :, k], expected, atol=1e-4, rtol=1e-4)


def test_implicit_quantiles_act_by_the_middles_of_the_worst_part():
    head = implicit(risk_level=0.5, acting=4)
    torch.testing.assert_close(head.fractions, torch.tensor([0.125, 0.375, 0.625, 0.875]) / 2)
    x = features()
    torch.testing.assert_close(head(x), head(x, None, head.fractions.expand(4, 4)))
    torch.testing.assert_close(head.scores(head(x)), head(x).mean(-1))


def test_implicit_quantiles_of_a_row_share_its_noise():
    head = implicit(noisy=True)
    x, fractions = features(), torch.rand(4, 3, generator=generator(7))
    noise = torch.randn(4, head.streams.noise_size, generator=generator(8))
    rows = torch.cat([head(x[b : b + 1], noise[b : b + 1], fractions[b : b + 1]) for b in range(4)])
    torch.testing.assert_close(head(x, noise, fractions), rows)
    torch.testing.assert_close(head(x, noise[:1], fractions)[0], rows[0])


def test_errors_by_which_transitions_are_prioritised():
    values, following = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [0.0]])
    _, error = MeanHead(make_streams(), 1.0).loss(values, following, lambda x: x * 0.5)
    assert error.tolist() == [1.0, 2.0]
    values, following = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    _, error = QuantileHead(make_streams(2), 1.0, 1.0).loss(values, following, lambda x: x + 5)
    assert error.tolist() == [3.0]
    head = AtomsHead(make_streams(3), 0.0, 2.0, 1.0)
    loss, error = head.loss(torch.zeros(1, 3), torch.zeros(1, 3), lambda atoms: atoms.expand(1, 3))
    assert error.tolist() == pytest.approx([0.0], abs=1e-6)  # it is what it should be: the loss is the entropy
    assert loss.tolist() == pytest.approx([math.log(3)])


@pytest.mark.parametrize("head", ["quantile", "implicit_quantile"])
def test_the_threshold_that_is_asked_for_reaches_the_loss_of_quantiles(head):
    for asked, given in ((None, 1.0), (0.0, 0.0), (0.5, 0.5)):
        config = DQNConfig(head=head, huber_threshold=asked)
        assert make_value_head(5, 3, config, generator()).threshold == given


def test_values_of_an_action():
    values = torch.arange(24.0).view(2, 3, 4)
    assert of_action(values, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
