"""A recording gives the bits of the function it was made of, and reads parameters where they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from habilis.core.recording import RECORD_AFTER, Recorded, SideBySide


def make():
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(generator=generator)
    scale = torch.tensor(2.0)
    calls = []

    def function(data) -> dict[str, Tensor]:
        calls.append(1)
        loss = (net(data["x"]).tanh() * scale).square().mean()
        weight, bias = torch.autograd.grad(loss, [net.weight, net.bias])
        return {"gradient": torch.cat([weight.flatten(), bias]), "loss": loss.detach()}

    return function, net, scale, calls, generator


def agree(function, recorded, data) -> bool:
    ours, theirs = recorded(data), function(data)
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_replay_gives_the_same_bits_and_runs_no_python():
    function, _, _, calls, generator = make()
    recorded = Recorded(function)
    for _ in range(RECORD_AFTER + 1):
        recorded({"x": torch.randn(4, 3, generator=generator)})
    before = len(calls)
    recorded({"x": torch.randn(4, 3, generator=generator)})
    assert len(calls) == before
    assert agree(function, recorded, {"x": torch.randn(4, 3, generator=generator)})


def test_parameters_and_tensors_are_read_where_they_are():
    function, net, scale, _, generator = make()
    recorded = Recorded(function)
    data = {"x": torch.randn(4, 3, generator=generator)}
    for _ in range(RECORD_AFTER + 1):
        recorded(data)
    with torch.no_grad():
        net.weight.mul_(-3.0)
    assert agree(function, recorded, data)
    net.load_state_dict({name: p + 1 for name, p in net.state_dict().items()})
    assert agree(function, recorded, data)
    scale.fill_(0.25)
    assert agree(function, recorded, data)


def test_each_set_of_shapes_has_its_own_recording():
    function, _, _, _, generator = make()
    recorded = Recorded(function)
    for size in (4, 7):
        for _ in range(RECORD_AFTER + 2):
            assert agree(function, recorded, {"x": torch.randn(size, 3, generator=generator)})


def test_inference_gives_the_same_bits_and_results_that_autograd_knows_nothing_of():
    function, _, _, _, generator = make()
    recorded = Recorded(function, inference=True)
    for _ in range(RECORD_AFTER + 1):
        data = {"x": torch.randn(4, 3, generator=generator)}
        assert agree(function, recorded, data)
    assert all(result.is_inference() for result in recorded(data).values())
    assert not any(result.is_inference() for result in Recorded(function)(data).values())


def test_products_that_are_summed_stay_products_of_their_own():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator, requires_grad=True)

    def function(data) -> dict[str, Tensor]:
        x = data["x"]
        for _ in range(6):
            x = (x @ weight).tanh()
        return {"gradient": torch.autograd.grad(x.square().sum(), weight)[0]}

    recorded = Recorded(function)
    assert all(agree(function, recorded, {"x": torch.randn(5, 8, generator=generator)}) for _ in range(80))


def test_one_function_may_have_all_threads_for_itself():
    before = torch.get_num_threads()
    assert SideBySide(2).alone(torch.get_num_threads) == 2
    assert SideBySide(1).alone(torch.get_num_threads) == before
    with pytest.raises(ZeroDivisionError):
        SideBySide(2).alone(lambda: 1 // 0)
    assert torch.get_num_threads() == before
