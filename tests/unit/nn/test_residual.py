"""SimBa and SimBaV2: slow twins, what they promise of lengths, the ensemble is its copies."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from habilis.core import acceleration
from habilis.core.recording import RECORD_AFTER, Recorded
from habilis.nn import residual
from habilis.nn.critics import choose_copies
from habilis.nn.optimizer import Optimizer
from habilis.nn.residual import ResidualNetwork, SphericalLinear, unit


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def make(kind, copies, out_dim, generator, width=8, blocks=2, **parts):
    """Return a network of inputs of 3 whose parameters all have values of their own."""
    net = ResidualNetwork(kind, copies, 3, (width,) * blocks, out_dim, "relu", generator, **parts)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    for layer in net.on_spheres:
        layer.project()
    return net


def simba_twin(net, x, factors=None):
    embedding, *blocks, last = net.hidden
    factors = iter([1, 1] if factors is None else factors.chunk(2, -1))

    def norm(layer, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    x = x @ embedding.weight.T + embedding.bias
    for block in blocks:
        inner = ((norm(block.norm, x) @ block.expand.weight.T + block.expand.bias) * next(factors)).relu()
        x = x + inner @ block.contract.weight.T + block.contract.bias
    return norm(last, x) @ net.out.weight.T + net.out.bias


def simba_v2_twin(net, x, factors=None):
    embedding, *blocks, _ = net.hidden
    factors = iter([1, 1] if factors is None else factors.chunk(2, -1))
    width = net.hidden[0].scaler.weight.numel()

    def length_one(x):
        return x / x.norm(dim=-1, keepdim=True)

    x = length_one(torch.cat([x, torch.full((len(x), 1), 3.0)], -1))
    x = length_one((x @ embedding.linear.weight) * embedding.scaler.weight)
    for block in blocks:
        inner = ((x @ block.expand.weight) * block.scaler.weight * next(factors)).relu()
        towards = length_one(inner @ block.contract.weight)
        # what is learnt begins at 1 / sqrt(width) and stands for 1 / (blocks + 1) there
        step = block.step.weight * math.sqrt(width) / (len(blocks) + 1)
        x = length_one((1 - step) * x + step * towards)
    return x * math.sqrt(width) @ net.out.weight.T + net.out.bias


@pytest.mark.parametrize(("kind", "twin"), [("simba", simba_twin), ("simba_v2", simba_v2_twin)])
def test_network_is_that_of_the_paper(generator, kind, twin):
    net, x = make(kind, None, 2, generator), torch.randn(5, 3, generator=generator)
    torch.testing.assert_close(net(x), twin(net, x))
    assert net.out_dim == 2


@pytest.mark.parametrize(("kind", "twin"), [("simba", simba_twin), ("simba_v2", simba_v2_twin)])
def test_the_wide_layers_of_blocks_have_dropout_where_noise_is_given(generator, kind, twin):
    net, x = make(kind, None, 2, generator, dropout=0.3), torch.randn(50, 3, generator=generator)
    noise = net.noise(50, generator)
    assert noise.shape == (50, 2 * 32)
    assert 0.2 < float((noise == 0).float().mean()) < 0.4
    for result in (net(x, noise), net.learn(x, noise)[0]):
        torch.testing.assert_close(result, twin(net, x, noise))
    torch.testing.assert_close(net(x), twin(net, x))
    ensemble = make(kind, 3, 2, generator, dropout=0.3)
    noise = ensemble.noise(50, generator)
    assert noise.shape == (3, 50, 64)
    others = torch.cat([noise[1:], noise[:1]])
    assert torch.equal(ensemble(x, noise)[0], ensemble(x, torch.stack([noise[0], others[1], others[2]]))[0])
    assert not torch.equal(ensemble(x, noise), ensemble(x, others))


def batch_norm(layer, x):
    return nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=1e-3)


def test_simba_normalises_by_the_batch_where_asked(generator):
    """Its input, what enters each block and what leaves the last; before the correction begins it is batch norm."""
    net, x = make("simba", None, 2, generator, renorm_warmup=2), 5 + 3 * torch.randn(64, 3, generator=generator)
    first, embedding, *blocks, last = net.hidden
    expected = batch_norm(first, x) @ embedding.weight.T + embedding.bias
    for block in blocks:
        inner = (batch_norm(block.norm, expected) @ block.expand.weight.T + block.expand.bias).relu()
        expected = expected + inner @ block.contract.weight.T + block.contract.bias
    expected = batch_norm(last, expected) @ net.out.weight.T + net.out.bias
    result, statistics = net.learn(x, net.noise(64, generator))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    before = net(x)
    for _ in range(1000):
        net.after_step(statistics)
    assert not torch.equal(net(x), before)
    # the running statistics are now the batch's, but for their unbiased variance
    torch.testing.assert_close(net(x), expected, atol=0.05, rtol=0.05)
    ensemble = make("simba", 3, 2, generator, renorm_warmup=2)
    result, statistics = ensemble.learn(x)
    ensemble.after_step(statistics)
    assert result.shape == (3, 64, 2)
    assert all(float(layer.updates) == 1 for layer in ensemble.hidden.renorms)


@pytest.mark.parametrize("kind", ["simba", "simba_v2"])
def test_ensemble_is_its_copies(generator, kind):
    ensemble, x = make(kind, 3, 2, generator), torch.randn(7, 3, generator=generator)
    together = ensemble(x)
    assert together.shape == (3, 7, 2)
    alone = make(kind, None, 2, generator)
    for k in range(3):
        with torch.no_grad():
            for one, many in zip(alone.parameters(), ensemble.parameters(), strict=True):
                value = many[k].squeeze(0) if one.ndim == 1 else many[k]
                one.copy_(value.T if value.shape != one.shape else value)
        torch.testing.assert_close(together[k], alone(x))


@pytest.mark.parametrize("kind", ["simba", "simba_v2"])
def test_some_copies_can_be_asked_alone(generator, kind):
    ensemble, x = make(kind, 4, 2, generator), torch.randn(7, 3, generator=generator)
    which = torch.tensor([3, 1])
    torch.testing.assert_close(choose_copies(ensemble, which)(x), ensemble(x)[which])


@pytest.mark.parametrize("kind", ["simba", "simba_v2"])
@pytest.mark.parametrize("copies", [None, 2])
def test_features_have_mean_square_one_and_weights_begin_as_told(generator, kind, copies):
    net = ResidualNetwork(kind, copies, 3, (64, 64), None, "relu", generator)
    x = torch.randn(50, 3, generator=generator) * 4
    features = net(x)
    assert features.shape == (*([] if copies is None else [copies]), 50, 64)
    assert net.out_dim == 64
    torch.testing.assert_close(features.square().mean(-1), torch.ones(features.shape[:-1]), rtol=1e-3, atol=0)
    if kind == "simba":
        block = net.hidden[1]
        for layer, fan_in in ((block.expand, 64), (block.contract, 256)):
            assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
            assert not layer.bias.any()
        embedding = net.hidden[0].weight if copies is None else net.hidden[0].weight[1].mT
        torch.testing.assert_close(embedding.mT @ embedding, torch.eye(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("copies", [None, 2])
def test_weights_stay_on_their_spheres_through_learning(generator, copies):
    net = ResidualNetwork("simba_v2", copies, 3, (16, 16), 1, "relu", generator)
    optimizer, x = Optimizer(net.parameters(), 1e-2), torch.randn(32, 3, generator=generator)
    layers = [layer for layer in net.modules() if isinstance(layer, SphericalLinear)]
    assert len(layers) == 5

    def lengths():
        return torch.cat([layer.weight.detach().norm(dim=-2).flatten() for layer in layers])

    torch.testing.assert_close(lengths(), torch.ones_like(lengths()))
    losses = []
    for _ in range(60):
        q, statistics = net.learn(x, net.noise(32, generator))
        loss = (q.squeeze(-1) - 3 * x[:, 0] * x[:, 1]).square().mean()
        optimizer.step(**optimizer.gradient(loss))
        assert float((lengths() - 1).abs().max()) > 1e-5
        net.after_step(statistics)
        torch.testing.assert_close(lengths(), torch.ones_like(lengths()))
        losses.append(loss.item())
    # the step is taken within the optimiser's one vector, and learning goes on
    assert losses[-1] < losses[0] / 10
    assert optimizer.flat.data_ptr() <= layers[0].weight.data_ptr()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.hidden[0].linear.weight.mul_(2)
    twin.after_step(statistics)
    torch.testing.assert_close(twin(x), net(x))


def test_unit_of_zero_is_zero_with_a_finite_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    result = unit(x)
    assert not result.any()
    assert torch.autograd.grad(result.sum(), x)[0].isfinite().all()
    torch.testing.assert_close(unit(torch.tensor([3e-3, 4e-3])), torch.tensor([0.6, 0.8]))


def test_observations_in_one_direction_are_told_apart_by_the_constant(generator):
    net, x = make("simba_v2", None, None, generator), torch.randn(1, 3, generator=generator)
    assert float((net(x) - net(2 * x)).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["simba", "simba_v2"])
def test_recording_gives_the_same_bits(generator, kind):
    net = make(kind, 2, 1, generator)
    parameters = list(net.parameters())

    def gradient(data):
        loss = net.learn(data["x"])[0].square().mean()
        return {"gradient": torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])}

    recorded = Recorded(gradient)
    for _ in range(RECORD_AFTER + 3):
        data = {"x": torch.randn(8, 3, generator=generator)}
        assert torch.equal(recorded(data)["gradient"], gradient(data)["gradient"])


@pytest.mark.parametrize("kind", ["simba", "simba_v2"])
def test_blocks_are_computed_in_bfloat16_where_asked_and_features_in_float32(generator, kind, monkeypatch):
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    net, x = make(kind, 2, 1, generator, width=64), torch.randn(32, 3, generator=generator)
    seen: dict[str, torch.dtype] = {}
    for name, module in net.named_modules():
        if isinstance(module, (residual.SimBaBlock, residual.SphericalBlock)):
            module.register_forward_hook(lambda module, given, result: seen.update(block=result.dtype))
            module.expand.register_forward_hook(lambda module, given, result: seen.update(expand=result.dtype))
            assert isinstance(module.expand, nn.Module), name
    parameters = list(net.parameters())

    def both():
        result = net(x)
        return result, torch.cat([g.flatten() for g in torch.autograd.grad(result.square().mean(), parameters)])

    with acceleration.hidden_precision("bfloat16"):
        reduced, reduced_gradient = both()
    assert seen["expand"] == torch.bfloat16
    full, gradient = both()
    assert reduced.dtype == reduced_gradient.dtype == torch.float32
    assert not torch.equal(reduced, full)
    torch.testing.assert_close(reduced, full, atol=0.1, rtol=0.03)
    assert float(torch.cosine_similarity(reduced_gradient, gradient, 0)) > 0.998


@pytest.mark.parametrize("kind", ["simba", "simba_v2"])
def test_state_is_exact_and_there_is_no_noise(generator, kind):
    net, x = make(kind, 2, 1, generator), torch.randn(4, 3, generator=generator)
    other = ResidualNetwork(kind, 2, 3, (8, 8), 1, "relu", generator)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert torch.equal(net(x), other(x))
    before = generator.get_state()
    assert net.noise(4, generator).shape == (2, 4, 0)
    assert torch.equal(generator.get_state(), before)
    result, statistics = net.learn(x, net.noise(4, generator))
    assert torch.equal(result, net(x))
    assert statistics.shape == (0,)
