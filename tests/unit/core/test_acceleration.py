"""How numbers are computed: products on a processor are of float32 at any precision, tiny ones are 0; and memory."""

from __future__ import annotations

import pytest
import torch

from habilis import api
from habilis.core import acceleration
from habilis.core.acceleration import (
    available_memory,
    configure,
    has_bfloat16,
    hidden_layers,
    hidden_precision,
    require_room,
)
from habilis.core.errors import ConfigError
from habilis.core.provenance import versions
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


def test_a_processor_that_pytorch_says_nothing_of_has_no_units_for_bfloat16(monkeypatch):
    """`torch.cpu.get_capabilities` is younger than the oldest PyTorch that is allowed."""
    monkeypatch.setattr(acceleration, "has_bfloat16", has_bfloat16.__wrapped__)  # which remembers what it has seen
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "cpu_name": "ours"}, raising=False)
    hidden = hidden_layers(torch.device("cpu"))
    with hidden_precision("bfloat16"):
        assert isinstance(hidden_layers(torch.device("cpu")), torch.autocast)
        monkeypatch.delattr(torch.cpu, "get_capabilities")
        assert type(hidden_layers(torch.device("cpu"))) is type(hidden)
    assert versions()["processor"] != "ours"


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Where the system says how much memory there is: 8 GB are free on the machine, and there is no container."""
    monkeypatch.setattr(acceleration, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(acceleration, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  16000000 kB\nMemAvailable:   8000000 kB\nHugePages_Total:  0\n")
    return tmp_path


def test_files_that_a_container_has_read_are_memory_that_it_has_left(told):
    assert available_memory("cpu") == 8_192_000_000
    for name, text in (("memory.max", "4000000000"), ("memory.current", "3900000000")):
        (told / name).write_text(f"{text}\n")
    assert available_memory("cpu") == 100_000_000
    (told / "memory.stat").write_text(
        "anon 700000000\nfile 3200000000\ninactive_file 3000000000\nactive_file 200000000\n"
    )
    assert available_memory("cpu") == 3_100_000_000
    (told / "memory.max").write_text("max\n")
    assert available_memory("cpu") == 8_192_000_000
    (told / "meminfo").unlink()
    assert available_memory("cpu") is None


@pytest.mark.parametrize(
    ("needed", "left", "sizes"),
    [
        (3.1e9, 2.04e9, "3.1 GB, and there are 2.0 GB left on cpu"),
        (1.2e8, 1.1e8, "120.0 MB, and there are 110.0 MB left on cpu"),
        (120_010_000, 120_000_000, "120,010.0 kB, and there are 120,000.0 kB left on cpu"),
        (1_000_001, 1_000_000, "1,000,001 bytes, and there are 1,000,000 bytes left on cpu"),
    ],
)
def test_what_is_needed_and_what_is_left_are_told_apart(needed, left, sizes, monkeypatch):
    monkeypatch.setattr(acceleration, "available_memory", lambda device: left)
    with pytest.raises(ConfigError, match=f"ten takes {sizes}: lower it"):
        require_room("ten takes", needed, "it")
