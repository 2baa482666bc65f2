"""A table from beginning to end on the command line: train, go on, play, report, export."""

from __future__ import annotations

import json

from habilis.api import lay_out, load
from habilis.cli import main

ENV = "habilis/GridWorld-v0"


def test_a_table_from_beginning_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    train = ["train", "q_learning", "--env", ENV, "--no-tensorboard", "--total-timesteps", "8192"]
    assert main([*train, "--eval-freq", "4096", "--run-dir", "run"]) == 0
    assert "return            9.80" in capsys.readouterr().out
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert {"train/td_error", "train/exploration_rate", "rollout/success_rate", "time/fps"} <= set(line)
    assert main(["train", "--resume", "run", "--total-timesteps", "10240"]) == 0
    assert load("run").visits.sum() == 10_240
    capsys.readouterr()
    assert main(["play", "run"]) == 0
    drawn = capsys.readouterr().out
    rows = drawn.splitlines()
    assert [rows[0].split(), rows[1].split()] == [["→", "→", "→", "G"], ["9.60", "9.80", "10.00"]]
    assert "step_000000010240_seed0.mp4" in drawn
    assert main(["report", "run"]) == 0
    assert '<figure class="grid">' in (tmp_path / "run" / "report.html").read_text()
    assert main(["export", "run"]) == 0
    assert main(["verify", "run/export"]) == 0
    assert lay_out("run").actions[0] == 1
    capsys.readouterr()
    assert main(["play", "run", "--env-kwargs", "size", "6"]) == 2
    assert "of shape (16,), and habilis/GridWorld-v0 has (36,)" in capsys.readouterr().err


def test_what_a_table_cannot_do_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for call, told in [
        (["--env", "CartPole-v1", "--algo.rounding", "0.1"], "exclude each other"),
        (["--env", "Pendulum-v1"], "use sac"),
        (["--env", ENV, "--device", "meta"], "processor's memory"),
        (["--env", "MountainCar-v0"], "--algo.rounding"),
    ]:
        assert main(["train", "sarsa", *call]) == 2
        assert told in capsys.readouterr().err
