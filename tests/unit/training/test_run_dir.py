"""A run's directory: of one run, of one process at a time, and gone where the run cannot start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import pytest
import torch

from habilis import api
from habilis.checkpoint import CheckpointStore
from habilis.core.errors import CheckpointError, ConfigError
from habilis.training import session
from habilis.training.run_dir import LOCK, begin, clear, hold

ENV = "probe/ObservationReward-v0"
TINY = {"num_envs": 1, "total_timesteps": 64, "eval_episodes": 0, "tensorboard": False}
TINY |= {"algo.n_steps": 16, "algo.batch_size": 16, "algo.hidden": [8]}


def config(**changes):
    return api.default_config("ppo", ENV, **{**TINY, **changes})


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    with begin(config()) as one, begin(config()) as two:
        assert one.is_dir()
        assert two == one.with_name(f"{one.name}-2")


def test_nothing_is_left_of_a_run_that_cannot_start():
    for changes in ({}, {"run_dir": "a/b"}):
        with pytest.raises(KeyboardInterrupt), begin(config(**changes)):
            raise KeyboardInterrupt
    assert not any(Path.cwd().iterdir())
    # what was there before stays
    Path("mine").mkdir()
    with pytest.raises(KeyboardInterrupt), begin(config(run_dir="mine")):
        raise KeyboardInterrupt
    assert not any(Path("mine").iterdir())


def test_a_directory_that_cannot_be_one_is_named():
    Path("file").write_text("")
    for path, why in (("file", "is a file"), ("file/run", "Not a directory"), ("/proc/run", "cannot be written to")):
        with pytest.raises(ConfigError, match=f"the run directory {path} .*{why}.*--run-dir"):
            api.train_config(config(run_dir=path), progress=False)


@contextmanager
def held_by_another(path):
    """Let another process hold a directory until the block ends or the process is killed."""
    code = f"""
