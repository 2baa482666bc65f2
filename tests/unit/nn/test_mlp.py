"""Perceptrons with dropout and layer normalisation: slow twins, the ensemble is its copies, noise is what it says."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from habilis.core import acceleration
from habilis.core.recording import RECORD_AFTER, Recorded
from habilis.nn import norms
from habilis.nn.critics import choose_copies
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


def test_batch_renorm_stands_before_every_layer(generator):
    net = scatter(MLP(3, (6, 4), 2, "relu", generator, batch_renorm=True, renorm_warmup=1), generator)
    x, norms = torch.randn(16, 3, generator=generator), net.hidden.renorms
    for _ in range(3):  # past the warm-up, so that the correction is seen too
        _, statistics = net.learn(x)
        net.after_step(statistics)
    assert [int(n.updates) for n in norms] == [3, 3, 3]
    first, second, out = (layer for layer in net.modules() if isinstance(layer, torch.nn.Linear))
    for normalize, result in ((lambda n, x: n(x), net(x)), (lambda n, x: n.learn(x)[0], net.learn(x)[0])):
        expected = normalize(norms[0], x)
        expected = normalize(norms[1], first(expected).relu())
        expected = normalize(norms[2], second(expected).relu())
        torch.testing.assert_close(result, out(expected))
    # each norm gets its own part
    _, statistics = net.learn(x)
    assert statistics.shape == (2 * (3 + 6 + 4),)
    torch.testing.assert_close(statistics[:3], x.mean(0))
    torch.testing.assert_close(statistics[3:6], x.var(0, correction=0))
    before = norms[0].running.clone()
    net.after_step(statistics)
    torch.testing.assert_close(norms[0].running, before.lerp(statistics[:6], 0.01))


def test_renormalised_ensemble_is_its_copies(generator):
    options = {"batch_renorm": True, "renorm_warmup": 2}
    ensemble = scatter(EnsembleMLP(3, 5, (8, 6), 2, "relu", generator, **options), generator)
    copies = [alone(ensemble, k, MLP(5, (8, 6), 2, "relu", generator, **options)) for k in range(3)]
    for _ in range(4):
        x = torch.randn(7, 5, generator=generator)
        together, statistics = ensemble.learn(x)
        for k, one in enumerate(copies):
            result, of_one = one.learn(x)
            torch.testing.assert_close(together[k], result)
            one.after_step(of_one)
        ensemble.after_step(statistics)
    for k, one in enumerate(copies):
        torch.testing.assert_close(ensemble(x)[k], one(x))


def test_learning_without_batch_renorm_is_the_same_as_acting(generator):
    net, x = EnsembleMLP(2, 3, (4,), 1, "relu", generator, dropout=0.5), torch.randn(5, 3, generator=generator)
    noise = net.noise(5, generator)
    result, statistics = net.learn(x, noise)
    assert torch.equal(result, net(x, noise))
    assert statistics.shape == (0,)
    before = copy.deepcopy(net.state_dict())
    net.after_step(statistics)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_recording_reads_the_running_statistics_where_they_are(generator):
    """The warm-up ends, and the statistics move, between calls of one recording."""
    net = scatter(EnsembleMLP(2, 3, (8,), 1, "relu", generator, batch_renorm=True, renorm_warmup=40), generator)
    parameters = list(net.parameters())

    def gradient(data):
        q, statistics = net.learn(data["x"])
        gradient = torch.autograd.grad(q.square().mean(), parameters)
        return {"gradient": torch.cat([g.flatten() for g in gradient]), "statistics": statistics}

    recorded = Recorded(gradient)
    for _ in range(RECORD_AFTER + 20):
        data = {"x": torch.randn(8, 3, generator=generator) + 0.5}
        ours, twin = recorded(data), gradient(data)
        assert torch.equal(ours["gradient"], twin["gradient"])
        assert torch.equal(ours["statistics"], twin["statistics"])
        net.after_step(ours["statistics"])


@pytest.mark.parametrize("options", [{"layer_norm": True, "dropout": 0.1}, {"batch_renorm": True}])
def test_normalisation_stays_in_float32_where_products_are_in_bfloat16(generator, options, monkeypatch):
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    net = scatter(EnsembleMLP(2, 5, (64, 64), 1, "relu", generator, **options), generator)
    x, noise, parameters = torch.randn(32, 5, generator=generator), net.noise(32, generator), list(net.parameters())

    def both():
        result, statistics = net.learn(x, noise)
        return result, statistics, torch.autograd.grad(result.square().mean(), parameters)

    seen = []
    kinds = (norms.LayerNorm, norms.BatchRenorm)
    for layer in net.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    with acceleration.hidden_precision("bfloat16"):
        reduced, reduced_statistics, reduced_gradient = both()
        net(x)
    full, statistics, gradient = both()
    assert set(seen) == {torch.float32}
    assert reduced.dtype == reduced_statistics.dtype == torch.float32
    assert not torch.equal(reduced, full)
    torch.testing.assert_close(reduced, full, atol=0.1, rtol=0.03)
    torch.testing.assert_close(reduced_statistics, statistics, atol=0.02, rtol=0.02)
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in (reduced_gradient, gradient)]
    assert float(torch.cosine_similarity(*flat, 0)) > 0.999


def test_some_copies_can_be_asked_alone(generator):
    ensemble = scatter(EnsembleMLP(4, 3, (6,), 2, "relu", generator, batch_renorm=True), generator)
    x, which = torch.randn(7, 3, generator=generator), torch.tensor([3, 1])
    chosen = choose_copies(ensemble, which)(x)
    torch.testing.assert_close(chosen, ensemble(x)[which])
    (gradient,) = torch.autograd.grad(chosen.sum(), ensemble.out.weight)
    assert [bool(part.any()) for part in gradient] == [False, True, False, True]


def test_some_copies_are_asked_while_another_thread_asks_all(generator):
    ensemble = EnsembleMLP(4, 3, (6,), 2, "relu", generator)
    x, which = torch.randn(7, 3, generator=generator), torch.tensor([3, 1])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            some = pool.submit(lambda: [choose_copies(ensemble, which)(x).shape for _ in range(300)])
            every = [ensemble(x).shape for _ in range(300)]
    finally:
        sys.setswitchinterval(interval)
    assert set(some.result()) == {(2, 7, 2)}
    assert set(every) == {(4, 7, 2)}
