"""Progress reads well in a log file and on a terminal, and speaks of the present speed."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import habilis.tracking
from habilis.tracking import Progress, Tracker
from habilis.tracking.console import Status, format_duration, format_line, render
from habilis.tracking.progress import SpeedMeter

METRICS = {
    "rollout/ep_rew_mean": 1234.5,
    "rollout/ep_len_mean": 1000.0,
    "train/policy_loss": -0.0123456,
    "train/approx_kl": 0.011,
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run(progress, clock, steps, seconds, metrics=METRICS):
    for step in steps:
        clock.now += seconds
        progress.update(step, metrics)


def test_a_line_says_all_in_plain_words():
    line = format_line(Status(120_832, 1_000_000, 9_650.0, METRICS))
    assert line == "    120,832 / 1,000,000   12.1%  9,650 steps/s  return 1234.5  length 1000  left 1m31s"
    full = {**METRICS, "rollout/success_rate": 0.85, "eval/mean_reward": 99.0, "eval/success_rate": 1.0}
    line = format_line(Status(5, 1000, None, full))
    assert line == "      5 / 1,000    0.5%  return 1234.5  length 1000  success 85%  eval 99.0  eval success 100%"
    assert "100.0%" in format_line(Status(1_024, 1_000, 10.0, {}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (91, "1m31s"), (7500, "2h05m"), (3 * 86400 + 4 * 3600 + 5, "3d04h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_log_file_gets_a_line_every_ten_seconds_and_the_end(clock):
    stream = io.StringIO()
    with Progress(1000, stream=stream, clock=clock) as progress:
        run(progress, clock, range(10, 510, 10), seconds=1.0)
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[0]) for line in lines] == [10, 110, 210, 310, 410, 500]
    assert all("10 steps/s" in line for line in lines)
    assert "left 50s" in lines[-1]
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()


def test_an_evaluation_shows_at_once_and_the_end_only_once(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream, clock=clock)
    run(progress, clock, [10, 20, 30], seconds=1.0)
    progress.update(30, {"eval/mean_reward": 7.0})
    progress.message("best so far")
    progress.close()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["10", "30", "best"]
    assert "return 1234.5  length 1000  eval 7.0" in lines[1]  # what was told before still holds


def test_the_first_divergence_is_told_and_only_the_first(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream, clock=clock)
    run(progress, clock, [10], seconds=1.0)
    run(progress, clock, [20, 30], seconds=1.0, metrics={**METRICS, "rollout/diverged_steps": 3.0})
    lines = stream.getvalue().splitlines()
    assert [line.startswith("warning: simulations diverged in 3 steps so far") for line in lines] == [False, True]


def test_a_run_that_did_nothing_shows_nothing(clock):
    stream = io.StringIO()
    with Progress(1000, stream=stream, clock=clock) as progress:
        progress.restart(500)
    assert stream.getvalue() == ""


def test_the_speed_after_a_resume_is_that_of_this_process(clock):
    stream = io.StringIO()
    progress = Progress(1_000_000, stream=stream, clock=clock)
    clock.now += 5
    progress.restart(500_000)
    run(progress, clock, [500_100], seconds=1.0)
    assert "  100 steps/s" in stream.getvalue()


def test_the_speed_is_of_the_last_half_minute():
    meter = SpeedMeter(0, 0.0)
    assert meter.speed is None
    for second in range(1, 101):
        meter.update(second * 10, float(second))  # 10 steps/s
    assert meter.speed == pytest.approx(10)
    for second in range(101, 132):
        meter.update(1000 + (second - 100) * 500, float(second))
    assert meter.speed == pytest.approx(500)


def test_the_speed_meter_stays_small_and_right_when_asked_often():
    meter = SpeedMeter(0, 0.0)
    for step in range(1, 100_001):
        meter.update(step, step * 1e-3)
    assert meter.speed == pytest.approx(1000, rel=0.01)
    assert len(meter._marks) < 400


def screen(status, width=100):
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(render(status))
    return console.export_text()


def test_the_display_shows_figures_and_losses():
    text = screen(
        Status(120_832, 1_000_000, 9_650.0, {**METRICS, "rollout/success_rate": 0.5, "eval/mean_reward": 3.0})
    )
    for part in ("120,832 / 1,000,000", "12.1%", "9,650 steps/s", "return 1234.5", "length 1000", "success 50%"):
        assert part in text
    for part in ("eval 3.0", "left 1m31s", "policy_loss -0.01235", "approx_kl 0.011"):
        assert part in text
    assert "train" not in screen(Status(1, 10, None, {"rollout/ep_len_mean": 3.0}))


def test_the_display_fits_a_screen():
    many = {f"train/loss_{i}": 1.0 for i in range(50)}
    lines = screen(Status(1, 10, 1.0, {**METRICS, **many}), width=80).splitlines()
    assert len(lines) < 10
    assert all(len(line) <= 80 for line in lines)


ON_A_TERMINAL = """
import sys
from habilis.tracking import Progress, Tracker
assert sys.stdout.isatty()
with Progress(1000) as progress:
    progress.update(100, {"rollout/ep_rew_mean": 1.0, "train/loss": 0.5})
    progress.message("[a message] above")
    print("a stray print")
    progress.update(900, {"rollout/ep_rew_mean": 2.0})
"""


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_real_terminal(term):
    """A pseudo-terminal gets a live display, drawn in place, unless it says that it cannot."""
    if sys.platform == "win32":
        pytest.skip("there are no pseudo-terminals")
    main, follower = os.openpty()
    environment = {**os.environ, "TERM": term, "PYTHONPATH": str(Path(habilis.tracking.__file__).parents[2])}
    done = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stdout=follower, env=environment)
    os.close(follower)
    shown = b""
    try:
        while data := os.read(main, 65536):
            shown += data
    except OSError:  # Linux says so when the other side has closed
        pass
    os.close(main)
    assert done.wait(timeout=30) == 0
    text = shown.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "[a message] above" in plain
    assert "a stray print" in plain
    assert "900 / 1,000" in plain
    assert "return 2.0" in plain
    assert ("\x1b[" in text) == (term != "dumb")
    if term != "dumb":
        assert plain.index("[a message]") < plain.rindex("return 2.0")
        assert "\x1b[?25h" in text, "the cursor stays hidden"


def test_a_resumed_tracker_restarts_the_speed(clock):
    stream = io.StringIO()
    tracker = Tracker([], Progress(1_000_000, stream=stream, clock=clock))
    tracker.load_state_dict({"step": 500_000, "writers": {}})
    clock.now += 1
    tracker.log({}, 500_100)
    assert "  100 steps/s" in stream.getvalue()
