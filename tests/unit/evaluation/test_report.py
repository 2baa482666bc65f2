"""Run directories read as they were left, and the page on them: its numbers, its groups, and its independence."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from habilis.core.errors import ConfigError
from habilis.evaluation.evaluator import EvaluationResult
from habilis.evaluation.report import _details, _limits, _spread, environment_charts, group_runs, write_report
from habilis.evaluation.report_page import count, duration, number
from habilis.evaluation.runs import Curve, read_run


class Page(HTMLParser):
    """Collects a page's text, its charts, and whether every tag that was opened is closed."""

    VOID = ("meta", "br", "img", "input", "link")

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.charts, self.links, self.scripts = [], "", {}, [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.words = " ".join(self.text.split())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            chart = json.loads(data, parse_constant=pytest.fail)
            self.charts[chart["name"]] = chart
        elif tag not in ("script", "style"):
            self.text += f" {data}"


def test_page_of_three_seeds(tmp_path, write_run):
    runs = [write_run(tmp_path, seed=seed, success=True) for seed in range(3)]
    output = write_report(runs, tmp_path / "out" / "report.html")
    page = Page(output)
    trees = [json.loads((run / "eval" / "step_000001000000.json").read_text()) for run in runs]
    finals = [tree["deterministic"] for tree in trees]
    assert "PPO on HalfCheetah-v5" in page.text
    low, high = group_runs(read_run(run) for run in runs)[0].interval
    assert min(final["mean"] for final in finals) <= low < high <= max(final["mean"] for final in finals)
    mean = number(np.mean([final["mean"] for final in finals]))
    assert f"Return {mean} 95%: {number(low)} to {number(high)}; 3 seeds" in page.words
    assert f"Success {np.mean([final['success_rate'] for final in finals]):.0%} 95%:" in page.words
    assert "Episode length 1,000 steps, in evaluation Env steps 1M a run Wall time 4 min 4 s a run" in page.words
    assert "3 runs, 12 min 12 s of training in all" in page.words
    assert "seed 0, 1, 2" in page.words
    for final, stochastic in ((tree["deterministic"], tree["stochastic"]) for tree in trees):
        low, high = (number(value) for value in final["interval"])
        figures = " ".join(number(final[name]) for name in ("iqm", "median", "std", "mean_length"))
        row = f"20 {number(final['mean'])} {low} to {high} {figures} {final['success_rate']:.0%}"
        assert re.search(rf"{row} \d+% to \d+% {number(stochastic['mean'])} ", page.words)
    assert "not finished" not in page.text
    (line,) = page.charts["evaluation/return"]["lines"]
    assert len(line["runs"]) == 3
    assert line["x"] == [100_000 * k for k in range(1, 11)]
    assert line["y"][-1] == pytest.approx(np.mean([final["mean"] for final in finals]), rel=1e-4)  # IQM of three
    assert line["low"][-1] == pytest.approx(min(final["mean"] for final in finals), rel=1e-4)
    assert {"reward/forward", "termination/fall", "train/value_loss", "time/fps"} <= set(page.charts)
    assert not {"time/wall", "time/iterations"} & set(page.charts)
    assert page.charts["train/value_loss"]["not_finite"] == 3
    assert page.charts["train/value_loss"]["cut"]
    assert page.charts["train/value_loss"]["y"][1] < 100
    assert page.charts["evaluation/success_rate"]["y"] == [0, 1]
    assert len(page.charts["rollout/ep_rew_mean"]["lines"][0]["x"]) <= 240
    assert {y for run in page.charts["rollout/ep_len_mean"]["lines"][0]["runs"] for y in run["y"]} == {1000}


def test_one_seed_twice_is_not_two(tmp_path, write_run):
    page = Page(write_report([write_run(tmp_path / name, seed=1) for name in "ab"], tmp_path / "report.html"))
    assert "2 runs; different seeds: 1" in page.text


def test_one_run_given_twice_is_one(tmp_path, write_run):
    run = write_run(tmp_path, seed=1)
    page = Page(write_report([run, run / ".." / run.name], tmp_path / "report.html"))
    assert "One run" in page.text
    low, high = (number(value) for value in read_run(run).evaluations[-1].deterministic.interval)
    assert f"95%: {low} to {high}; 20 episodes" in page.words  # one run tells nothing of how runs differ


def test_one_episode_of_one_run_has_no_interval(tmp_path, write_run):
    run = write_run(tmp_path)
    one = EvaluationResult(returns=np.array([7.0]), lengths=np.array([3]), successes=None)
    for path in (run / "eval").iterdir():
        path.write_text(json.dumps({"step": 1_000_000, "deterministic": one.to_dict()}))
    page = Page(write_report([run], tmp_path / "report.html"))
    assert "Return 7.00 1 episode" in page.words
    assert "95%:" not in page.words
    assert "1 7.00 - 7.00 7.00 0" in page.words


def test_runs_of_different_lengths_are_told_apart(tmp_path, write_run):
    runs = [write_run(tmp_path / str(total), total=total) for total in (500_000, 1_000_000)]
    assert [len(group.runs) for group in group_runs(read_run(run) for run in runs)] == [1, 1]


def test_how_runs_were_watched_and_where_they_ran_makes_no_other_method(tmp_path, write_run):
    runs = [write_run(tmp_path, seed=seed) for seed in range(2)]
    path = runs[1] / "config.json"
    tree = json.loads(path.read_text())
    tree["config"] |= {"name": "b", "run_dir": "b", "device": "cuda", "threads": 4, "env_threads": 4, "env_async": True}
    tree["config"] |= {"eval_freq": 9, "eval_episodes": 9, "eval_stochastic": True, "checkpoint_freq": 9}
    tree["config"] |= {"keep_checkpoints": 9, "log_freq": 9, "tensorboard": False, "wandb_project": "b"}
    path.write_text(json.dumps(tree))
    assert [len(group.runs) for group in group_runs(read_run(run) for run in runs)] == [2]


def test_a_term_is_averaged_over_the_episodes_that_told_it(tmp_path, write_run):
    run = write_run(tmp_path)
    path = run / "eval" / "step_000001000000.json"
    tree = json.loads(path.read_text())
    tree["deterministic"]["terms"]["tracking_error"] = [None, 2.0, *[5.0] * 18]
    path.write_text(json.dumps(tree))
    assert "tracking_error 4.84" in Page(write_report([run], tmp_path)).words


def test_what_was_never_finite_is_said(tmp_path, write_run):
    run = write_run(tmp_path)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1000000, "train/lost": null}\n')
    page = Page(write_report([run], tmp_path))
    assert "train/lost was never finite" in page.text
    assert "train/lost" not in page.charts


