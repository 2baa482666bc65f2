"""Suites: what a finished, a stopped, a killed and a failed run come to when the suite is run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import habilis
from habilis import bench
from habilis.api import default_config
from habilis.bench import BenchError, run_suite
from habilis.cases import Case, Goal
from habilis.checkpoint import CheckpointStore
from habilis.cli.train import read_config
from habilis.core.config import to_dict
from habilis.core.errors import ConfigError
from habilis.evaluation.evaluator import EvaluationResult
from habilis.suites import SUITES


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("PYTHONPATH", str(Path(habilis.__file__).parents[1]))
        run_suite("smoke", seeds=2, jobs=2, output=Path("out"))
    return path


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of a finished suite to work on."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(habilis.__file__).parents[1]))
    return tmp_path


def refuse(*arguments, **keywords):
    raise AssertionError("a finished run is not run again")


def test_the_suite_of_the_foundation_is_whole():
    cases = {case.name: case for case in SUITES["foundation"]}
    assert {name: (case.total_timesteps, case.goals[0].value) for name, case in cases.items()} == {
        "ppo-CartPole-v1": (50_000, 490),
        "ppo-Pendulum-v1": (100_000, -200),
        "ppo-HalfCheetah-v5": (1_000_000, 5000),
        "ppo-Hopper-v5": (1_000_000, 2500),
        "sac-Pendulum-v1": (20_000, -160),
        "sac-HalfCheetah-v5": (100_000, 6000),
        "sac-Hopper-v5": (200_000, 2300),
    }
    assert len({case.fingerprint() for case in cases.values()}) == len(cases)


def test_results_hold_what_a_reader_needs(finished):
    tree = json.loads((finished / "out/smoke/ppo-probe-ObservationReward-v0.json").read_text())
    runs = tree["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    (result,) = tree["results"]
    assert result["values"] == [run["measures"]["return"] for run in runs]
    assert result["mean"] == pytest.approx(sum(result["values"]) / 2)
    assert result["interval"][0] <= result["mean"] <= result["interval"][1]
    assert [run["steps"] for run in runs] == [512, 512]
    curve = runs[0]["curve"]
    assert curve["steps"] == sorted(curve["steps"])
    assert curve["steps"][-1] == 512
    assert len(curve["returns"]) == len(curve["steps"])
    assert min(run["wall_seconds"] for run in runs) > 0
    assert "torch" in runs[0]["versions"]
    assert tree["config"]["threads"] == 1
    table = (finished / "out/smoke.md").read_text()
    assert "| ppo | probe/ObservationReward-v0 | 512 | 2 | return | **" in table


def test_goals_are_judged_by_the_mean_over_seeds(tmp_path):
    case = Case(
        algorithm="ppo",
        env="probe/Memory-v0",
        goals=(Goal(5), Goal(0.25, "error", at_most=True), Goal(0.9, "success_rate"), Goal(3, at=400)),
    )
    for seed, (mean, errors, by_the_way) in enumerate([(4.0, [0.1, None], 2.0), (8.0, [0.2, 0.4], 5.0)]):
        run = tmp_path / f"s{seed}"
        evaluation = {"mean": mean, "success_rate": 0.5, "terms": {"error": errors, "unknown": [None, None]}}
        evaluation |= {"episodes": 20, "seed": 1000 + seed}
        record = {"seed": seed, "evaluation": evaluation, "steps": 900, "wall_seconds": 60.0, "command": ""}
        (run / "eval").mkdir(parents=True)
        (run / "bench.json").write_text(json.dumps({**record, "versions": {}}))
        for step, value in ((100, 0.0), (400, by_the_way), (900, 9.0)):
            result = EvaluationResult(returns=np.array([value]), lengths=np.array([1]), successes=None)
            tree = {"step": step, "deterministic": result.to_dict()}
            (run / "eval" / f"step_{step:012d}.json").write_text(json.dumps(tree))
    path = tmp_path / "out" / "mine" / f"{case.name}.json"
    bench._gather(case, tmp_path, path)
    results = json.loads(path.read_text())["results"]
    assert [r["measure"] for r in results] == ["return", "error", "success_rate", "return at 400"]
    assert [r["mean"] for r in results] == pytest.approx([6.0, 0.2, 0.5, 3.5])
    assert [r["reached"] for r in results] == [True, True, False, True]
    rows = bench._write_table([case], tmp_path / "out", "mine").read_text().splitlines()[-4:]
    assert "| error | **0.2** | [0.1, 0.3] | 0.2 | at most 0.25 | yes |" in rows[1]
    assert "| success_rate | **0.5** |" in rows[2]
    assert rows[2].endswith("| no |  | 1.0 |")  # a minute
    late = [{"measures": {"return": value}} for value in (0.0, 0.0, 0.0, 40.0)]
    told = bench._over_seeds(late, Goal(10))
    assert (told["mean"], told["iqm"], told["reached"]) == (10.0, 0.0, True)
    alone = bench._over_seeds(late[-1:], None)
    assert (alone["mean"], alone["interval"]) == (40.0, None)
    assert "| **40.0** |  | 40.0 |" in bench._row({**json.loads(path.read_text()), "reference": ""}, alone)


def test_numbers_of_a_table_are_short():
    assert [bench._number(value) for value in (-1234.56, 98.76, -0.5, 0.01234)] == ["-1234.6", "98.8", "-0.5", "0.0123"]


def test_the_score_is_that_of_the_last_policy_on_its_own_seeds(finished):
    (run,) = finished.glob("runs/bench/*/s1")
    record = json.loads((run / "bench.json").read_text())
    again = habilis.evaluate(run, episodes=20, seed=1001).to_dict()
    assert record["evaluation"].pop("checkpoint").endswith("s1/checkpoints/step_000000000512")
    assert record["evaluation"] == again
    assert record["command"].startswith("habilis train ppo --env probe/ObservationReward-v0 --total-timesteps 512")
    smoke = SUITES["smoke"][0]
    config = to_dict(default_config("ppo", smoke.env, seed=1, **smoke.settings))
    assert {**record["config"], "run_dir": None} == config


def test_finished_runs_are_kept(place, monkeypatch):
    monkeypatch.setattr(bench._Workers, "run", refuse)
    shutil.rmtree("out")
    table = run_suite("smoke", seeds=2, output=Path("out"))
    assert "| 512 | 2 |" in table.read_text()
    (case,) = SUITES["smoke"]
    monkeypatch.setattr(bench, "SUITES", {"smoke": (case, replace(case, label="again"))})
    rows = run_suite("smoke", seeds=2, only="again", output=Path("out")).read_text().splitlines()[-2:]
    assert [row.split(" | ")[0] for row in rows] == ["| ppo", "| again"]


def test_results_are_built_upon_where_the_runs_are_not(place, monkeypatch):
    path = place / "out/smoke/ppo-probe-ObservationReward-v0.json"
    before = json.loads(path.read_text())
    (case,) = SUITES["smoke"]
    monkeypatch.setattr(bench, "SUITES", {"smoke": (case, replace(case, label="again"))})
    shutil.copy(path, path.with_name("again-probe-ObservationReward-v0.json"))
    shutil.rmtree(place / "runs")
    run_suite("smoke", seeds=3, only="ppo", output=Path("out"))
    after = json.loads(path.read_text())
    assert [run["seed"] for run in after["runs"]] == [0, 1, 2]
    assert after["runs"][:2] == before["runs"]
    assert len(list(place.glob("runs/bench/*/s*/bench.json"))) == 1
    table = Path("out/smoke.md").read_text()
    assert "| 512 | 3 |" in table
    assert "| ppo | probe/ObservationReward-v0 | 512 | 2 |" in table  # the case that was left out keeps its row


def test_results_of_another_configuration_or_goal_are_not_built_upon(place, monkeypatch):
    case = SUITES["smoke"][0]
    path = place / "out/smoke/ppo-probe-ObservationReward-v0.json"
    nowhere = place / "nowhere"
    assert set(bench._gather(case, nowhere, path)) == {0, 1}
    assert set(bench._gather(replace(case, overrides={**case.overrides, "algo.gamma": 0.5}), nowhere, path)) == set()
    assert set(bench._gather(replace(case, goals=(Goal(1, "height"),)), nowhere, path)) == set()
    assert set(bench._gather(replace(case, episodes=5), nowhere, path)) == set()
    assert set(bench._gather(case, nowhere, path)) == {0, 1}  # and the file was left as it was


def test_runs_are_evaluated_again_where_the_suite_asks_for_other_episodes(place, monkeypatch):
    case = replace(SUITES["smoke"][0], episodes=3)
    monkeypatch.setattr(bench, "SUITES", {"smoke": (case,)})
    assert bench._gather(case, place / "runs/bench" / case.folder, place / "new.json") == {}
    run_suite("smoke", seeds=1, output=Path("out"))
    record = json.loads((place / "runs/bench" / case.folder / "s0/bench.json").read_text())
    assert record["evaluation"]["episodes"] == 3
    tree = json.loads(Path(f"out/smoke/{case.name}.json").read_text())
    assert "3 episodes" in tree["evaluation"]
    assert [run["seed"] for run in tree["runs"]] == [0]


def test_what_a_run_says_itself_counts_before_what_was_told_of_it(place):
    case, path = SUITES["smoke"][0], place / "out/smoke/ppo-probe-ObservationReward-v0.json"
    tree = json.loads(path.read_text())
    before = tree["runs"][0]["measures"]["return"]
    tree["runs"][0]["measures"]["return"] = before - 1
    path.write_text(json.dumps(tree))
    assert bench._gather(case, place / "runs/bench" / case.folder, path)[0]["measures"]["return"] == before


def test_an_option_that_is_newer_than_a_result_is_at_its_default(place):
    case, path = SUITES["smoke"][0], place / "out/smoke/ppo-probe-ObservationReward-v0.json"
    tree = json.loads(path.read_text())
    del tree["config"]["algo"]["clip_range"], tree["config"]["plugins"]
    path.write_text(json.dumps(tree))
    assert set(bench._gather(case, place / "nowhere", path)) == {0, 1}
    tree["config"]["algo"]["vanished"] = 1
    path.write_text(json.dumps(tree))
    assert set(bench._gather(case, place / "nowhere", path)) == set()


def test_an_option_without_effect_may_have_been_another(place):
    case, path = SUITES["smoke"][0], place / "out/smoke/ppo-probe-ObservationReward-v0.json"
    tree = json.loads(path.read_text())
    assert "sde_sample_freq" not in tree["config"]["algo"]
    for given, counts in (({"sde_sample_freq": -1}, {0, 1}), ({"sde_sample_freq": -1, "use_sde": True}, set())):
        tree["config"]["algo"] |= given
        path.write_text(json.dumps(tree))
        assert set(bench._gather(case, place / "nowhere", path)) == counts


def test_results_of_another_configuration_are_kept_beside(place):
    path = place / "out/smoke/ppo-probe-ObservationReward-v0.json"
    tree = json.loads(path.read_text())
    tree["config"]["algo"]["gamma"] = 0.5
    path.write_text(json.dumps(tree))
    shutil.rmtree(place / "runs")
    run_suite("smoke", seeds=1, output=Path("out"))
    assert [run["seed"] for run in json.loads(path.read_text())["runs"]] == [0]
    (beside,) = path.parent.glob("earlier/*.json")
    assert json.loads(beside.read_text()) == tree


def test_damaged_results_are_named(place):
    path = next(Path("out/smoke").glob("*.json"))
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"\.json is damaged .*: put it back as it was, or move it away"):
        run_suite("smoke", seeds=2, jobs=2, output=Path("out"))


def test_other_hyper_parameters_are_another_run(place, monkeypatch):
    before = SUITES["smoke"][0].fingerprint()
    monkeypatch.setattr("habilis.api.preset", lambda algorithm, env: {"algo.gamma": 0.5})
    assert SUITES["smoke"][0].fingerprint() != before


def test_runs_that_were_stopped_or_killed_end_as_if_they_had_not_been(place):
    """Seed 0 lost its last checkpoint and is resumed; seed 1 has none at all and starts again."""
    (folder,) = place.glob("runs/bench/*")
    results = [folder / f"s{seed}" / "bench.json" for seed in (0, 1)]
    expected = [json.loads(path.read_text())["evaluation"] for path in results]
    for path in results:
        path.unlink()
    stopped = CheckpointStore(folder / "s0" / "checkpoints")
    assert len(stopped.steps()) > 1
    shutil.rmtree(stopped.path(stopped.steps()[-1]))
    shutil.rmtree(folder / "s1" / "checkpoints")
    shutil.rmtree("out")
    run_suite("smoke", seeds=2, jobs=2, output=Path("out"))
    assert [json.loads(path.read_text())["evaluation"] for path in results] == expected
    resumed = ["--resume" in (folder / f"s{seed}" / "command.txt").read_text() for seed in (0, 1)]
    assert resumed == [True, False]
    assert stopped.steps()[-1] == 512


def test_a_failure_is_told_and_the_others_go_on(place, monkeypatch):
    good, bad = SUITES["smoke"][0], Case(algorithm="ppo", env="probe/Nothing-v0", total_timesteps=64)
    shutil.rmtree("runs")
    monkeypatch.setattr(bench, "SUITES", {"mixed": (bad, good)})
    told: list[str] = []
    with pytest.raises(BenchError, match=r"1 of 2 runs failed.*there is no environment 'probe/Nothing-v0'"):
        run_suite("mixed", seeds=1, output=Path("out"), say=told.append)
    assert any(line.startswith(f"{good.name} seed 0: return") for line in told)
    assert good.env in Path("out/mixed.md").read_text()


def test_cases_can_be_chosen():
    names = [case.name for case in bench.choose_cases(SUITES["value"], "dqn-cartpole-v1")]
    assert names == ["dqn-CartPole-v1"]  # though it is a part of other names
    names = [case.name for case in bench.choose_cases(SUITES["value"], "qn-Cart")]
    assert {"dqn-CartPole-v1", "iqn-CartPole-v1", "double_dqn-CartPole-v1"} < set(names)
    assert bench.choose_cases(SUITES["value"], None) == list(SUITES["value"])
    names = [case.name for case in bench.choose_cases(SUITES["value"], "dqn longer")]
    assert names == ["dqn-longer-CartPole-v1"]
    assert len(bench.choose_cases(SUITES["value"], "dqn-habilis/Catch")) == 1
    with pytest.raises(ConfigError, match="it has ppo-probe-ObservationReward-v0"):
        run_suite("smoke", only="sac")


def test_an_interrupted_suite_ends_with_its_runs_saved(tmp_path):
    code = """
import sys
from pathlib import Path
from habilis import bench
from habilis.cli import main
case = bench.Case(algorithm="ppo", env="CartPole-v1", total_timesteps=10_000_000, overrides={"log_freq": 1000})
bench.SUITES = {"long": (case,)}
sys.exit(main(["bench", "long", "--seeds", "2", "--jobs", "2"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(habilis.__file__).parents[1])}
    suite = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if sum(path.stat().st_size > 0 for path in tmp_path.glob("runs/bench/*/s*/metrics.jsonl")) == 2:
            break
    suite.send_signal(signal.SIGTERM)
    _, told = suite.communicate(timeout=60)
    assert suite.returncode == 130, told
    for run in tmp_path.glob("runs/bench/*/s?"):
        assert CheckpointStore(run / "checkpoints").latest() is not None
        assert not (run / "bench.json").exists()


@pytest.mark.parametrize("case", [case for name in SUITES for case in SUITES[name]], ids=lambda case: case.name)
def test_the_command_line_of_a_case_says_its_configuration(case):
    algorithm, *flags = case.flags()
    assert read_config(algorithm, flags) == default_config(algorithm, case.env, **case.settings)
