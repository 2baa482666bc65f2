"""Graphs replayed by NumPy: each operation beside PyTorch's, what they read and when they are left to PyTorch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.core.by_numpy import _BY_NUMPY, _BY_SHAPE, by_numpy
from habilis.core.recording import Recorded
from habilis.core.simplification import simplify


def numbers(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS, OTHER = numbers(6, 4, seed=1), numbers(6, seed=2), numbers(5, 4, seed=3)

LEARNT = numbers(3, 4, seed=4).requires_grad_()
CHOICE, FIRST = torch.tensor([[2], [0], [1], [1], [2]]), torch.tensor(0)


def gradient(loss):
    """Return a function of `x` that comes to the gradient of a loss of five rows of three numbers."""
    return lambda x: torch.autograd.grad(loss(x @ LEARNT.t()).sum(), LEARNT)[0]


FUNCTIONS = {
    "linear": lambda x: F.linear(x, WEIGHT, BIAS),
    "mm": lambda x: x @ WEIGHT.t(),
    "bmm": lambda x: torch.bmm(x.unsqueeze(1), OTHER.unsqueeze(2)).squeeze(1),
    "mv": lambda x: torch.mv(x, BIAS[:4].clone()),
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log of the size": lambda x: x.abs().log(),
    "roots": lambda x: x.abs().sqrt() + (x.abs() + 1).rsqrt(),
    "signs": lambda x: -x.sign() * x.cos(),
    "relu": torch.relu,
    "sigmoid": lambda x: torch.sigmoid(100 * x),
    "softplus": lambda x: F.softplus(30 * x),
    "elu": lambda x: F.elu(x) + F.elu(x, 0.5),
    "silu": F.silu,
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmax": lambda x: x.softmax(0),
    "sums and products": lambda x: (x + OTHER) * (x - 2) / (1 + x.square()) + (1 - x) + x**3,
    "whole numbers and truth divided": lambda x: x.argmax(0) / 3 + (x > 0) / (x < OTHER).sum(),
    "addcmul": lambda x: torch.addcmul(x, OTHER, x),
    "lerp": lambda x: torch.lerp(x, OTHER, x.sigmoid()),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(OTHER - 1, OTHER + 1) + x.clamp_min(0.1) + x.clamp(max=0.2),
    "least and most": lambda x: torch.minimum(x, OTHER) - torch.maximum(x, OTHER),
    "comparisons": lambda x: ((x < OTHER) & (x > 0.1)) | ~((x > OTHER) | (x < -1)),
    "where": lambda x: torch.where(x < OTHER, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > OTHER, 2.0),
    "sum": lambda x: x.sum(-1) + x.sum((0, 1), keepdim=True)[0],
    "sum of all": lambda x: x.sum() * x.mean(),
    "norm": lambda x: torch.linalg.vector_norm(x.flatten()),
    "mean": lambda x: x.mean(0, keepdim=True) - x.mean((0, 1)),
    "argmax": lambda x: x.argmax(-1),
    "gather": lambda x: x.gather(-1, x.argmax(-1, keepdim=True)),
    "gather along the first": lambda x: x.gather(0, x.argmax(0, keepdim=True)),
    "scatter_add": lambda x: x.scatter_add(1, CHOICE, OTHER[:, :1].clone()),
    # several to one place
    "scatter_add of several": lambda x: x.scatter_add(1, CHOICE.expand(5, 3).clone(), OTHER[:, :3].clone()),
    "expand": lambda x: x[:, :1].expand(5, 4).exp(),
    "reciprocal": lambda x: 2.0 / x + x.clamp_max(0.3),
    "huber": lambda x: F.huber_loss(x, OTHER, reduction="none", delta=0.7) + F.huber_loss(x, OTHER, reduction="none"),
    "gradient of relu": gradient(torch.relu),
    "gradient of tanh": gradient(torch.tanh),
    "gradient of log_softmax": gradient(lambda y: y.log_softmax(-1).gather(-1, CHOICE)),
    "gradient of huber": gradient(lambda y: F.huber_loss(y, OTHER[:, :3], reduction="none", delta=0.7)),
    "gradient of slices": gradient(lambda y: y[1:4].square() / 3),
    "gradient of the mean": gradient(lambda y: y.square().mean() + y.mean(-1).square()),
    "gradient of logits": gradient(lambda y: y.log_softmax(0).select(0, 1) * 2),
    "transpose": lambda x: x.transpose(0, 1).exp(),
    "view": lambda x: x.exp().view(10, 2).exp(),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1).exp(),
    "slices": lambda x: x[1:4, ::2].exp() + x[-1, 1],
    "split": lambda x: x.exp().split(2, -1)[1] + x.split([1, 3], 1)[1][:, 1:] + x.unbind(1)[3].unsqueeze(1),
    "cat": lambda x: torch.cat([x, OTHER], 1) * torch.stack([x, x], 1).flatten(1),
    "clone": lambda x: x.t().clone() + 1,
    "to float64 and back": lambda x: (x.double() * OTHER.double()).float(),
}


def graph(function, *values):
    return simplify(make_fx(lambda *x: (function(*x),))(*values), values)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_comes_to_what_pytorch_comes_to(name):
    function = FUNCTIONS[name]
    replay = by_numpy(graph(function, numbers(5, 4)), (numbers(5, 4),))
    assert replay is not None
    for seed in (7, 8):
        x = numbers(5, 4, seed=seed)
        (found,), expected = replay(x), function(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["huber", "gradient of huber", "relu", "clamp"])
def test_what_is_not_a_number_stays_so(name):
    x = numbers(5, 4)
    replay = by_numpy(graph(FUNCTIONS[name], x), (x,))
    x = x.index_fill(0, torch.tensor(2), torch.nan)
    found, expected = replay(x)[0], FUNCTIONS[name](x)
    assert expected.isnan().any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_all_operations_are_tried():
    tried = set()
    for function in FUNCTIONS.values():
        tried |= {node.target for node in graph(function, numbers(5, 4)).graph.nodes}
    left = {str(op) for op in (_BY_NUMPY.keys() | _BY_SHAPE.keys()) - tried}
    assert left <= {"aten.t.default", "aten._unsafe_view.default"}  # of parameters; as `view`


def test_parameters_and_views_of_them_are_read_where_they_lie():
    weight = numbers(6, 4).requires_grad_()
    replay = by_numpy(graph(lambda x: F.linear(x, weight), numbers(5, 4)), (numbers(5, 4),))
    with torch.no_grad():
        weight.mul_(3)
    torch.testing.assert_close(replay(OTHER)[0], F.linear(OTHER, weight).detach())
    weight.data.share_memory_()  # which moves them
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(replay(OTHER)[0], F.linear(OTHER, weight).detach())


def test_what_is_large_unknown_or_called_otherwise_is_left_to_pytorch():
    assert by_numpy(graph(lambda x: x + 1, numbers(201, 100)), (numbers(201, 100),)) is None
    large = numbers(128, 64)
    assert by_numpy(graph(lambda x: F.linear(x, numbers(64, 64)), large), (large,)) is None
    # a row and a matrix are another matter to NumPy's library than rows and a matrix
    row, wide = numbers(1, 128), numbers(128, 128)
    assert by_numpy(graph(lambda x: F.linear(x, wide), row), (row,)) is None
    assert by_numpy(graph(lambda x: F.linear(x, wide), row.repeat(2, 1)), (row.repeat(2, 1),)) is not None
    for function in (
        torch.lgamma,
        lambda x: F.softplus(x, 2.0),
        lambda x: torch.add(x, x, alpha=2),
        lambda x: F.huber_loss(x, OTHER + 0),
        lambda x: x.view(20).gather(0, FIRST),
        lambda x: x.argmax(-1) * 0.5,  # of whole numbers NumPy makes float64
    ):
        assert by_numpy(graph(function, OTHER), (OTHER,)) is None
    assert by_numpy(graph(torch.exp, OTHER), (OTHER.clone().requires_grad_(),)) is None
    # of a mean too, though where nothing is wrong its gradient is 0 whatever it is divided by
    nothing = torch.zeros(5, 4)
    assert by_numpy(graph(gradient(lambda y: F.huber_loss(y, OTHER[:, :3] * 0)), nothing), (nothing,)) is None


def test_what_rounding_makes_of_the_numbers_has_no_say():
    """A run that is resumed would otherwise be replayed by another library than one that was never stopped."""

    def function(x):
        nothing = (x - x.mean(-1, keepdim=True)).sum(-1)
        return torch.where(nothing > 0, 1e6 * nothing, -1.0)

    for seed in range(10):
        x = 1e4 * numbers(16, 256, seed=seed)
        (found,) = by_numpy(graph(function, x), (x,))(x)
        assert not torch.allclose(found, function(x))


def test_what_was_expanded_is_the_callers_own():
    x = numbers(5, 1)
    (found,) = by_numpy(graph(lambda x: x.expand(5, 4), x), (x,))(x)
    before = x.clone()
    found.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("function", [FUNCTIONS["linear"], torch.lgamma])
def test_a_recording_is_of_one_kind_from_the_first_call_on(function):
    recorded = Recorded(lambda data: {"y": function(data["x"])}, arrays=True)
    x = numbers(5, 4)
    first = recorded({"x": x})["y"]
    assert all(torch.equal(recorded({"x": x})["y"], first) for _ in range(40))
    torch.testing.assert_close(first, function(x))
    # results are the caller's own
    first.zero_()
    torch.testing.assert_close(recorded({"x": x})["y"], function(x))


def test_results_are_no_part_of_a_graph_where_it_runs_as_it_is_written():
    weight = numbers(4, 3).requires_grad_()
    recorded = Recorded(lambda data: {"y": data["image"].float() @ weight}, arrays=True)
    assert not recorded({"image": torch.ones(2, 4, dtype=torch.uint8)})["y"].requires_grad


def test_what_is_not_finite_passes_without_a_warning():
    replay = by_numpy(graph(lambda x: (x.exp() / x).log(), OTHER), (OTHER.abs(),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = replay(torch.tensor([[torch.nan, 0.0, 1000.0, -1.0]]).repeat(5, 1))
    assert found[0].isnan().tolist() == [True, False, False, True]
    assert found[0, 1:3].isinf().all()
    # nor does it matter at the recording
    assert by_numpy(graph(torch.log, OTHER), (OTHER,)) is not None


@pytest.mark.parametrize(
    ("algorithm", "env", "settings"),
    [
        ("dqn", "CartPole-v1", {}),
        ("dqn", "CartPole-v1", {"double_q": True, "prioritized": True, "huber_threshold": None}),
        ("dqn", "CartPole-v1", {"dueling": True, "exploration": "noisy"}),
        ("a2c", "CartPole-v1", {"n_steps": 8}),
        ("a2c", "Pendulum-v1", {"n_steps": 8}),
    ],
)
def test_what_small_networks_learn_is_replayed_by_numpy(algorithm, env, settings):
    plain = {"hidden": [64, 64], "learning_starts": 64, "train_freq": 1, "gradient_steps": 1, "tau": 0.01}
    plain |= {"target_update_interval": 1, "max_grad_norm": 0.5, "huber_threshold": 1.0}
    settings = (plain if algorithm == "dqn" else {"hidden": [64, 64]}) | settings
    config = default_config(algorithm, env, **{f"algo.{name}": value for name, value in settings.items()}, num_envs=4)
    learner = build_trainer(config)
    recorded, seen = learner.algorithm._gradient, []

    def both(data):
        seen.append((recorded(data), recorded.function(data)))
        return dict(seen[-1][0])

    learner.algorithm._gradient = both
    for _ in range(60):
        learner.iterate()
    assert len(seen) > 20
    assert all("by_numpy" in replay.__qualname__ for replay in recorded._recordings.values())
    for found, expected in seen:
        size = float(expected["gradient"].abs().max())
        assert list(found) == list(expected)
        for name in found:
            torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-4, atol=1e-5 * max(1.0, size))