import sys
from pathlib import Path
from habilis.training.run_dir import hold
with hold(Path({path!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield other
        other.kill()


def test_a_run_is_of_one_process_until_that_ends_however_it_does():
    run = api.train_config(config(run_dir="run"), progress=False)
    with held_by_another("run") as other:
        with pytest.raises(ConfigError, match="another process trains in run"):
            api.resume(run.path, progress=False, total_timesteps=128)
        assert api.load_config(run.path).total_timesteps == 64
        other.kill()
    with hold(run.path):
        pass
    assert api.resume(run.path, progress=False, total_timesteps=128).config.total_timesteps == 128


def test_what_a_run_is_made_of_cannot_change():
    run = api.train_config(config(run_dir="run"), progress=False)
    for changes in ({"env": "probe/Identity-v0"}, {"num_envs": 2}, {"frame_stack": 2}, {"seed": 1}):
        (key,) = changes
        with pytest.raises(ConfigError, match=f"{key} belongs to the beginning of a run and cannot change"):
            api.resume(run.path, progress=False, **changes)
    assert repr(run) == "Run('run': ppo on probe/ObservationReward-v0, not evaluated)"


def test_what_learning_began_with_cannot_change():
    """The checkpoint holds what has become of it, so it would be taken and have no effect."""
    small = {"total_timesteps": 32, "eval_episodes": 0, "tensorboard": False, "num_envs": 1}
    for algorithm, env, settings, key, value in (
        ("sac", "Pendulum-v1", {"algo.hidden": [8]}, "algo.init_ent_coef", 0.1),
        ("discrete_sac", "CartPole-v1", {"algo.hidden": [8]}, "algo.init-ent-coef", 0.1),
        ("ppo", "Pendulum-v1", {"algo.n_steps": 16, "algo.batch_size": 16}, "algo.init_std", 0.1),
        ("ppo", "Pendulum-v1", {"algo.n_steps": 16, "algo.batch_size": 16}, "algo.normalize-reward", False),
        ("td3", "Pendulum-v1", {"algo.hidden": [8]}, "algo.normalize_reward", True),
        ("q_learning", "habilis/GridWorld-v0", {}, "algo.initial_value", 1.0),
        ("double_q_learning", "habilis/GridWorld-v0", {}, "algo.double_q", False),
    ):
        run = api.train(algorithm, env, run_dir=f"{algorithm}-{key}", **{**small, **settings})
        named = key.replace("-", "_")
        for changes in ({key: value}, {"algo": {key.partition(".")[2]: value}}):
            with pytest.raises(ConfigError, match=f"{named} belongs to the beginning of a run and cannot change"):
                api.resume(run.path, progress=False, total_timesteps=64, **changes)
        assert api.load_config(run.path) == run.config
        # what stays as it was is no change
        same = {named: getattr(run.config.algo, named.partition(".")[2])}
        assert api.resume(run.path, progress=False, total_timesteps=64, **same).config.total_timesteps == 64


def test_a_setting_without_effect_is_refused_before_a_run_is_made_or_changed():
    with pytest.raises(ConfigError, match=r"algo.desired_kl has no effect while algo.learning_rate_schedule is 'const"):
        api.train_config(config(run_dir="run", **{"algo.desired_kl": 0.02}), progress=False)
    assert not Path("run").exists()
    api.train_config(config(run_dir="run"), progress=False)
    with pytest.raises(ConfigError, match=r"algo.smoothness.spatial_std has no effect while .* is 0.0: leave it out"):
        api.resume("run", progress=False, total_timesteps=128, **{"algo.smoothness.spatial_std": 0.2})
    assert api.load_config("run").total_timesteps == 64
    # what a preset sets for a part that the user takes away is not the user's
    api.train("rainbow", "CartPole-v1", total_timesteps=8, eval_episodes=0, run_dir="other", **{"algo.head": "mean"})


def test_a_resumption_that_is_refused_names_what_was_changed_and_leaves_no_mark():
    api.train_config(config(run_dir="run", tensorboard=True), progress=False)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"'policy' does not fit .* \(changed now: algo.hidden, total_timesteps\)"
    ):
        api.resume("run", progress=False, total_timesteps=128, **{"algo.hidden": [9]})
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    api.resume("run", progress=False, total_timesteps=128)
    assert Path("run/command.txt").read_text().splitlines()[1:] == ["habilis.resume('run', ...)"]
    assert len(list(Path("run/tensorboard").iterdir())) == 2


def test_a_run_that_has_nothing_left_to_do_was_trained_as_it_says():
    run = api.train_config(config(run_dir="run"), progress=False)
    gamma = run.config.algo.gamma
    api.resume(run.path, progress=False, **{"algo.gamma": 0.5})
    assert api.load_config(run.path).algo.gamma == gamma
    api.resume(run.path, progress=False, **{"algo.gamma": 0.5, "total_timesteps": 128})
    assert api.load_config(run.path).algo.gamma == 0.5


def test_a_run_may_be_given_where_its_directory_may():
    run = api.train_config(config(run_dir="run"), progress=False)
    assert api.load(run).spec == run.policy.spec
    assert api.evaluate(run, episodes=2).mean == api.evaluate("run", episodes=2).mean
    assert api.resume(run, progress=False, total_timesteps=128).config.total_timesteps == 128
    with pytest.raises(ConfigError, match="which must be 'last' or 'best', got 'bset'"):
        api.load(run, which="bset")
    with pytest.raises(ConfigError, match=r"by its id, or as `habilis.make_env` returns it, got .*CartPole-v1"):
        api.evaluate(run, gymnasium.make("CartPole-v1"))


def test_the_best_policy_acts_as_it_did_whatever_has_changed_since():
    run = api.train_config(config(run_dir="run", eval_episodes=2), progress=False)
    obs = torch.linspace(-1, 1, 5)[:, None].expand(5, *run.policy.spec.obs["policy"].shape).numpy()
    before = api.load(run, which="best").predict(obs)[0]
    changes = {"algo.activation": "relu", "eval_episodes": 0, "total_timesteps": 128}
    api.resume(run, progress=False, **changes)
    assert (api.load(run, which="best").predict(obs)[0] == before).all()
    assert api.load(run).trunk.hidden[1].__class__.__name__ == "ReLU"


def test_the_best_policy_is_the_best_in_the_environment_as_it_is_now():
    small = {**TINY, "eval_episodes": 2, "run_dir": "run"}
    api.train("ppo", "CartPole-v1", **small)
    store = CheckpointStore(Path("run/checkpoints"))
    assert store.best().name <= store.path(64).name
    # an episode of 3 steps pays less than any of those before, which have 8 at least
    api.resume("run", progress=False, total_timesteps=128, env_kwargs={"max_episode_steps": 3})
    assert store.best().name > store.path(64).name
    assert api.evaluate("run", which="best", episodes=2).mean == 3


def test_the_best_policy_is_not_chosen_by_the_episodes_that_judge_it(monkeypatch):
    seeds = []
    evaluate = session.evaluate
    monkeypatch.setattr(session, "evaluate", lambda *a, **k: seeds.append(k["seed"]) or evaluate(*a, **k))
    api.train_config(config(run_dir="run", seed=3, eval_episodes=2), progress=False)
    assert min(seeds) > 10**6


def test_a_run_without_a_checkpoint_is_started_again_in_its_directory(monkeypatch):
    run_of, interrupted = api._run, []

    def interrupt(config, trainer, run_dir, *rest, **settings):
        (run_dir / "metrics.jsonl").write_text('{"step": 5}\n')
        interrupted.append(run_dir)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "_run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        api.train_config(config(run_dir="run"), progress=False)
    monkeypatch.setattr(api, "_run", run_of)
    assert interrupted == [Path("run")]
    api.train_config(config(run_dir="run", log_freq=64), progress=False)
    assert [line[:11] for line in Path("run/metrics.jsonl").read_text().splitlines()] == ['{"step": 64']
    with pytest.raises(ConfigError, match="already holds a run"):
        api.train_config(config(run_dir="run"), progress=False)


def test_what_lies_in_a_directory_that_is_no_run_stays():
    Path("run/eval").mkdir(parents=True)
    Path("run/eval/mine.txt").write_text("mine")
    api.train_config(config(run_dir="run"), progress=False)
    assert Path("run/eval/mine.txt").read_text() == "mine"


def test_who_is_refused_takes_nothing_from_who_holds_a_directory():
    Path("held").mkdir()
    with held_by_another("held"):
        for _ in range(2):  # the second time as the first: the lock is where it was
            with pytest.raises(ConfigError, match="another process trains in"), begin(config(run_dir="held")):
                pass
        assert os.listdir("held") == [LOCK]


def test_a_directory_is_one_runs_within_a_process_too():
    path = Path("run")
    path.mkdir()
    with hold(path):
        with pytest.raises(ConfigError, match=r"this process trains in .*run already"), hold(Path("./run").resolve()):
            pass
        code = f"import fcntl; fcntl.lockf(open({str(path / LOCK)!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in refused.stderr  # who was refused has not taken the lock away
    with hold(path):
        pass


def test_another_programs_configuration_is_left_alone():
    path = Path("other")
    (path / "eval").mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="no run's"), begin(config(run_dir="other")):
        pass
    clear(path)
    assert sorted(os.listdir(path)) == ["config.json", "eval"]


def test_what_is_started_again_is_put_aside():
    path = Path("again")
    for aside in ("earlier", "earlier-2"):
        folders, files = ("eval", "tensorboard"), ("command.txt", "config.json", "metrics.jsonl")
        for folder in folders:
            (path / folder).mkdir(parents=True)
        for file in files:
            (path / file).write_text('{"config": {"algorithm": "ppo"}}')
        clear(path)
        assert set(os.listdir(path / aside)) == {*folders, *files}
    assert sorted(os.listdir(path)) == ["earlier", "earlier-2"]


def test_what_is_changed_on_resuming_holds_from_there_on():
    few = {"total_timesteps": 32, "eval_episodes": 0, "tensorboard": False, "num_envs": 1, "algo.hidden": [8]}
    on_policy = {"algo.n_steps": 16, "algo.batch_size": 16, "algo.std_type": "fixed", "algo.init_std": 0.5}
    schedule = "algo.learning_rate_schedule"
    falling = {"algo.learning_rate": 1e-3, schedule: "linear"}
    for algorithm, env, first, key, changed, look in (
        ("sac", "Pendulum-v1", {"algo.ent_coef": 0.2}, "algo.ent_coef", 0.01, lambda a: a.state.log_alpha.exp()),
        (
            "discrete_sac",
            "CartPole-v1",
            {"algo.ent_coef": 0.2},
            "algo.ent_coef",
            0.01,
            lambda a: a.state.log_alpha.exp(),
        ),
        ("c51", "CartPole-v1", {}, "algo.v_max", 500.0, lambda a: a.policy.head.atoms[-1]),
        (
            "iqn",
            "CartPole-v1",
            {"algo.hidden": [8, 8]},
            "algo.risk_level",
            0.25,
            lambda a: a.policy.head.fractions.mean() * 2,
        ),
        ("ppo", "Pendulum-v1", on_policy, "algo.init_std", 0.1, lambda a: a.policy.head.log_std.exp()),
        ("a2c", "CartPole-v1", falling, schedule, "constant", lambda a: a.state.optimizer.learning_rate),
        ("td3", "Pendulum-v1", falling, schedule, "constant", lambda a: a.state.policy_optimizer.learning_rate),
    ):
        run = api.train(algorithm, env, run_dir=algorithm, **{**few, **first})
        value = 1e-3 if key == schedule else changed
        assert look(run.algorithm).item() != pytest.approx(value)
        again = api.resume(run.path, progress=False, **{"total_timesteps": 64, key: changed})
        assert look(again.algorithm).item() == pytest.approx(value)
        policy = api.load(run.path)
        assert all(torch.equal(a, b) for a, b in zip(policy.buffers(), again.policy.buffers(), strict=True))
    # the cells of a table mean something else by other bounds
    run = api.train("q_learning", "CartPole-v1", run_dir="table", total_timesteps=64, eval_episodes=0)
    with pytest.raises(CheckpointError, match=r"offset is .* now, and what was learnt was learnt with"):
        api.resume(run.path, progress=False, **{"total_timesteps": 128, "algo.bins_low": (-1.0, -3.0, -0.21, -3.0)})


def test_returns_that_rewards_are_scaled_by_begin_with_fresh_episodes():
    small = {**TINY, "env_backend": "gymnasium", "algo.normalize_reward": True}
    run = api.train("ppo", "Pendulum-v1", run_dir="run", **small)
    assert run.algorithm.state.reward_norm.running_return.any()
    again = api.resume(run.path, progress=False)
    assert not again.algorithm.state.reward_norm.running_return.any()
    assert again.algorithm.state.reward_norm.returns.count == run.algorithm.state.reward_norm.returns.count


def test_an_environment_that_is_made_takes_no_arguments():
    run = api.train_config(config(), progress=False)
    with pytest.raises(ConfigError, match="made already takes no arguments, got n_episodes"):
        api.evaluate(run.policy, api.make_env(ENV), n_episodes=3)


def test_arguments_that_are_said_elsewhere_are_no_arguments_of_the_environment():
    for name, ours in (("seed", "seed"), ("backend", "env_backend"), ("threads", "env_threads")):
        with pytest.raises(ConfigError, match=f"env_kwargs cannot hold '{name}': set {ours} instead"):
            config(env_kwargs={name: 1})


def test_evaluations_of_a_future_that_was_left_are_not_kept():
    run = api.train_config(config(run_dir="run", eval_episodes=1, eval_freq=16, checkpoint_freq=16), progress=False)
    files = sorted(path.name for path in (run.path / "eval").iterdir())
    assert len(files) == 4
    (run.path / "eval" / "step_000000000064_demo.json").write_text("{}")
    (run.path / "eval" / "step_mine.json").write_text("{}")
    store = CheckpointStore(run.path / "checkpoints")
    for step in (48, 64):
        shutil.rmtree(store.path(step), ignore_errors=True)
    latest = store.latest()
    assert latest == store.path(32) or latest == store.path(16)
    seen = []
    session_of = session.Session.resume

    def resume(self, path):
        session_of(self, path)
        seen.extend(sorted(p.name for p in (run.path / "eval").iterdir()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "resume", resume)
        api.resume(run.path, progress=False)
    assert seen == [*(name for name in files if int(name[5:17]) <= int(latest.name[5:])), "step_mine.json"]
    assert sorted(path.name for path in (run.path / "eval").iterdir()) == [*files, "step_mine.json"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "time/fps" in line] == [16, 32, 48, 64]
