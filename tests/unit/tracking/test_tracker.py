"""Scalars arrive in real files as they were logged, and a resumed run has every step once."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from habilis.core.errors import HabilisError, MissingExtraError
from habilis.tracking import JsonlWriter, TensorBoardWriter, Tracker, WandbWriter, open_tracking
from habilis.tracking.tracker import to_floats


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_scalar(directory, tag):
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


class Recorder:
    def __init__(self):
        self.written = []

    def write(self, metrics, step):
        self.written.append((metrics, step))

    def close(self):
        self.written.append("closed")


def test_metrics_of_every_kind_become_floats_in_order():
    metrics = {
        "loss": torch.tensor(0.5, requires_grad=True),
        "count": torch.tensor(2**40 + 1),
        "flag": torch.tensor(True),
        "plain": 3,
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "python": False,
        "nan": torch.tensor(float("nan")),
        "loss/2": torch.tensor(-0.25),
    }
    values = to_floats(metrics)
    assert list(values) == list(metrics)
    assert all(type(value) is float for value in values.values())
    assert math.isnan(values.pop("nan"))
    assert values == {
        "loss": 0.5, "count": 2.0**40 + 1, "flag": 1.0, "plain": 3.0, "half": 1.5, "python": 0.0, "loss/2": -0.25,
    }  # fmt: skip


def test_tensors_of_a_kind_are_moved_together(monkeypatch):
    moved = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: moved.append(len(self)) or real(self))
    to_floats({f"m{i}": torch.tensor(float(i)) for i in range(20)})
    assert moved == [20]


def test_a_metric_that_is_no_scalar_is_named():
    with pytest.raises(ValueError, match=r"'train/loss' must be a scalar, got a tensor of shape \(3,\)"):
        Tracker([]).log({"train/loss": torch.zeros(3)}, 1)


def test_the_tracker_hands_on_and_closes():
    first, second = Recorder(), Recorder()
    with Tracker([first, second]) as tracker:
        tracker.log({"a": torch.tensor(1.0)}, step=5)
        tracker.message("nobody shows it")
    assert first.written == second.written == [({"a": 1.0}, 5), "closed"]


def test_json_lines(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write({"train/loss": 0.5, "rollout/ep_rew_mean": math.nan, "x": -math.inf}, 2048)
    assert read_lines(path) == [{"step": 2048, "train/loss": 0.5, "rollout/ep_rew_mean": None, "x": None}]  # not closed
    writer.write({"train/loss": 0.25}, 4096)
    writer.close()
    assert path.read_bytes().endswith(b'{"step": 4096, "train/loss": 0.25}\n')
    JsonlWriter(path).write({}, 6000)
    assert [line["step"] for line in read_lines(path)] == [2048, 4096, 6000]


def test_resume_drops_the_lines_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (1, 2, 3):
        writer.write({"x": 0.1}, step)
        if step == 2:
            state = writer.state_dict()
    with path.open("a") as file:
        file.write('{"step": 4, "x"')  # cut off by a kill
    resumed = JsonlWriter(path)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    resumed.load_state_dict(state)
    resumed.write({"x": 0.2}, 3)
    assert [(line["step"], line["x"]) for line in read_lines(path)] == [(1, 0.1), (2, 0.1), (3, 0.2)]


def test_resume_of_a_file_shorter_than_the_checkpoint_says_keeps_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    writer = JsonlWriter(path)
    writer.load_state_dict({"position": 17})
    writer.write({}, 2)
    writer.load_state_dict({"position": 1000})
    assert [line["step"] for line in read_lines(path)] == [1, 2]


def test_tensorboard_reads_what_was_written(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.write({"train/loss": 0.5, "time/fps": 100.0}, 10)
    assert read_scalar(tmp_path, "train/loss") == [(10, 0.5)]  # not closed
    writer.write({"train/loss": 0.25}, 20)
    writer.close()
    assert read_scalar(tmp_path, "train/loss") == [(10, 0.5), (20, 0.25)]
    assert read_scalar(tmp_path, "time/fps") == [(10, 100.0)]


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    for step in (10, 20, 30, 40):
        writer.write({"x": float(step)}, step)
        if step == 20:
            state = writer.state_dict()
    writer.close()
    resumed = TensorBoardWriter(tmp_path)
    resumed.load_state_dict(state)
    resumed.write({"x": -30.0}, 30)
    assert len(os.listdir(tmp_path)) == 2
    assert read_scalar(tmp_path, "x") == [(10, 10.0), (20, 20.0), (30, -30.0)]
    assert resumed.state_dict() == {"step": 30}


def test_a_run_is_opened_closed_and_resumed(tmp_path, capsys):
    settings = {"total_steps": 100, "tensorboard": True, "wandb_project": None, "config": {}, "progress": True}
    with open_tracking(tmp_path, **settings) as tracker:
        for step in (10, 20, 30):
            tracker.log({"rollout/ep_rew_mean": torch.tensor(float(step))}, step)
            if step == 20:
                state = tracker.state_dict()
    with open_tracking(tmp_path, **settings) as tracker:
        tracker.load_state_dict(state)
        assert tracker.state_dict() == state
        tracker.message("going on")
        tracker.log({"rollout/ep_rew_mean": -1.0}, 30)
    expected = [(10, 10.0), (20, 20.0), (30, -1.0)]
    assert [(x["step"], x["rollout/ep_rew_mean"]) for x in read_lines(tmp_path / "metrics.jsonl")] == expected
    assert read_scalar(tmp_path / "tensorboard", "rollout/ep_rew_mean") == expected
    shown = capsys.readouterr().out
    assert "going on\n" in shown
    assert re.search(r"30 / 100  +30\.0%  .*return 30\.0", shown)


def test_writers_may_come_and_go_between_the_parts_of_a_run(tmp_path):
    settings = {"total_steps": 100, "wandb_project": None, "config": {}, "progress": False}
    with open_tracking(tmp_path, tensorboard=False, **settings) as tracker:
        tracker.log({"x": 1.0}, 1)
        state = tracker.state_dict()
        tracker.log({"x": 9.0}, 2)
    with open_tracking(tmp_path, tensorboard=True, **settings) as tracker:
        tracker.load_state_dict(state)
        tracker.log({"x": 2.0}, 2)
        state = tracker.state_dict()
    assert read_scalar(tmp_path / "tensorboard", "x") == [(2, 2.0)]
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]
    with open_tracking(tmp_path, tensorboard=False, **settings) as tracker:
        tracker.load_state_dict(state)


@pytest.mark.parametrize("make", [lambda p: JsonlWriter(p / "metrics.jsonl"), TensorBoardWriter])
def test_a_full_disk_names_the_file_and_leaves_whole_records(tmp_path, make):
    """A limit on the size of files fails the write midway, as a full disk does."""
    writer = make(tmp_path)
    writer.write({"x": 1.0}, 1)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(HabilisError, match=f"{path.name} could not be written .*make room"):
            writer.write({"x": 2.0}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    writer.write({"x": 3.0}, 3)
    writer.close()
    assert path.read_bytes().startswith(before)


def test_a_missing_wandb_says_which_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed.*habilis\[wandb\]"):
        WandbWriter(tmp_path, project="p", name="n", config={})


def test_wandb_offline(tmp_path, monkeypatch):
    """The real package without its server: it makes its run, takes the scalars and leaves them in a file."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = WandbWriter(tmp_path, project="p", name="n", config={"gamma": 0.99})
    writer.write({"train/loss": 0.5}, 10)
    resumed = WandbWriter(tmp_path, project="p", name="n", config={"gamma": 0.99})
    resumed.load_state_dict(writer.state_dict())
    assert resumed.state_dict() == writer.state_dict()
    writer.close()
    writer.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_importing_tracking_is_quick_and_loads_no_optional_package():
    script = """
import torch, sys, time
start = time.process_time()
import habilis.tracking
assert not {"tensorboard", "wandb", "rich", "tensorflow"} & set(sys.modules), "loaded too early"
from habilis.tracking import TensorBoardWriter
import tempfile, pathlib
TensorBoardWriter(pathlib.Path(tempfile.mkdtemp())).write({"x": 1.0}, 1)
assert "torch.utils.tensorboard" not in sys.modules and "tensorflow" not in sys.modules
import rich.live
print(time.process_time() - start)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 1.0