def test_page_needs_nothing_from_elsewhere(tmp_path, write_run):
    run = write_run(tmp_path)
    (run / "videos").mkdir()
    (run / "videos" / "step_000001000000.mp4").write_bytes(b"\0\1film")
    (run / "videos" / "took_long_ago.mp4").write_bytes(b"another")
    os.utime(run / "videos" / "took_long_ago.mp4", (0, 0))
    page = Page(write_report([run], tmp_path))
    assert page.links == ["data:video/mp4;base64,AAFmaWxt"]
    assert not re.search(r"url\((?!#)", (tmp_path / "report.html").read_text().replace("`url(#${id})`", ""))


def test_a_large_film_is_linked(tmp_path, monkeypatch, write_run):
    monkeypatch.setattr("habilis.evaluation.report_page.LARGEST_VIDEO", 3)
    run = write_run(tmp_path)
    (run / "videos").mkdir()
    (run / "videos" / "film.mp4").write_bytes(b"film")
    (link,) = Page(write_report([run], tmp_path)).links
    assert (tmp_path / link).read_bytes() == b"film"


def test_runs_that_differ_in_more_than_the_seed_are_told_apart(tmp_path, write_run):
    runs = [write_run(tmp_path, seed=seed) for seed in range(2)]
    runs += [write_run(tmp_path, seed=seed, learning_rate=0.001) for seed in range(2)]
    runs += [write_run(tmp_path, algorithm="sac", total=500_000)]
    groups = group_runs(read_run(run) for run in runs)
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("PPO learning_rate=0.0003", 2),
        ("PPO learning_rate=0.001", 2),
        ("SAC", 1),
    ]
    page = Page(write_report(runs, tmp_path))
    assert [line["label"] for line in page.charts["evaluation/return"]["lines"]] == [group.label for group in groups]
    assert page.charts["train/value_loss"]["not_finite"] == 5
    differing = page.text.split("What differs")[1].split("Every value")[0]
    assert "algo.learning_rate" in differing
    assert "algo.gamma" not in differing
    assert "seed" not in differing.replace("seed 0", "")


def test_a_line_goes_as_far_as_all_of_its_runs(tmp_path, write_run):
    runs = [read_run(write_run(tmp_path, seed=0)), read_run(write_run(tmp_path, seed=1, reached=0.5))]
    sections = dict(environment_charts(group_runs(runs)))
    (line,) = next(chart for chart in sections["Learning"] if chart["name"] == "evaluation/return")["lines"]
    assert line["x"] == [100_000 * k for k in range(1, 6)]
    assert [run["x"][-1] for run in line["runs"]] == [1_000_000, 500_000]
    page = Page(write_report([run.path for run in runs], tmp_path))
    assert "2 seeds, at 500k to 1M env steps" in page.text


def test_runs_that_never_were_at_the_same_step_have_no_line_between_them():
    early, late = (Curve(np.array(steps), np.ones(2)) for steps in ([1, 2], [5, 6]))
    line = _spread([early, late])
    assert (line["x"], [run["x"] for run in line["runs"]]) == ([5, 6], [[1, 2], [5, 6]])
    assert "low" not in line


