"""A simplified graph computes the same bits from fewer operations, and takes nothing for constant that may change."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from habilis.core.simplification import simplify


def operations(function, *values) -> tuple[list[str], torch.fx.GraphModule]:
    """The names of what is left of a function, after its results are found to be the same."""
    module = make_fx(function)(*values)
    expected = function(*values)
    module = simplify(module, values)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(module(*values), expected, strict=True))
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return [str(target).removeprefix("aten.").partition(".")[0] for target in called], module


def numbers(*shape) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_views_that_lead_back_are_left_out():
    left, _ = operations(lambda x: (x.t().t().detach().view(3, 4).exp(), x.t().sin()), numbers(3, 4))
    assert left == ["t", "exp", "sin"]


def test_a_view_of_other_numbers_stays():
    left, _ = operations(lambda x: (x.t().t()[1:].t().exp(), x.expand(2, 4).exp()), numbers(1, 4))
    assert left == ["slice", "t", "exp", "expand", "exp"]


def test_what_was_computed_before_is_not_computed_again():
    left, _ = operations(lambda x: (x.exp() * x.exp().sin(),), numbers(5))
    assert left == ["exp", "sin", "mul"]


def test_a_whole_number_is_not_a_real_one():
    left, _ = operations(lambda x: (x.float() + (x * 2), x.float() * (x * 2.0)), torch.arange(3))
    assert left.count("mul") == 3


def test_two_results_are_two_tensors_and_none_is_an_input():
    _, module = operations(lambda x: (x.exp(), x.exp(), x * 1.0), numbers(5))
    x = numbers(5)
    one, other, third = module(x)
    one.zero_(), third.zero_()
    assert torch.equal(other, x.exp())
    assert x.all()


def test_constants_of_a_gradient_are_folded_and_parameters_are_not():
    weight = numbers(4).requires_grad_()

    def gradient(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(((x * weight).square().mean() * 0.5).sum(), weight)

    x = numbers(3, 4)
    left, module = operations(gradient, x)
    assert "ones_like" not in left
    assert "expand" not in left
    assert "div" not in left
    with torch.no_grad():
        weight.mul_(-3.0)
    assert torch.equal(module(x)[0], gradient(x)[0])


def test_views_of_parameters_stand_already_and_show_what_these_become():
    weight = numbers(3, 4)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x @ weight.t(), weight.t()[1:].exp()

    x = numbers(2, 4)
    left, module = operations(function, x)
    assert sorted(left) == ["exp", "mm"]
    weight.copy_(numbers(4, 3).t())  # a step of an optimiser, say
    for got, expected in zip(module(x), function(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_result_that_never_changes_is_fresh_each_time():
    _, module = operations(lambda x: (torch.ones_like(x) * 2, x.exp()), numbers(3))
    module(numbers(3))[0].zero_()
    assert module(numbers(3))[0].tolist() == [2.0, 2.0, 2.0]


def test_what_autograd_writes_in_place_is_simplified_too():
    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(torch.minimum(leaf * y, leaf.clamp(-0.5, 0.5) * y).mean(), leaf)

    left, _ = operations(gradient, numbers(50), numbers(50).flip(0))
    assert not any(name.endswith("_") for name in left)
    assert left.count("eq") == 1


def test_what_writes_elsewhere_or_draws_is_left_alone():
    def accumulate(x: Tensor, total: Tensor) -> tuple[Tensor, ...]:
        total.add_(x.detach().detach())
        return (total * 2,)

    def through_a_view(x: Tensor, total: Tensor) -> tuple[Tensor, ...]:
        rows = torch.zeros_like(total).view(3, 1)
        rows.view(-1).masked_fill_(x > 0, 2.0)
        return (rows + total,)

    def draws(x: Tensor, total: Tensor) -> tuple[Tensor, ...]:
        return (torch.rand_like(x) - torch.rand_like(x),)  # which this rule is for

    for function in (accumulate, through_a_view, draws):
        module = make_fx(function)(numbers(3), torch.zeros(3))
        assert simplify(module, (numbers(3), torch.zeros(3))) is module


def test_what_a_gradient_writes_through_views_is_not_lost():
    def gradient(x: Tensor) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(leaf.mul(2).as_strided((2, 2), (4, 1)).square().sum(), leaf)

    operations(gradient, numbers(3, 4))


def test_results_are_lent_by_nothing_not_even_through_a_view():
    def function(x: Tensor) -> tuple[Tensor, ...]:
        one, other = x.exp(), x.exp()
        first, second = x.sin().unbind(0)[0], x.sin().unbind(0)[0]
        return one, other.detach(), first, second, (x * 1.0).view(-1), torch.ones_like(x).view(-1) * 1.0

    _, module = operations(function, numbers(3, 4))
    x = numbers(3, 4)
    results = module(x)
    assert len({result.untyped_storage().data_ptr() for result in (*results, x)}) == 7
    for result in module(x):
        result.zero_()
    assert all(torch.equal(a, b) for a, b in zip(module(x), function(numbers(3, 4)), strict=True))


def test_numbers_that_lie_there_repeatedly_keep_their_views():
    left, _ = operations(lambda x: (x.t().exp(),), numbers(1).expand(3, 3))
    assert left == ["t", "exp"]


def test_signs_of_zero_and_what_is_no_number_pass_through_a_factor_of_one():
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return ((x.neg() * 1.0).sin(),)

    x = torch.tensor([-0.0, 0.0, torch.nan, torch.inf])
    module = simplify(make_fx(function)(x), (x,))
    assert [str(n.target) for n in module.graph.nodes if n.op == "call_function"] == [
        "aten.neg.default",
        "aten.sin.default",
    ]
    assert torch.equal(module(x)[0].view(torch.int32), function(x)[0].view(torch.int32))


def test_other_factors_and_divisors_stay():
    left, _ = operations(lambda x: (x.exp() * 2.0, x.exp() / 3.0, x.sin() ** 2), numbers(4))
    assert [name for name in left if name in ("mul", "div", "pow")] == ["mul", "div", "pow"]
