"""How products are computed: whatever precision is asked for, those on a processor are of float32."""

from __future__ import annotations

import pytest
import torch

from habilis import api
from habilis.core.acceleration import configure


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


def test_a_policy_is_exported_where_it_was_trained_with_wide_layers(tmp_path):
    settings = {
        "total_timesteps": 300,
        "eval_episodes": 0,
        "algo.learning_starts": 280,
        "run_dir": str(tmp_path / "run"),
    }
    run = api.train("sac", "Pendulum-v1", **settings)
    assert run.config.matmul_precision == "medium"
    assert api.export(run.policy, tmp_path / "export").is_dir()
