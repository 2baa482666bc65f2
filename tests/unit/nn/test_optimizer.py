"""The flat optimiser does what PyTorch's Adam and RMSProp do with each parameter, and keeps parameters finite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from habilis.nn.mlp import MLP
from habilis.nn.optimizer import Optimizer, flatten_parameters


def network():
    return MLP(3, (8, 8), 2, "tanh", torch.Generator().manual_seed(0))


def batches(count, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 3, generator=g), torch.randn(16, 2, generator=g) * 10) for _ in range(count)]


def step(optimizer, loss):
    result = optimizer.gradient(loss)
    optimizer.step(**result)
    return result["grad_norm"]


def loss_of(net, batch):
    return (net(batch[0]) - batch[1]).square().mean()


KINDS = pytest.mark.parametrize("kind", ["adam", "rmsprop"])


@KINDS
@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 1e6])
def test_equals_pytorchs_with_clipping(kind, max_grad_norm):
    ours, theirs = network(), network()
    optimizer = Optimizer(ours.parameters(), 1e-2, eps=1e-5, max_grad_norm=max_grad_norm, kind=kind)
    maker = torch.optim.Adam if kind == "adam" else torch.optim.RMSprop
    twin = maker(theirs.parameters(), lr=1e-2, eps=1e-5)
    for batch in batches(20):
        norm = step(optimizer, loss_of(ours, batch))
        twin.zero_grad()
        loss_of(theirs, batch).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or 1e9)
        twin.step()
        torch.testing.assert_close(norm, expected)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_weight_decay_equals_pytorchs_adamw():
    ours, theirs = network(), network()
    optimizer = Optimizer(ours.parameters(), 1e-2, weight_decay=0.3)
    twin = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.3)
    for batch in batches(20):
        step(optimizer, loss_of(ours, batch))
        twin.zero_grad()
        loss_of(theirs, batch).backward()
        twin.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_parameters_are_views_of_the_flat_vector():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    flat = flatten_parameters(net.parameters())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    flat.zero_()
    assert all(not p.any() for p in net.parameters())
    net.load_state_dict({k: torch.ones_like(v) for k, v in net.state_dict().items()})
    assert bool((flat == 1).all())


def test_learning_rate_changes_in_place():
    net = network()
    optimizer = Optimizer(net.parameters(), 1e-2)
    optimizer.learning_rate.fill_(0.0)
    before = optimizer.flat.clone()
    step(optimizer, loss_of(net, batches(1)[0]))
    assert torch.equal(optimizer.flat, before)
    optimizer.learning_rate.fill_(1e-2)
    step(optimizer, loss_of(net, batches(1)[0]))
    assert not torch.equal(optimizer.flat, before)


@KINDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_counted_and_not_taken(kind, bad):
    net = network()
    optimizer = Optimizer(net.parameters(), 1e-2, max_grad_norm=0.5, kind=kind)
    step(optimizer, loss_of(net, batches(1)[0]))
    before, state = optimizer.flat.clone(), optimizer.state_dict()
    step(optimizer, loss_of(net, batches(1)[0]) * bad)
    assert torch.equal(optimizer.flat, before)  # momentum does not carry it on either
    assert all(torch.equal(v, state[k]) for k, v in optimizer.state_dict().items() if k != "skipped")
    assert float(optimizer.skipped) == 1
    step(optimizer, loss_of(net, batches(1)[0]))
    assert bool(optimizer.flat.isfinite().all())
    assert not torch.equal(optimizer.flat, before)
    assert float(optimizer.skipped) == 1


@KINDS
def test_a_loss_that_is_not_finite_is_no_more_taken_where_its_gradient_is(kind):
    net = network()
    optimizer = Optimizer(net.parameters(), 1e-2, kind=kind)
    loss = (math.inf - loss_of(net, batches(1)[0])).abs()  # the gradient is that of the loss within, or less it
    before = optimizer.flat.clone()
    assert loss.isinf()
    assert bool(optimizer.gradient(loss)["gradient"].isfinite().all())
    step(optimizer, loss)
    assert torch.equal(optimizer.flat, before)
    assert float(optimizer.skipped) == 1


@KINDS
def test_state_continues_bit_for_bit_and_shares_nothing(kind):
    first = network()
    one = Optimizer(first.parameters(), 1e-2, max_grad_norm=0.5, kind=kind)
    for batch in batches(5):
        step(one, loss_of(first, batch))
    one.learning_rate.fill_(3e-3)
    second = network()
    two = Optimizer(second.parameters(), 1e-2, max_grad_norm=0.5, kind=kind)
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    assert float(two.learning_rate) == float(one.learning_rate)
    for batch in batches(5, seed=2):  # side by side: shared moments would be moved twice
        step(one, loss_of(first, batch))
        step(two, loss_of(second, batch))
        assert torch.equal(one.flat, two.flat)


def test_a_state_taken_before_the_first_step_can_be_loaded():
    first = network()
    one = Optimizer(first.parameters(), 1e-2)
    fresh = copy.deepcopy(one.state_dict())
    start = one.flat.clone()
    step(one, loss_of(first, batches(1)[0]))
    after = one.flat.clone()
    one.load_state_dict(fresh)
    one.flat.copy_(start)
    step(one, loss_of(first, batches(1)[0]))
    assert torch.equal(one.flat, after)


def test_a_state_brings_its_learning_rate_along_unless_another_was_asked_for():
    adapted = Optimizer(network().parameters(), 1e-2)
    adapted.learning_rate.fill_(3e-3)
    same, other = Optimizer(network().parameters(), 1e-2), Optimizer(network().parameters(), 1e-4)
    for optimizer in (same, other):
        optimizer.load_state_dict(adapted.state_dict())
    assert float(same.learning_rate) == pytest.approx(3e-3)
    assert float(other.learning_rate) == pytest.approx(1e-4)
