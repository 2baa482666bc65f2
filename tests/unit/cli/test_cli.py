"""The command line from outside: what it prints, where it writes, how it ends. Most calls run in this process."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import habilis
from habilis.checkpoint import CheckpointStore, load_checkpoint
from habilis.cli import COMMANDS, main
from habilis.cli.parse import read_values
from habilis.cli.train import read_config
from habilis.core import acceleration
from habilis.core.config import to_dict
from habilis.core.errors import ConfigError
from habilis.deploy.runtime import OnnxPolicy
from habilis.envs.make import register_native
from habilis.envs.probes import ProbeEnv
from habilis.evaluation.runs import read_evaluations
from habilis.plugins import PLUGINS
from habilis.training.session import Session

ENV = "probe/ObservationReward-v0"
TINY = ["--total-timesteps", "256", "--num-envs", "4", "--algo.n-steps", "32", "--algo.batch-size", "32"]
TINY += ["--eval-episodes", "2", "--no-tensorboard"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", "ppo", "--env", ENV, *TINY, "--run-dir", str(path)]) == 0
    return path


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(habilis.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy():
    done = python("-X", "importtime", "-m", "habilis", "--help")
    assert done.returncode == 0
    assert all(f"habilis {name}" in done.stdout for name in COMMANDS)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "habilis.cli" in modules
    assert not {"torch", "numpy", "mujoco", "tyro", "rich", "gymnasium"} & modules


def test_every_command_explains_itself(capsys):
    for name in COMMANDS:
        try:
            code = main([name, "--help"])
        except SystemExit as end:
            code = end.code
        assert code == 0
        assert f"habilis {name}" in capsys.readouterr().out


def test_whoever_reads_may_go_before_all_is_said():
    environment = {**os.environ, "PYTHONPATH": str(Path(habilis.__file__).parents[1]), "PYTHONUNBUFFERED": ""}
    call = [sys.executable, "-m", "habilis", "--version"]  # whose one line is held back until the end
    with subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"habilis {habilis.__version__}\n"


@pytest.mark.parametrize(
    ("call", "code", "told"),
    [
        (["tran"], 2, "did you mean 'train'"),
        (["train", "pppo", "--env", ENV], 2, "did you mean 'ppo'"),
        (["train", "ppo", "--env", "CartPol-v1"], 2, "did you mean 'CartPole-v1'"),
        (["train", "ppo", "--env", ENV, "--num-envs", "0"], 2, "num_envs must be positive"),
        (["train", "--env", ENV], 2, "starts with the algorithm"),
        (["train", "sac", "--env", ENV], 2, "SAC needs real-valued actions"),
        (["train", "--resume", "nowhere"], 2, "nowhere"),
        (["evaluate", "nowhere"], 2, "nowhere does not exist"),
        (["export", "nowhere"], 2, "nowhere does not exist"),
        (["verify", "nowhere"], 1, "nowhere"),
        (["report", "nowhere"], 2, "nowhere"),
        (["bench", "smok"], 2, "did you mean 'smoke'"),
        (["bench", "smoke", "--only", "sac"], 2, "has no case 'sac'"),
        (["doctor", "--env", ENV, "--steps", "0"], 2, "--steps must be positive, got 0"),
        (["doctor", "--env", ENV, "--env-kwargs", "id", "3"], 2, "`make_env` has an argument of that name itself"),
        (["train", "ppo", "--env", ENV, "--env-kwargs", "seed", "3"], 2, "env_kwargs cannot hold 'seed'"),
        (["train", "ppo", "--env", ENV, "--env-threads", "0"], 2, "env_threads must be positive"),
        (["demo", "--episodes", "0"], 2, "--episodes and --seconds must be positive"),
        (["doctor", "--env", "probe/Memry-v0"], 2, "did you mean 'probe/Memory-v0'"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(call, code, told, capsys):
    assert main(call) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("habilis: ")
    assert told in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert not any(Path.cwd().iterdir()), "nothing is left of a run that could not start"


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (["train", "ppo", "--env", ENV, "--algo.gama", "0.9"], "--algo.gamma"),
        (["train", "ppo", "--env", ENV, "--total-timestep", "9"], "--total-timesteps"),
        (["evaluate", "run", "--episods", "3"], "--episodes"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(call, nearest, capsys):
    with pytest.raises(SystemExit) as end:
        main(call)
    assert end.value.code == 2
    assert nearest in capsys.readouterr().err


def test_train_wants_an_environment(capsys):
    for call in (["train", "ppo"], ["train", "ppo", "--env"]):
        with pytest.raises(SystemExit) as end:
            main(call)
        assert end.value.code == 2
        assert "--env" in capsys.readouterr().err


@pytest.mark.parametrize("switch", ["flag", "variable"])
def test_debug_shows_the_traceback(switch, monkeypatch):
    if switch == "variable":
        monkeypatch.setenv("HABILIS_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["train", "pppo", "--env", ENV] + ["--debug"] * (switch == "flag"))


def test_help_shows_what_the_preset_sets(capsys):
    for env, gamma in (("Pendulum-v1", "0.95"), ("CartPole-v1", "0.98")):
        with pytest.raises(SystemExit):
            main(["train", "ppo", "--help", "--env", env])
        words = " ".join(capsys.readouterr().out.split())
        assert f"Discount. (default: {gamma})" in words


def test_train_says_what_runs_and_what_to_do_next(capsys):
    assert main(["train", "ppo", f"--env={ENV}", *TINY, "--run_dir", "here", "--algo.learning_rate", "1e-3"]) == 0
    told = capsys.readouterr().out
    assert f"{ENV}: native, 4 environments\n" in told
    assert "run directory: here\n" in told
    assert "2 episodes, deterministic" in told
    for command in ("report", "evaluate", "play", "export"):
        assert f"habilis {command} here" in told
    config = json.loads(Path("here/config.json").read_text())["config"]
    assert config["algo"]["learning_rate"] == 1e-3
    assert config["total_timesteps"] == 256
    assert config["algo"]["normalize_obs"] is True
    assert Path("here/command.txt").read_text().startswith(f"habilis train ppo --env={ENV} --total-timesteps 256")


def test_the_default_directory_names_environment_algorithm_and_seed():
    assert main(["train", "ppo", "--env", ENV, *TINY, "--seed", "3", "--name", "mine", "--tensorboard"]) == 0
    (path,) = Path("runs/probe-ObservationReward-v0/ppo").iterdir()
    assert path.name.startswith("mine_s3_")
    assert len(list(path.glob("tensorboard/events.*"))) == 1


def test_a_run_is_not_overwritten(trained, capsys):
    before = (trained / "config.json").read_text()
    assert main(["train", "ppo", "--env", ENV, *TINY, "--run-dir", str(trained)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (trained / "config.json").read_text() == before


def test_arguments_reach_the_environment(capsys):
    call = ["train", "ppo", "--env", "CartPole-v1", *TINY, "--run-dir", "run"]
    assert main([*call, "--env-kwargs", "max_episode_steps", "7", "sutton_barto_reward", "true"]) == 0
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["env_kwargs"] == {"max_episode_steps": 7, "sutton_barto_reward": True}
    capsys.readouterr()
    assert main(["evaluate", "run", "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"] == [7, 7]
    assert main(["evaluate", "run", "--episodes", "2", "--json", "--env-kwargs", "max_episode_steps", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"] == [5, 5]
    pytest.importorskip("imageio_ffmpeg")
    # which draws itself, where it is told when it is made
    assert habilis.record_video("run", "film.mp4", backend="gymnasium").stat().st_size > 500


@pytest.mark.parametrize("words", [["--resume"], ["--resume", ""], ["--resume="], ["--resume", "--threads", "1"]])
def test_a_script_whose_run_has_no_name_is_told(words, capsys):
    assert main(["train", *words]) == 2
    assert "--resume takes the directory of the run" in capsys.readouterr().err
    assert main(["train", "--resume", "--help"]) == 0


def test_resume_in_two_calls_is_one_run(trained, capsys):
    whole = ["train", "ppo", "--env", ENV, *TINY, "--checkpoint-freq", "128", "--total-timesteps", "512"]
    assert main([*whole, "--run-dir", "whole"]) == 0
    half = ["train", "ppo", "--env", ENV, *TINY, "--checkpoint-freq", "128", "--run-dir", "half"]
    assert main(half) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "half", "--total-timesteps", "512"]) == 0
    told = capsys.readouterr().out
    assert "going on from half/checkpoints/step_000000000256, exactly" in told
    a, b = (habilis.load(path).state_dict() for path in ("whole", "half"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(Path("half/command.txt").read_text().splitlines()) == 2
    assert json.loads(Path("half/config.json").read_text())["config"]["total_timesteps"] == 512


def test_any_setting_may_change_on_resuming(capsys):
    assert main(["train", "ppo", "--env", ENV, *TINY, "--run-dir", "run"]) == 0
    changes = ["--algo.learning-rate", "1e-5", "--on-nonfinite", "skip", "--total-timesteps", "512"]
    assert main(["train", "--resume=run", *changes]) == 0
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert (config["algo"]["learning_rate"], config["on_nonfinite"], config["total_timesteps"]) == (1e-5, "skip", 512)
    assert config["algo"]["n_steps"] == 32
    state = load_checkpoint(Path("run/checkpoints/last"))[0]["algorithm"]["optimizer"]
    assert float(state["learning_rate"]) == pytest.approx(1e-5)
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 0
    assert "nothing is left to do: all 512 env steps are made" in capsys.readouterr().out
    finished = habilis.resume("run", progress=False)
    last = json.loads(Path("run/eval/step_000000000512.json").read_text())["deterministic"]
    assert finished.evaluation.returns.tolist() == last["returns"]
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert finished.metrics == {key: value for key, value in logged[-2].items() if key in finished.metrics}
    assert "train/gradient_steps" in finished.metrics
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", "run", "--help"])
    assert end.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "(default: 1e-05)" in words
    assert "--on-nonfinite" in words
    assert "--seed" not in words
    with pytest.raises(ConfigError, match="seed belongs to the beginning of a run"):
        habilis.resume("run", seed=3)
    assert main(["train", "--resume", "run", "--num-envs=4"]) == 2
    assert "num_envs belongs to the beginning of a run" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--algo.hidden", "5", "--total-timesteps", "600"]) == 1
    assert "does not fit" in capsys.readouterr().err
    assert json.loads(Path("run/config.json").read_text())["config"] == config


def test_values_are_read_as_python_and_json_write_them():
    words = {"a": "3", "b": "true", "c": "False", "d": "None", "e": "[1, 2]", "f": "v2"}
    assert read_values(words) == {"a": 3, "b": True, "c": False, "d": None, "e": [1, 2], "f": "v2"}


def test_arguments_of_the_environment_are_added_to_those_of_the_run(capsys):
    call = ["train", "ppo", "--env", "Pendulum-v1", "--env", "CartPole-v1", *TINY, "--run-dir", "run"]
    assert main([*call, "--env-kwargs", "max_episode_steps", "60"]) == 0
    assert (
        main(["train", "--resume", "run", "--total-timesteps", "512", "--env-kwargs", "max_episode_steps", "50"]) == 0
    )
    assert habilis.api.load_config("run").env_kwargs == {"max_episode_steps": 50}
    more = ["--env-kwargs", "sutton_barto_reward", "true", "--total-timesteps", "768"]
    assert main(["train", "--resume", "run", *more]) == 0
    assert habilis.api.load_config("run").env_kwargs == {"max_episode_steps": 50, "sutton_barto_reward": True}
    # of an option that is given twice the last counts, in what the preset is chosen by too
    gamma = habilis.api.default_config("ppo", "CartPole-v1").algo.gamma
    assert habilis.api.load_config("run").algo.gamma == gamma
    assert main(["evaluate", "run", "--env-kwargs", "seed", "3"]) == 2
    assert "`evaluate` has an argument of that name itself" in capsys.readouterr().err


def test_an_id_without_a_version_is_the_newest(capsys):
    assert main(["train", "ppo", "--env", "probe/ObservationReward", *TINY, "--run-dir", "run"]) == 0
    assert f"taking the newest, {ENV}\n" in capsys.readouterr().out
    assert json.loads(Path("run/config.json").read_text())["config"]["env"] == ENV
    for algorithm, id, newest in (("ppo", "HalfCheetah", "HalfCheetah-v5"), ("sac", "Pendulum", "Pendulum-v1")):
        assert read_config(algorithm, ["--env", id]) == read_config(algorithm, [f"--env={newest}"])
        assert habilis.api.default_config(algorithm, id) == habilis.api.default_config(algorithm, newest)
    assert read_config("ppo", ["--env", "Hopper", "--env_backend", "gymnasium"]).env == "Hopper-v5"


def test_an_environment_is_named_and_not_handed_over():
    for env in (lambda: None, 3):
        with pytest.raises(ConfigError, match=r"named by its id.*gymnasium\.register"):
            habilis.train("ppo", env)


def test_a_setting_of_the_algorithm_is_found_by_its_name_alone():
    with pytest.raises(ConfigError, match=r"did you mean 'algo\.learning_rate'\?"):
        habilis.train("ppo", ENV, learning_rate=1e-3)


def test_a_configuration_that_is_cut_off_is_named(trained, capsys):
    shutil.copytree(trained, "run")
    text = Path("run/config.json").read_text()
    for broken in (text[:100], "[]", "{}", ""):
        Path("run/config.json").write_text(broken)
        for call in (["evaluate", "run"], ["train", "--resume", "run"]):
            assert main(call) == 2
            assert "habilis: run/config.json is truncated or altered" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        ["report", "RUN", "--output", "file/page.html"],
        ["export", "RUN", "--output", "file/policy"],
        ["evaluate", "RUN", "--video", "file/a.mp4"],
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_in_one_line(call, trained, capsys):
    if call[0] == "evaluate":
        pytest.importorskip("imageio_ffmpeg")
    if call[0] == "export":
        pytest.importorskip("onnxruntime")
    Path("file").write_text("")
    assert main([word.replace("RUN", str(trained)) for word in call]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("habilis: ")
    assert "file" in line
    assert "choose another place" in line


def test_a_full_disk_is_told_in_one_line(monkeypatch, capsys):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("habilis.cli.train.train_config", full)
    assert main(["train", "ppo", "--env", ENV]) == 1
    assert capsys.readouterr().err == "habilis: No space left on device; make room on the disk, then go on\n"


def test_what_was_learnt_is_saved_before_an_evaluation_that_cannot_be_written(capsys):
    Path("run").mkdir()
    Path("run/eval").write_text("in the way")
    assert main(["train", "ppo", "--env", ENV, *TINY, "--checkpoint-freq", "256", "--run-dir", "run"]) == 1
    assert "run/eval" in capsys.readouterr().err
    assert CheckpointStore(Path("run/checkpoints")).steps() == [128]


def test_evaluate_prints_what_python_returns(trained, capsys):
    call = ["evaluate", str(trained), "--episodes", "5", "--seed", "9", "--json"]
    for arguments, keywords in (([], {}), (["--stochastic"], {"deterministic": False})):
        assert main([*call, *arguments]) == 0
        expected = habilis.evaluate(trained, episodes=5, seed=9, **keywords)
        checkpoint = str(trained / "checkpoints/step_000000000256")
        assert json.loads(capsys.readouterr().out) == {"checkpoint": checkpoint, **expected.to_dict()}
    made = habilis.api.make_env(ENV, 5)
    assert habilis.evaluate(trained, made, episodes=5, seed=9, deterministic=False).to_dict() == expected.to_dict()
    with pytest.raises(ConfigError, match="made already takes no arguments, got slip"):
        habilis.evaluate(trained, made, slip=1)
    by_policy = habilis.evaluate(habilis.load(trained), episodes=5, seed=9)
    assert main(call) == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoint": checkpoint, **by_policy.to_dict()}


def test_evaluate_takes_the_best_checkpoint(capsys):
    # an environment whose every return is a real number, so that two policies never score the same
    assert main(["train", "ppo", "--env", "probe/IdentityContinuous-v0", *TINY, "--run-dir", "run"]) == 0
    obs = np.ones((1, habilis.load("run").spec.obs["policy"].size), np.float32)
    store = CheckpointStore(Path("run/checkpoints"))
    first, last = store.steps()
    returns = {}
    for step in (first, last):
        store.mark_best(step)
        capsys.readouterr()
        assert main(["evaluate", "run", "--which", "best", "--json"]) == 0
        returns[step] = json.loads(capsys.readouterr().out)["returns"]
    assert returns[first] == habilis.evaluate(store.path(first)).to_dict()["returns"]
    assert returns[first] != returns[last]
    assert main(["evaluate", "run", "--num-envs", "3", "--json"]) == 0
    by_threes = json.loads(capsys.readouterr().out)["returns"]
    assert by_threes == habilis.evaluate("run", num_envs=3).returns.tolist() != returns[last]
    store.mark_best(first)
    assert main(["evaluate", "run/checkpoints/best", "--which", "best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["returns"] == returns[first]
    pytest.importorskip("onnxruntime")
    assert main(["export", "run", "--which", "best"]) == 0
    assert f"the policy of {store.path(first)};" in capsys.readouterr().out
    acts = habilis.load(store.path(first)).predict(obs)[0]
    assert np.abs(acts - habilis.load("run").predict(obs)[0]).max() > 1e-3
    for folder in ("run/export", habilis.export("run", "policy", which="best")):
        np.testing.assert_allclose(OnnxPolicy(folder).predict(obs)[0], acts, atol=1e-4)
    assert main(["export", "run", "--output", "looser", "--tolerance", "0.25"]) == 0
    usual, looser = (json.loads(Path(f, "golden.json").read_text())["tolerance"] for f in ("policy", "looser"))
    assert 0 < looser[0] == pytest.approx(25_000 * usual[0])


def test_one_checkpoint_is_not_the_best_of_a_run(trained, capsys):
    (checkpoint,) = {str(path) for path in (trained / "checkpoints").glob("step_*256")}
    for call in (["evaluate"], ["play"], ["export", "--output", "policy"]):
        assert main([*call, checkpoint, "--which", "best"]) == 2
        assert f"{checkpoint} is one checkpoint, and the best of a run is asked for" in capsys.readouterr().err


def test_a_level_of_risk_is_for_who_learnt_distributions(trained, capsys):
    for call in (["evaluate"], ["play"], ["export"]):
        assert main([*call, str(trained), "--risk-level", "0.25"]) == 2
        assert (
            "a risk level is for DQN and its kin: a StochasticPolicy knows no distribution" in capsys.readouterr().err
        )
    tiny = ["--total-timesteps", "200", "--algo.learning-starts", "50", "--no-tensorboard", "--run-dir", "quantiles"]
    assert main(["train", "qr_dqn", "--env", "probe/Identity-v0", *tiny]) == 0
    careful = habilis.load("quantiles", risk_level=0.25)
    capsys.readouterr()
    assert main(["evaluate", "quantiles", "--risk-level", "0.25", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.items() >= habilis.evaluate(careful).to_dict().items()
    assert main(["export", "quantiles", "--risk-level", "0.25"]) == 0
    obs = np.eye(4, dtype=np.float32)
    exported, _ = OnnxPolicy("quantiles/export").predict(obs)
    assert exported.tolist() == careful.predict(obs)[0].tolist()


def test_evaluate_speaks_to_people_and_takes_a_checkpoint(trained, capsys):
    checkpoint = CheckpointStore(trained / "checkpoints").latest()
    assert main(["evaluate", str(checkpoint), "--episodes", "3"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{checkpoint}\n3 episodes, deterministic, seed 0\nreturn ")
    assert main(["evaluate", str(trained / "checkpoints" / "last"), "--episodes", "3"]) == 0
    assert capsys.readouterr().out == told
    assert main(["evaluate", str(trained), "--episodes", "0"]) == 2


def test_report_export_and_verify(trained, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["report", str(trained), "--output", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert "<html" in Path("page.html").read_text()
    shutil.copytree(trained, "copy")
    assert main(["report", str(trained), "copy"]) == 0
    assert capsys.readouterr().out == "report.html\n"  # of neither of them
    assert main(["export", str(trained), "--output", "policy"]) == 0
    assert Path("policy/policy.onnx").is_file()
    assert main(["evaluate", "policy"]) == 2
    assert "policy is an exported policy: give the run" in capsys.readouterr().err
    assert main(["verify", "policy"]) == 0
    assert "answers as the original did" in capsys.readouterr().out
    assert main(["export", str(trained), "--output", "policy"]) == 1
    with Path("policy/policy.onnx").open("ab") as file:
        file.write(b"x")
    assert main(["verify", "policy"]) == 1


def test_play_records_a_video_where_there_is_no_screen(monkeypatch, capsys):
    pytest.importorskip("imageio_ffmpeg")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "ppo", "--env", "InvertedPendulum-v5", *TINY, "--run-dir", "run"]) == 0
    assert main(["play", "run", "--env-kwargs", "max_episode_steps", "4"]) == 0
    assert capsys.readouterr().out.endswith("recording a video.\nrun/videos/step_000000000256_seed0.mp4\n")
    assert Path("run/videos/step_000000000256_seed0.mp4").stat().st_size > 500
    flags = ["--episodes", "1", "--video", "a.mp4", "--env-kwargs", "max_episode_steps", "4"]
    assert main(["evaluate", "run", *flags]) == 0
    assert Path("a.mp4").stat().st_size > 500
    first = Path("run/videos/step_000000000256_seed0.mp4").read_bytes()
    assert main(["play", "run", "--env-kwargs", "max_episode_steps", "8"]) == 0
    assert capsys.readouterr().out.endswith("run/videos/step_000000000256_seed0-2.mp4\n")
    assert Path("run/videos/step_000000000256_seed0.mp4").read_bytes() == first
    for name in ("a", "a.gif"):
        assert main(["evaluate", "run", "--video", name]) == 2
        told = capsys.readouterr()
        assert (told.out, told.err) == (
            "",
            f"habilis: a film is an mp4 file, and {name} does not end in .mp4: name it so\n",
        )


def test_a_film_is_of_the_policy_and_the_episodes_that_were_asked_for(capsys):
    pytest.importorskip("imageio_ffmpeg")
    quick = ["--algo.learning-rate", "0.01", "--run-dir", "run", "--env-kwargs", "max_episode_steps", "15"]
    assert main(["train", "ppo", "--env", "InvertedPendulum-v5", *TINY, *quick]) == 0
    store = CheckpointStore(Path("run/checkpoints"))
    first, last = (store.path(step) for step in store.steps())
    store.mark_best(store.steps()[0])

    def film(policy, **settings):
        return habilis.record_video(policy, "film.mp4", **settings).read_bytes()

    def played(command, *flags):
        assert main([command, "run", "--video", "played.mp4", *flags]) == 0
        return Path("played.mp4").read_bytes()

    best, plain, drawn = film(first, seed=7), film(last), film(last, deterministic=False)
    assert len({best, plain, drawn, film(last, seed=7)}) == 4
    assert played("play", "--which", "best", "--seed", "7") == best
    assert played("play", "--stochastic") == played("evaluate", "--stochastic") == drawn
    assert len(played("play", "--episodes", "2")) > len(plain)


def test_another_environment_has_arguments_of_its_own(capsys):
    call = [
        "train",
        "ppo",
        "--env",
        "InvertedPendulum-v5",
        *TINY,
        "--run-dir",
        "run",
        "--env-kwargs",
        "max_episode_steps",
    ]
    assert main([*call, "7"]) == 0
    for env, more, longest in (
        ("InvertedPendulum-v5", {}, 7),
        ("InvertedPendulum-v5", {"max_episode_steps": 3}, 3),
        ("InvertedPendulum-v4", {"backend": "gymnasium", "max_episode_steps": 2}, 2),
    ):
        result = habilis.evaluate("run", env, episodes=2, **more)
        assert result.lengths.max() == longest
    with pytest.raises(ConfigError, match="n_bad"):
        habilis.evaluate("run", "InvertedPendulum-v5", episodes=2, n_bad=1)
    lengths = habilis.evaluate("run", "InvertedPendulum-v4", episodes=20, backend="gymnasium").lengths
    assert lengths.max() > 7, lengths
    # an engine that is asked for is not left for another
    with pytest.raises(ConfigError, match="no native environment"):
        habilis.evaluate("run", "FrozenLake-v1", episodes=2, backend="native")


def test_a_run_has_a_directory(capsys):
    assert main(["train", "ppo", "--env", ENV, "--run-dir", ""]) == 2
    assert "run_dir is empty" in capsys.readouterr().err
    assert os.listdir() == []


def test_numbers_of_a_configuration_are_finite(capsys):
    for value in ("nan", "inf"):
        assert main(["train", "sac", "--env", "Pendulum-v1", "--algo.target-entropy", value]) == 2
        assert f"algo.target_entropy must be finite, got {value}" in capsys.readouterr().err


def test_replay_memory_is_said_and_refused_before_it_is_taken(monkeypatch, capsys):
    monkeypatch.setattr("habilis.core.acceleration.available_memory", lambda device: 30_000_000)
    call = ["train", "sac", "--env", "InvertedPendulum-v5", "--total-timesteps", "8", "--eval-episodes", "0"]
    assert main([*call, "--run-dir", "a", "--algo.buffer-size", "1_000"]) == 0
    assert "replay memory: 1,000 transitions, 0 MB" in capsys.readouterr().out
    assert main([*call, "--run-dir", "b"]) == 2
    told = capsys.readouterr()
    assert "replay memory: 1,000,000 transitions, 31 MB" in told.out
    assert "lower --algo.buffer-size" in told.err
    assert not Path("b").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["ppo", "--env", "CartPole-v1", "--num-envs", "10_000"], "10,000 environments take at least 20.0 MB"),
        (["ppo", "--env", "Ant-v5", "--num-envs", "1_000"], "1,000 simulations take at least 22."),
        (["a3c", "--env", "CartPole-v1", "--num-envs", "8"], "8 worker processes take at least 0.8 GB"),
        (["ppo", "--env", "CartPole-v1", "--algo.n-steps", "100_000"], "a rollout of 100,000 steps of 8 environments"),
        (
            ["sac", "--env", "Pendulum-v1", "--algo.memory.kind", "gru", "--algo.memory.window", "1_000_000"],
            "with windows of 1,000,000 steps takes",
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(options, told, monkeypatch, capsys):
    monkeypatch.setattr("habilis.core.acceleration.available_memory", lambda device: 10_000_000)
    small = ["--algo.buffer-size", "1_000"] if options[0] == "sac" else []
    assert main(["train", *options, *small, "--run-dir", "run"]) == 2
    assert told in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_network_that_does_not_fit_into_memory_is_told_in_one_line(capsys):
    huge = ["--algo.hidden", "10_000_000", "10_000_000"]  # 400 TB
    assert main(["train", "ppo", "--env", "CartPole-v1", *huge, "--run-dir", "run"]) == 2
    assert "it does not fit into memory: lower num_envs, algo.hidden" in capsys.readouterr().err


def test_available_memory_is_known_here():
    memory = acceleration.available_memory("cpu")
    assert memory is None or 0 < memory < 1 << 50


def test_list(capsys):
    def listed(*words: str) -> list[str]:
        assert main(["list", *words]) == 0
        return capsys.readouterr().out.splitlines()

    algorithms = [line.split()[0] for line in listed("algorithms")]
    assert algorithms == sorted(algorithms)
    assert {"dqn", "ppo", "q_learning", "rainbow", "sac"} <= set(algorithms)
    assert [line.rsplit("; ")[1] for line in listed("algorithms", "actor_critic")] == ["1 preset"]
    assert [line.split() for line in listed("envs", "quadruped")] == [["habilis/QuadrupedWalk-v0", "native"]]
    assert ["HalfCheetah-v5", "native"] in [line.split() for line in listed("envs")]
    assert ["HalfCheetah-v5", "gymnasium"] in [line.split() for line in listed("envs", "--backend", "gymnasium")]
    assert any("Pendulum-v1:" in line and "algo.gamma=0.95" in line for line in listed("presets", "ppo"))
    assert [line.split()[0] for line in listed("backends")] == ["native", "gymnasium", "envpool"]
    assert any(line.startswith("smoke ") for line in listed("suites"))
    assert main(["list", "backends", "nothing"]) == 2
    assert "none of the 3 backends contains 'nothing'" in capsys.readouterr().err


def test_doctor_surveys_the_machine(monkeypatch, capsys):
    monkeypatch.setattr("habilis.cli.doctor.MEASURE_SECONDS", 0.01)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= 40, "one screen"
    for name in ("torch", "processors", "memory", "MuJoCo", "HalfCheetah-v5", "matmul"):
        assert name in told


def test_doctor_checks_environments(capsys):
    assert main(["doctor", "--env", ENV]) == 0
    assert "errors: 0" in capsys.readouterr().out
    assert main(["doctor", "--env", "tests/Broken-v0"]) == 1
    told = capsys.readouterr().out
    assert "error  " in told
    assert "finite" in told
    assert "errors: 0" not in told
    assert main(["doctor", "--env", "tests/Broken-v0", "--steps", "5"]) == 0  # which breaks at its twentieth


SMALL_SAC = ["--total-timesteps", "256", "--num-envs", "4", "--algo.hidden", "8", "--algo.learning-starts", "16"]
SMALL_SAC += ["--algo.batch-size", "32", "--algo.buffer-size", "1000", "--eval-episodes", "0", "--no-tensorboard"]
FAULTY = {"ppo": [*TINY, "--algo.no-normalize-reward"], "sac": SMALL_SAC}


@pytest.mark.parametrize("algorithm", FAULTY)
def test_doctor_plays_a_fault_again(algorithm, capsys):
    assert main(["train", algorithm, "--env", "tests/Broken-v0", *FAULTY[algorithm], "--run-dir", "run"]) == 1
    told = capsys.readouterr().err
    assert "the reward of environment 2 is not finite" in told
    (dump,) = Path("run/nonfinite").iterdir()
    assert f"habilis doctor --replay {dump}" in told
    assert main(["doctor", "--replay", str(dump)]) == 1
    assert "Step 20 of the 20 recorded: the reward of environment 2 is not finite" in capsys.readouterr().out


def test_doctor_plays_nothing_else_again(trained, capsys):
    assert main(["doctor", "--replay", str(trained / "checkpoints/last")]) == 2
    assert "tells of no fault: give the folder `nonfinite/step_...`" in capsys.readouterr().err


@pytest.mark.parametrize("at", [20, 50])
@pytest.mark.parametrize(("algorithm", "optimizer"), [("ppo", "policy and value"), ("sac", "critics")])
def test_doctor_learns_again_what_was_not_finite(algorithm, optimizer, at, capsys):
    call = ["train", algorithm, "--env", "tests/Huge-v0", "--env-kwargs", "at", str(at), *FAULTY[algorithm]]
    assert main([*call, "--checkpoint-freq", "128", "--run-dir", "run"]) == 1
    told = capsys.readouterr().err
    (fault,) = re.findall(rf"the loss or gradient of the {optimizer} is not finite at env step \d+ \(.*?\)", told)
    (dump,) = Path("run/nonfinite").iterdir()
    assert f"habilis doctor --replay {dump}" in told
    # the last whole checkpoint lies before the fault, and the dump outlives it
    assert CheckpointStore(Path("run/checkpoints")).steps() == ([] if at == 20 else [128])
    shutil.rmtree("run/checkpoints", ignore_errors=True)
    assert main(["doctor", "--replay", str(dump)]) == 1
    told = capsys.readouterr().out
    assert f"Learning again from env step {0 if at == 20 else 128} to" in told
    assert f"Again: {fault}." in told
    # what is resumed from here on may go on
    assert main(["train", "--resume", "run", "--on-nonfinite", "skip"]) == 0
    assert CheckpointStore(Path("run/checkpoints")).steps()[-1] == 256
    if algorithm == "ppo":  # which forgets what it has learnt from
        assert main(["train", "--resume", "run", "--on-nonfinite", "stop", "--total-timesteps", "384"]) == 0


class HugeEnv(ProbeEnv):
    """A probe whose environments return, at one of their steps, a reward that is finite and whose square is not."""

    def __init__(self, id: str, num_envs: int, *, seed: int, threads: int | None, at: int) -> None:
        super().__init__("probe/IdentityContinuous-v0", num_envs, seed=seed)
        self.steps, self.at = 0, at

    def step(self, action):
        step = super().step(action)
        self.steps += 1
        if self.steps == self.at:
            step.reward[:] = 3e38
        return step

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        super().load_state_dict({k: v for k, v in state.items() if k != "steps"})


register_native("tests/Huge-v0", HugeEnv)


class BrokenEnv(ProbeEnv):
    """A probe whose third environment returns a reward that is not finite at its twentieth step."""

    def __init__(self, id: str, num_envs: int, *, seed: int, threads: int | None) -> None:
        super().__init__("probe/IdentityContinuous-v0", num_envs, seed=seed)
        self.steps = 0

    def step(self, action):
        step = super().step(action)
        self.steps += 1
        if self.steps == 20:
            step.reward[min(2, self.num_envs - 1)] = float("nan")
        return step

    def reset(self, seed=None):
        self.steps = 0
        return super().reset(seed)

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        super().load_state_dict({k: v for k, v in state.items() if k != "steps"})


register_native("tests/Broken-v0", BrokenEnv)


def test_demo_leaves_everything_in_one_place(capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("imageio_ffmpeg")
    call = ["demo", "--env", "InvertedPendulum-v5", "--total-timesteps", "2048", "--episodes", "3"]
    assert main([*call, "--seconds", "0.2", "--run-dir", "demo"]) == 0
    told = capsys.readouterr().out
    for path in ("report.html", "videos/demo.mp4", "export/policy.onnx"):
        assert Path("demo", path).is_file()
        assert str(Path("demo", path)) in told
    assert "3 episodes, deterministic, seed 0" in told
    *_, last = read_evaluations(Path("demo/eval"))  # what the report tells
    expected = habilis.evaluate("demo", episodes=3)
    assert (last.step, last.deterministic.returns.tolist()) == (2048, expected.returns.tolist())
    assert Path("demo/videos/demo.mp4").read_bytes() == habilis.record_video("demo", "a.mp4", seconds=0.2).read_bytes()


def test_an_interrupted_demo_says_how_to_go_on(monkeypatch, capsys):
    after = Session._after

    def interrupt(self, report):
        after(self, report)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Session, "_after", interrupt)
    assert main(["demo", "--env", "InvertedPendulum-v5", "--total-timesteps", "2048", "--run-dir", "demo"]) == 130
    assert "Go on with: habilis train --resume demo" in capsys.readouterr().out
    assert not Path("demo/report.html").exists()


def test_an_interrupted_run_saves_and_says_how_to_go_on():
    code = f"""