def test_a_long_curve_is_averaged_in_pieces(write_run, tmp_path):
    run = write_run(tmp_path, lines=2400)
    chart = Page(write_report([run], tmp_path)).charts["rollout/ep_rew_mean"]
    values = read_run(run).curves["rollout/ep_rew_mean"].values
    (line,) = chart["lines"]
    assert len(line["y"]) == 240
    assert line["y"] == pytest.approx(values.reshape(240, 10).mean(axis=1), rel=1e-4)


def test_two_environments_have_their_own_charts(tmp_path, write_run):
    runs = [write_run(tmp_path, env="Hopper-v5"), write_run(tmp_path, env="Ant-v5")]
    text = Page(write_report(runs, tmp_path)).text
    assert "PPO on Hopper-v5, Ant-v5" in text
    assert text.count("Return in evaluation") == 2


def test_a_killed_run_is_reported_as_far_as_it_came(tmp_path, write_run):
    run = write_run(tmp_path, reached=0.1, evaluations=0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 102500, "time/wa')
    (run / "eval" / "step_000000100000.json").write_text('{"step": 100000, "determ')
    page = Page(write_report([run], tmp_path))
    assert "not finished, 100k of 1M env steps" in page.text
    trained = read_run(run).curves["rollout/ep_rew_mean"].values[-1]
    assert f"Return {number(trained)} while training, not evaluated yet" in page.words
    assert page.charts["rollout/ep_rew_mean"]["x"] == [0, 100_000]


def test_runs_without_episodes_or_without_anything(tmp_path, write_run):
    silent = write_run(tmp_path, reached=0.02, evaluations=0, episodes_end=False)
    assert "no episode has ended yet" in Page(write_report([silent], tmp_path)).text
    unborn = write_run(tmp_path, seed=1)
    (unborn / "metrics.jsonl").unlink()
    assert "not finished" not in Page(write_report([unborn], tmp_path)).text  # as its evaluations tell
    for path in (unborn / "eval").iterdir():
        path.unlink()
    page = Page(write_report([unborn], tmp_path))
    assert page.charts == {}
    assert "0 of 1M env steps" in page.text


def test_a_resumed_run_counts_from_where_it_was_resumed(tmp_path):
    lines = [(100, 1.0), (200, 2.0), (300, 3.0), (200, 20.0), (250, 25.0)]
    text = "".join(json.dumps({"step": step, "a": value}) + "\n" for step, value in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 250, "b": 5.0}\n')
    curves = read_run(tmp_path).curves
    assert curves["b"].steps.tolist() == [250]  # what a step's second line tells is added to the first
    curve = curves["a"]
    assert curve.steps.tolist() == [100, 200, 250]
    assert curve.values.tolist() == [1.0, 20.0, 25.0]


def test_what_comes_from_files_cannot_write_into_the_page(tmp_path, write_run):
    run = write_run(tmp_path)
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["env"] = "<script>alert(1)</script>"
    (run / "config.json").write_text(json.dumps(saved))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1_000_000, "train/</script><b>": 1.0}) + "\n")
    html = write_report([run], tmp_path).read_text()
    assert "alert(1)</script>" not in html
    assert "train/</script>" not in html


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither config\.json nor metrics\.jsonl"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_figures_read_as_people_say_them():
    assert [number(v) for v in (5123.4, -81.44, 1.234, 0.03123, 0)] == ["5,123", "-81.4", "1.23", "0.0312", "0"]
    assert [count(v) for v in (940, 12_500, 1_000_000, 999_499, 999_936)] == ["940", "12.5k", "1M", "999k", "1M"]
    assert [duration(v) for v in (42, 545, 11_520)] == ["42 s", "9 min 5 s", "3 h 12 min"]


def test_labels_tell_all_groups_apart():
    base = {"algo.learning_rate": 0.001, "algo.gamma": 0.99, "algo.gae_lambda": 0.95, "algo.clip_range": 0.2}
    methods = [base, *({**base, key: 0.5} for key in base)]
    labels = [_details(mine, [other for other in methods if other is not mine]) for mine in methods]
    assert len(set(labels)) == len(labels)
    assert labels[0] == "learning_rate=0.001, gamma=0.99, gae_lambda=0.95, clip_range=0.2"
    assert _details(base, [{**base, "algo.gamma": 0.5}]) == "gamma=0.99"


def test_only_shares_have_an_axis_from_zero_to_one():
    lines = [{"y": [0.0, 12.0], "runs": []}]
    assert _limits("eval/success_rate", lines)[:2] == (0.0, 1.0)
    assert _limits("success/lift", lines)[:2] == _limits("rollout/success_rate", lines)[:2] == (0.0, 1.0)
    assert _limits("info/consecutive_successes", lines)[1] > 12
