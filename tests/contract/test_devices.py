"""On another device every algorithm learns what it learns on the processor, keeps it, and goes on from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from cases import ACTING, EXACT, HINDSIGHT, MEMORY, SEEING, SMALL, iterate, save, small_config
from simulated_device import SimulatedTensor, simulated_device

import habilis
from habilis.build import build_trainer
from habilis.checkpoint import load_checkpoint
from habilis.checkpoint.state_tree import flatten
from habilis.core.config import override
from habilis.core.errors import ConfigError
from habilis.presets.tabular import TABULAR_NAMES
from habilis.training.keeping import Trainer, components, restore

ON_THE_PROCESSOR = {"a3c", *TABULAR_NAMES}
"""What shares its memory, and tables."""
CASES = [(name, EXACT[name][0]) for name in SMALL if name not in ON_THE_PROCESSOR]
CASES += [*HINDSIGHT, *MEMORY, *ACTING, *SEEING]


GPU = "cuda"
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let policies act by PyTorch on the processor too: NumPy's last bits are others."""
    monkeypatch.setattr("habilis.core.recording.by_numpy", lambda *_: None)


def make(algorithm: str, env: str, device: str) -> Trainer:
    config = small_config(algorithm, env, seed=1)
    # where a device has no units for bfloat16, and the simulated one has none, float32 is what it computes in
    exact = {"algo.hidden_precision": "float32"} if hasattr(config.algo, "hidden_precision") else {}
    return build_trainer(override(config, {"device": device, **exact}))


def kept(trainer: Trainer, path: Path) -> Mapping[str, Tensor]:
    """Save a run and return every tensor of its checkpoint by name."""
    save(trainer, path)
    names = list(components(trainer))
    states, _ = load_checkpoint(path, names)
    _, tensors = flatten(states, where="checkpoint")
    return {name: torch.as_tensor(value) for name, value in tensors.items()}


@pytest.mark.parametrize(("algorithm", "env"), CASES)
def test_it_learns_keeps_and_goes_on_as_on_the_processor(algorithm: str, env: str, tmp_path: Path) -> None:
    here = make(algorithm, env, "cpu")
    iterate(here, 4)
    first = kept(here, tmp_path / "first")
    iterate(here, 4)
    second = kept(here, tmp_path / "second")
    with simulated_device() as device:
        there = make(algorithm, env, device)
        iterate(there, 4)
        assert all(isinstance(p, SimulatedTensor) for p in there.algorithm.policy.parameters())
        alike(first, kept(there, tmp_path / "there"))
        resumed = make(algorithm, env, device)
        restore(resumed, load_checkpoint(tmp_path / "there", list(components(resumed)))[0])
        iterate(resumed, 4)
        alike(second, kept(resumed, tmp_path / "resumed"))


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize(("algorithm", "env"), CASES)
def test_it_learns_keeps_and_goes_on_on_a_gpu(algorithm: str, env: str, tmp_path: Path) -> None:
    """Sums are made in any order there, so that two runs are alike but for rounding."""
    unbroken = make(algorithm, env, GPU)
    iterate(unbroken, 4)
    kept(unbroken, tmp_path / "first")
    iterate(unbroken, 4)
    resumed = make(algorithm, env, GPU)
    restore(resumed, load_checkpoint(tmp_path / "first", list(components(resumed)))[0])
    iterate(resumed, 4)
    torch.testing.assert_close(
        dict(kept(resumed, tmp_path / "resumed")), dict(kept(unbroken, tmp_path / "second")), rtol=1e-3, atol=1e-4
    )
    assert all(p.is_cuda for p in resumed.algorithm.policy.parameters())


def alike(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


def test_tensors_of_two_devices_do_not_mix() -> None:
    with simulated_device() as device:
        there = torch.ones(3, device=device)
        assert there.device.type == device
        assert float((there + 1).sum()) == 6
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)


def test_a_run_does_not_change_its_device_on_the_way(tmp_path: Path) -> None:
    with simulated_device() as device:
        there = make("ppo", "CartPole-v1", device)
        iterate(there, 1)
        kept(there, tmp_path / "there")
    here = make("ppo", "CartPole-v1", "cpu")
    states, _ = load_checkpoint(tmp_path / "there", list(components(here)))
    with pytest.raises(ConfigError, match="was on simulated and cannot continue on cpu: resume it with --device"):
        restore(here, states)


def train(device: str, run_dir: Path) -> None:
    """Use a device as a person would: train on it, with evaluations and checkpoints, go on, evaluate."""
    small = {"num_envs": 4, "algo.n_steps": 32, "algo.batch_size": 32, "threads": 1, "eval_episodes": 2}
    habilis.train("ppo", "CartPole-v1", run_dir=str(run_dir), device=device, total_timesteps=512, **small)
    habilis.resume(run_dir, total_timesteps=1024, progress=False)
    assert habilis.evaluate(run_dir, episodes=2).mean > 0


@pytest.mark.parametrize(
    "make_device",
    [simulated_device, pytest.param(partial(nullcontext, GPU), marks=[pytest.mark.gpu, NO_GPU])],
    ids=["simulated", "cuda"],
)
def test_a_run_on_another_device(make_device: Callable[[], AbstractContextManager[str]], tmp_path: Path) -> None:
    with make_device() as device:
        train(device, tmp_path / "run")
    exported = habilis.export(tmp_path / "run", tmp_path / "exported")
    assert (exported / "policy.onnx").is_file()
