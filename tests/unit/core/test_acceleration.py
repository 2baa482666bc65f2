"""How numbers are computed: products on a processor are of float32 at any precision, and tiny numbers count as 0."""

from __future__ import annotations

import pytest
import torch

from habilis import api
from habilis.core.acceleration import configure
from habilis.core.recording import SideBySide
from habilis.nn.optimizer import Optimizer


@pytest.fixture(autouse=True)
def put_back():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    configure(threads=threads, precision=precision)


@pytest.mark.parametrize("precision", ["medium", "highest", "high"])
def test_products_on_a_processor_are_of_float32(precision):
    """Processors with AMX round to bfloat16 at "medium" unless told otherwise; others never do."""
    configure(threads=1, precision=precision)
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 256, 300, generator=generator), torch.randn(2, 300, 256, generator=generator)
    exact = one.double() @ other.double()
    for product in (
        one @ other,
        torch.stack([torch.nn.functional.linear(a, b.T) for a, b in zip(one, other, strict=True)]),
    ):
        assert (product - exact).abs().max() < 1e-4
    assert torch.get_float32_matmul_precision() == precision


def test_the_mean_gradient_of_a_unit_that_learns_no_more_comes_to_rest_at_zero():
    """Else it stays at a few of float32's smallest numbers, with which Adam's steps take several times as long."""
    configure(threads=1, precision="highest")
    weights = torch.nn.Parameter(torch.zeros(2))
    optimizer = Optimizer([weights], 1e-3)
    first, later = torch.ones(2), torch.tensor([1.0, 0.0])
    for step in range(1100):
        gradient = first if step == 0 else later
        optimizer.step(gradient, gradient.norm())
    assert optimizer.moments["exp_avg"].tolist() == [pytest.approx(1.0), 0.0]


def test_tiny_numbers_count_as_zero_in_threads_too():
    configure(threads=2, precision="highest")
    tiny, share = torch.full((1,), 1e-38), torch.full((1,), 0.1)
    here, there = SideBySide(2)(lambda: tiny * share, lambda: tiny * share)
    assert here.item() == there.item() == 0


def test_a_policy_is_exported_where_it_was_trained_with_wide_layers(tmp_path):
    settings = {
        "total_timesteps": 300,
        "eval_episodes": 0,
        "algo.learning_starts": 280,
        "run_dir": str(tmp_path / "run"),
    }
    run = api.train("sac", "Pendulum-v1", **settings)
    assert run.config.matmul_precision == "medium"
    assert torch.full((1,), 1e-38) * 0.1 > 0  # tiny numbers count again
    api.resume(run.path)
    assert torch.full((1,), 1e-38) * 0.1 > 0
    assert api.export(run.policy, tmp_path / "export").is_dir()