import os, signal, sys
from habilis.cli import main
from habilis.training.session import Session
after = Session._after
def interrupt(self, report):
    after(self, report)
    if report.iteration == 2:
        os.kill(os.getpid(), signal.SIGINT)
Session._after = interrupt
sys.exit(main(["train", "ppo", "--env", {ENV!r}, *{TINY}, "--total-timesteps", "512", "--run-dir", "run"]))
"""
    done = python("-c", code)
    assert done.returncode == 130, done.stderr
    assert "Go on with: habilis train --resume run" in done.stdout
    assert CheckpointStore(Path("run/checkpoints")).steps()[-1] == 256
    assert main(["train", "--resume", "run"]) == 0
    assert CheckpointStore(Path("run/checkpoints")).steps()[-1] == 512


def test_a_run_that_is_stopped_at_once_says_what_is_kept(monkeypatch, capsys):
    after = Session._after

    def interrupt(self, report):
        after(self, report)
        if report.env_steps == 256:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_after", interrupt)
    call = ["train", "ppo", "--env", ENV, *TINY, "--eval-episodes", "0"]
    for frequency, kept in (("128", "what was learnt up to step 256 is kept"), ("999", "nothing had been saved yet")):
        assert main([*call, "--checkpoint-freq", frequency, "--run-dir", frequency]) == 130
        told = capsys.readouterr().out
        assert f"Stopped at once: {kept}" in told
        assert f"habilis train --resume {frequency}" in told


def test_plugins_are_named_and_have_options_of_their_own(capsys):
    flags = ["--env", "habilis/ReacherPixels-v0", "--seed", "3"]
    named = ["--plugins", "random-shift", "contrastive", "--plugins.contrastive.tau", "0.1"]
    plugins = read_config("sac", [*named, *flags]).plugins
    assert {name: to_dict(options) for name, options in plugins.items()} == {
        "random_shift": {"pad": 4},
        "contrastive": {"learning_rate": 1e-3, "batch_size": 256, "tau": 0.1, "pad": 4},
    }
    assert read_config("sac", [*flags, "--plugins"]).plugins == {}
    with pytest.raises(ConfigError, match=r"no plugin 'contrast'.*did you mean 'contrastive'"):
        read_config("sac", [*flags, "--plugins", "contrast"])
    with pytest.raises(SystemExit):
        read_config("sac", [*flags, "--plugins.contrastive.tau", "0.1"])
    assert main(["list", "plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line] == list(PLUGINS)
