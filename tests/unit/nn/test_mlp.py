"""Perceptrons with dropout and layer normalisation: slow twins, the ensemble is its copies, noise is what it says."""

from __future__ import annotations

import copy

import pytest
import torch

from habilis.core.recording import RECORD_AFTER, Recorded
from habilis.nn.mlp import MLP, EnsembleMLP, dropout_factors


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def scatter(module, generator):
    """Give every parameter a value of its own, so that gains of 1 and biases of 0 hide nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def norm(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def alone(ensemble, k, net):
    """Give `net` the parameters of copy k of an ensemble and return it."""
    with torch.no_grad():
        for one, many in zip(net.parameters(), ensemble.parameters(), strict=True):
            one.copy_(many[k].T if one.ndim == 2 else many[k].squeeze(0))
    return net


def test_one_network_is_linear_dropout_norm_activation(generator):
    net = scatter(MLP(3, (6, 4), 2, "relu", generator, layer_norm=True, dropout=0.3), generator)
    x, noise = torch.randn(5, 3, generator=generator), net.noise(5, generator)
    assert noise.shape == (5, 10)
    weights = list(net.parameters())
    expected = x
    for layer, part in enumerate(noise.split([6, 4], -1)):
        weight, bias, gain, shift = weights[4 * layer : 4 * layer + 4]
        expected = norm((expected @ weight.T + bias) * part, gain, shift).relu()
    expected = expected @ weights[8].T + weights[9]
    torch.testing.assert_close(net(x, noise), expected)
    # without noise nothing is dropped: the same as with factors of 1
    torch.testing.assert_close(net(x), net(x, torch.ones(5, 10)))
    assert not torch.allclose(net(x), expected)


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"dropout": 0.3}, {"layer_norm": True, "dropout": 0.3}])
def test_ensemble_is_its_copies(generator, options):
    ensemble = scatter(EnsembleMLP(3, 5, (8, 6), 2, "relu", generator, **options), generator)
    x, noise = torch.randn(7, 5, generator=generator), ensemble.noise(7, generator)
    assert noise.shape == (3, 7, 14 if "dropout" in options else 0)
    for given in (noise, None):
        together = ensemble(x, given)
        for k in range(3):
            one = alone(ensemble, k, MLP(5, (8, 6), 2, "relu", generator, **options))
            torch.testing.assert_close(together[k], one(x, None if given is None else given[k]))


def test_without_dropout_noise_is_empty_and_draws_nothing(generator):
    net, x = EnsembleMLP(2, 3, (4,), 1, "relu", generator), torch.randn(5, 3, generator=generator)
    before = generator.get_state()
    noise = net.noise(5, generator)
    assert noise.shape == (2, 5, 0)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(net(x, noise), net(x))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_dropout_leaves_out_each_value_with_its_probability(generator, rate):
    factors = dropout_factors((500, 400), rate, generator)
    zero = factors == 0
    torch.testing.assert_close(factors[~zero], torch.full_like(factors[~zero], 1 / (1 - rate)))
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(float(zero.float().mean()) - rate) < 4 * deviation / 200_000**0.5
    # no place is special, the first and the last least of all
    many = torch.stack([dropout_factors((7,), rate, generator) == 0 for _ in range(4000)]).float()
    assert bool(((many.mean(0) - rate).abs() < 4.5 * deviation / 4000**0.5).all())
    # and places are independent: neighbours are both left out with the square of the probability
    both = float((zero[:, 1:] & zero[:, :-1]).float().mean())
    assert abs(both - rate**2) < 5 * rate / 200_000**0.5


def test_recording_takes_noise_as_an_argument(generator):
    net = scatter(EnsembleMLP(2, 3, (16, 16), 1, "relu", generator, layer_norm=True, dropout=0.2), generator)
    parameters = list(net.parameters())

    def gradient(data):
        loss = net(data["x"], data["noise"]).square().mean()
        return {"gradient": torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])}

    recorded = Recorded(gradient)
    for _ in range(RECORD_AFTER + 3):
        data = {"x": torch.randn(8, 3, generator=generator), "noise": net.noise(8, generator)}
        assert torch.equal(recorded(data)["gradient"], gradient(data)["gradient"])


def test_state_is_exact(generator):
    net = scatter(EnsembleMLP(2, 3, (8,), 1, "relu", generator, layer_norm=True, dropout=0.2), generator)
    other = EnsembleMLP(2, 3, (8,), 1, "relu", generator, layer_norm=True, dropout=0.2)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    x = torch.randn(4, 3, generator=generator)
    assert torch.equal(net(x), other(x))
