"""What goes wrong in a run, and what is left of it: numbers that are not finite, environments that raise, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch

from habilis import api
from habilis.build import build_trainer
from habilis.checkpoint import CheckpointStore, load_checkpoint
from habilis.cli import main
from habilis.core.errors import CheckpointError, EndlessEpisodeError, EnvError, NonFiniteError
from habilis.envs.make import make_vec_env
from habilis.evaluation.evaluator import evaluate
from habilis.training.faults import Recorder, replay_dump
from habilis.training.nonfinite import Watch, learn_again

TINY = {
    "num_envs": 2,
    "total_timesteps": 96,
    "log_freq": 1,
    "eval_episodes": 0,
    "tensorboard": False,
    "algo": {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "hidden": [8]},
}


class Faulty(gym.Env):
    """Counts its steps and does what it was told at one of them."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, fault: str = "none", at: int = 10, only: int = 1) -> None:
        self.fault, self.at = fault, at
        Faulty.made = getattr(Faulty, "made", -1) + 1
        self.faulty = Faulty.made % 2 == only
        self.total = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        self.total += 1
        obs, reward = np.array([self.time / 5, 1.0], np.float32), 1.0
        if self.faulty and self.total == self.at:
            if self.fault == "raise":
                raise RuntimeError("the gripper fell off")
            if self.fault == "obs":
                obs[0] = np.nan
            if self.fault == "infinities":
                obs[:] = np.inf, -np.inf
            if self.fault == "reward":
                reward = np.inf
        return obs, reward, False, self.time >= 6, {}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    gym.register("HabilisTest/Faulty-v0", Faulty)
    Faulty.made = -1
    yield
    gym.registry.pop("HabilisTest/Faulty-v0")


def train(tmp_path, fault: str, **overrides):
    config = {**TINY, "run_dir": str(tmp_path / "run"), "env_kwargs": {"fault": fault}, **overrides}
    return api.train_config(api.default_config("ppo", "HabilisTest/Faulty-v0", **config), progress=False)


@pytest.mark.parametrize(("fault", "named"), [("obs", "observation group 'policy'"), ("reward", "reward")])
def test_a_step_that_is_not_finite_stops_the_run_and_is_named(tmp_path, fault, named, capsys):
    with pytest.raises(NonFiniteError) as error:
        train(tmp_path, fault)
    assert f"the {named} of environment 1 is not finite" in str(error.value)
    assert "cannot be played again, because HabilisTest/Faulty-v0 cannot save its state" in str(error.value)
    assert f"go on by habilis train --resume {tmp_path / 'run'}" in str(error.value)
    (dump,) = (tmp_path / "run" / "nonfinite").iterdir()
    states, meta = load_checkpoint(dump)
    assert states["recorder"]["actions"].shape == (10, 2, 1)
    assert meta["exact"] is False
    assert main(["doctor", "--replay", str(dump)]) == 1
    assert str(states["recorder"]["actions"][-1].tolist()) in capsys.readouterr().out
    assert all(bool(x.isfinite().all()) for x in states["policy"].values())
    # in the same iteration once more: the dump is of what happened last
    with pytest.raises(NonFiniteError, match=f"{dump} holds the last actions and the policy"):
        api.resume(tmp_path / "run", progress=False, **{"env_kwargs.at": 2})
    assert load_checkpoint(dump)[0]["recorder"]["actions"].shape == (2, 2, 1)


@pytest.mark.parametrize("fault", ["obs", "reward"])
def test_the_user_may_go_on_without_such_steps(tmp_path, fault):
    run = train(tmp_path, fault, on_nonfinite="skip")
    assert all(bool(p.isfinite().all()) for p in run.policy.parameters())
    assert run.metrics["train/value_loss"] < 100
    # an observation spoils the step that led to it and the step that started from it
    assert run.metrics["rollout/skipped_steps"] == {"obs": 2, "reward": 1}[fault]


def test_an_evaluation_that_is_not_finite_is_left_out(tmp_path, capsys):
    """The environments of the evaluation are the third and fourth that are made."""
    late = {"fault": "reward", "at": 10, "only": 0}
    options = {"env_kwargs": late, "eval_episodes": 2, "eval_freq": 32, "on_nonfinite": "skip", "total_timesteps": 160}
    config = {**TINY, "run_dir": str(tmp_path / "run"), **options}
    run = api.train_config(api.default_config("ppo", "HabilisTest/Faulty-v0", **config), progress=True)
    assert "is left out: an evaluation episode of environment 0" in capsys.readouterr().out
    assert run.algorithm.gradient_steps > 0
    # an episode is six steps: the tenth lies in the second of five evaluations, of one episode each
    kept = sorted(int(path.stem.removeprefix("step_")) for path in (tmp_path / "run" / "eval").iterdir())
    assert kept == [32, 96, 128, 160]


def test_a_temperature_that_is_not_finite_is_noticed(tmp_path):
    small = {"learning_starts": 16, "batch_size": 8, "buffer_size": 200, "hidden": (8,)}
    config = {**TINY, "run_dir": str(tmp_path / "run"), "algo": small, "num_envs": 1}
    trainer = build_trainer(api.default_config("sac", "Pendulum-v1", **config))
    trainer.algorithm.target_entropy = float("nan")
    watch = Watch(trainer)
    while trainer.algorithm.gradient_steps == 0:
        trainer.iterate()
    assert "gradient of the temperature is not finite" in watch.gradient()


def test_an_infinity_that_is_skipped_is_zero_and_not_the_largest_number(tmp_path):
    config = {
        **{key: value for key, value in TINY.items() if key != "algo"},
        "env_kwargs": {"fault": "infinities", "at": 32},
        "on_nonfinite": "skip",
        "algo": {"hidden": [8], "learning_starts": 16, "batch_size": 8, "buffer_size": 200, "normalize_obs": True},
    }
    trainer = build_trainer(api.default_config("sac", "HabilisTest/Faulty-v0", **config))
    while trainer.collector.skipped_rows == 0:
        trainer.iterate()
    assert trainer.counters.env_steps == 64
    assert trainer.collector.obs["policy"][1].tolist() == [0.0, 0.0]
    for report in trainer:
        assert all(bool(value.isfinite()) for value in report.metrics.values())
    assert all(float(count) == 0 for count in trainer.algorithm.skipped.values())
    state = trainer.algorithm.policy.state_dict()
    assert all(bool(x.isfinite().all()) and float(x.abs().max()) < 1e6 for x in state.values())


@pytest.mark.parametrize(
    ("fault", "at", "invalid"), [("obs", 3, [[2, 1], [3, 1]]), ("obs", 6, [[5, 1]]), ("reward", 3, [[2, 1]])]
)
def test_steps_that_are_not_finite_are_not_learnt_from(fault, at, invalid):
    """At the end of an episode, after six steps, the next begins from what is finite."""
    config = {**TINY, "env_kwargs": {"fault": fault, "at": at}, "on_nonfinite": "skip"}
    trainer = build_trainer(api.default_config("ppo", "HabilisTest/Faulty-v0", **config))
    trainer._collect()
    batch = trainer.buffer.batch()
    assert (~batch.valid).nonzero().tolist() == invalid
    assert bool(batch.obs["policy"].isfinite().all())
    assert bool(batch.final_obs["policy"].isfinite().all())
    assert bool(batch.rewards.isfinite().all())


def test_a_simulation_that_diverges_is_replayed_from_the_dump(tmp_path):
    config = api.default_config("ppo", "HalfCheetah-v5", **TINY, run_dir=str(tmp_path / "run"), env_threads=1)
    trainer = build_trainer(config)
    trainer.iterate()
    collector = trainer.collector
    recorder = collector.recorder
    recorder.clear()
    action = torch.zeros(2, 6)
    for _ in range(3):
        collector.step(action)
    spoiled = action.clone()
    spoiled[1, 2] = float("nan")
    recorder.record(spoiled)
    dump = recorder.dump()
    assert len(dump["actions"]) == 4
    env = build_trainer(config).collector.env
    first = replay_dump(env, {**dump, "actions": dump["actions"][:3]})
    assert first is None
    # the replay follows the run bit for bit
    assert torch.equal(
        torch.from_numpy(env.simulation.qpos.copy()), torch.from_numpy(collector.env.simulation.qpos.copy())
    )


def test_a_dump_holds_what_happened_last(monkeypatch):
    """From a snapshot on, which is taken anew now and then; without one the last actions, as many as that or half."""
    monkeypatch.setattr("habilis.training.faults.SNAPSHOT_EVERY", 4)
    env = make_vec_env("CartPole-v1", 1)
    env.reset(0)
    recorder, blind = Recorder(env), Recorder(make_vec_env("HabilisTest/Faulty-v0", 1))
    for k in range(10):
        action = torch.tensor([k % 2])
        recorder.record(action)
        blind.record(torch.tensor([k]))
        obs = env.step(action).obs["policy"]
    dump = recorder.dump()
    assert len(dump["actions"]) == 2
    env.load_state_dict(dump["env"])
    assert torch.equal([env.step(action).obs["policy"] for action in dump["actions"]][-1], obs)
    assert blind.dump()["env"] is None
    assert blind.dump()["actions"].flatten().tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("what", ["loss", "scalar"])
def test_a_loss_that_is_not_finite_stops_the_run_with_a_whole_policy(tmp_path, what, monkeypatch):
    trainer_of = api.build_trainer

    def spoil(*args):
        trainer = trainer_of(*args)
        algorithm, update = trainer.algorithm, trainer.algorithm.update
        calls = []

        def spoiled(batch):
            calls.append(1)
            if what == "loss" and len(calls) == 3:
                batch.rewards[0, 0] = float("nan")
            metrics = update(batch)
            return metrics | {"value_loss": torch.tensor(float("inf"))} if what == "scalar" else metrics

        algorithm.update = spoiled
        return trainer

    monkeypatch.setattr(api, "build_trainer", spoil)
    named = "gradient of the policy and value" if what == "loss" else "train/value_loss"
    with pytest.raises(NonFiniteError, match=rf"{named} is \w+( finite)? at env step {48 if what == 'loss' else 16}"):
        train(tmp_path, "none", algo={**TINY["algo"], "normalize_reward": False}, log_freq=96, checkpoint_freq=16)
    # what is not finite is seen before anything is saved, however rarely scalars are logged
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == ([16, 32] if what == "loss" else [])
    states, _ = load_checkpoint(next((tmp_path / "run" / "nonfinite").iterdir()))
    assert all(bool(x.isfinite().all()) for x in states["policy"].values())


def test_learning_again_ends_where_the_run_did():
    trainer = build_trainer(api.default_config("ppo", "HabilisTest/Faulty-v0", **TINY))
    assert learn_again(trainer, 32) is None
    assert trainer.counters.env_steps == 32


def test_an_environment_that_raises_is_named_and_the_checkpoint_before_it_goes_on(tmp_path):
    with pytest.raises(EnvError) as error:
        train(tmp_path, "raise", env_kwargs={"fault": "raise", "at": 30}, checkpoint_freq=16)
    assert "1" in str(error.value)
    assert "the gripper fell off" in str(error.value)
    assert f"--resume {tmp_path / 'run'}" in str(error.value)
    with pytest.raises(EnvError, match="what was learnt up to step 48 is kept: go on by"):
        api.resume(tmp_path / "run", progress=False, **{"env_kwargs.at": 2})
    run = api.resume(tmp_path / "run", progress=False, **{"env_kwargs.fault": "none"})
    assert not run.interrupted
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [16, 32, 48, 64, 80, 96]


def test_what_was_learnt_outlives_an_evaluation_that_raises(tmp_path):
    """The first evaluation comes after eight steps of each environment, and takes 24 of each of its own."""
    with pytest.raises(EnvError, match=r"the gripper fell off.*what was learnt up to step 16 is kept"):
        train(
            tmp_path,
            "raise",
            env_kwargs={"fault": "raise", "at": 20},
            eval_episodes=40,
            eval_freq=16,
            checkpoint_freq=96,
        )
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [16]


def test_an_evaluation_that_does_not_end_is_left_out(tmp_path, monkeypatch, capsys):
    """A policy that has learnt little may go round in circles where nothing limits its time."""
    monkeypatch.setattr("habilis.training.session.ENDLESS", 2)  # the goal is three steps away
    run = api.train_config(
        api.default_config(
            "q_learning",
            "habilis/GridWorld-v0",
            env_kwargs={"max_episode_steps": -1},
            run_dir=str(tmp_path / "run"),
            total_timesteps=96,
            num_envs=2,
            eval_freq=48,
            eval_episodes=2,
            checkpoint_freq=96,
        ),
        progress=True,
    )
    assert run.evaluation is None
    assert not (run.path / "eval").exists()
    assert CheckpointStore(run.path / "checkpoints").steps() == [96]
    told = capsys.readouterr().out
    for steps in (48, 96):
        assert f"The evaluation after {steps} env steps is left out: environment 0 of habilis/GridWorld-v0" in told
    assert "--env-kwargs max_episode_steps 1000" in told


def test_a_run_whose_last_evaluation_is_left_out_ends_without_one(tmp_path, monkeypatch):
    """Not with the one before, of a policy that is no longer the last."""
    done = []

    def once(*args, **told):
        if done:
            raise EndlessEpisodeError("round in circles")
        done.append(evaluate(*args, **told))
        return done[0]

    monkeypatch.setattr("habilis.training.session.evaluate", once)
    run = train(tmp_path, "none", eval_episodes=2, eval_freq=48)
    assert len(done) == len(list((run.path / "eval").iterdir())) == 1
    assert run.evaluation is None


def test_an_evaluation_with_a_time_limit_waits_for_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("habilis.training.session.ENDLESS", 2)
    config = {"run_dir": str(tmp_path / "run"), "total_timesteps": 96, "eval_episodes": 2}
    run = api.train_config(api.default_config("q_learning", "habilis/GridWorld-v0", **config), progress=False)
    assert run.evaluation is not None
    assert run.evaluation.lengths.max() > 2
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    told, e = [line for line in lines if "eval/mean_reward" in line][-1], run.evaluation
    names = ("mean_reward", "iqm_reward", "mean_ep_length", "success_rate")
    assert [told[f"eval/{name}"] for name in names] == pytest.approx([e.mean, e.iqm, e.mean_length, e.success_rate])


def test_a_run_that_saved_nothing_starts_again(tmp_path):
    with pytest.raises(EnvError, match=f"nothing had been saved yet: start again by .*--resume {tmp_path / 'run'}"):
        train(tmp_path, "raise", checkpoint_freq=96)
    run = api.resume(tmp_path / "run", progress=False, **{"env_kwargs.fault": "none"})
    assert api.load_config(run.path).env_kwargs == {"fault": "none"}
    steps = [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [16, 32, 48, 64, 80, 96]


def test_scalars_of_a_policy_that_moves_rarely_outlive_a_resumption(tmp_path):
    config = {
        **{key: value for key, value in TINY.items() if key != "algo"},
        "run_dir": str(tmp_path / "run"),
        "num_envs": 1,
        "total_timesteps": 20,
        "algo": {"hidden": [8], "learning_starts": 8, "batch_size": 8, "buffer_size": 200, "policy_delay": 11},
    }
    api.train_config(api.default_config("td3", "HabilisTest/Faulty-v0", **config), progress=False)
    wall = load_checkpoint(tmp_path / "run" / "checkpoints" / "last")[0]["session"]["wall"]
    api.resume(tmp_path / "run", total_timesteps=21, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[-2:]] == [20, 21]
    assert lines[-1]["train/policy_loss"] == lines[-2]["train/policy_loss"]
    assert lines[-1]["train/critic_loss"] != lines[-2]["train/critic_loss"]
    # time goes on from where it stood, and speed is that of the one step since
    assert lines[-1]["time/wall"] > wall >= lines[-2]["time/wall"]
    assert lines[-1]["time/fps"] * (lines[-1]["time/wall"] - wall) == pytest.approx(1, rel=1e-3)


def test_ctrl_c_finishes_the_iteration_and_saves(tmp_path, monkeypatch):
    trainer_of, before, meanwhile = api.build_trainer, signal.getsignal(signal.SIGINT), []

    def interrupt(*args):
        trainer = trainer_of(*args)
        update = trainer.algorithm.update

        def interrupted(batch):
            if trainer.counters.iteration == 1:
                os.kill(os.getpid(), signal.SIGINT)
                meanwhile.append(signal.getsignal(signal.SIGINT))
            return update(batch)

        trainer.algorithm.update = interrupted
        return trainer

    monkeypatch.setattr(api, "build_trainer", interrupt)
    run = train(tmp_path, "none")
    assert run.interrupted
    assert meanwhile == [before]  # the second one stops at once
    states, meta = load_checkpoint(run.path / "checkpoints" / "last")
    assert states["counters"] == {"iteration": 2, "env_steps": 32}
    assert meta["exact"] is False
    monkeypatch.undo()
    again = api.resume(run.path, progress=False)
    assert not again.interrupted
    assert signal.getsignal(signal.SIGINT) == before
    assert load_checkpoint(run.path / "checkpoints" / "last")[0]["counters"]["env_steps"] == 96


def test_a_fault_of_an_evaluation_says_how_to_repeat_it_and_what_met_it_is_kept(tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise NonFiniteError("an evaluation episode returned nan")

    monkeypatch.setattr("habilis.training.session.evaluate", refuse)
    with pytest.raises(
        NonFiniteError, match=r"habilis evaluate \S+ --episodes 3 --seed 1000005` repeats.*step 48 is kept"
    ):
        train(tmp_path, "none", eval_episodes=3, eval_freq=48, checkpoint_freq=96, seed=5)
    assert not (tmp_path / "run" / "nonfinite").exists()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [48]


def test_another_engine_cannot_take_over_a_run(tmp_path):
    small = {**TINY, "run_dir": str(tmp_path / "run"), "env_backend": "gymnasium"}
    api.train_config(api.default_config("ppo", "InvertedPendulum-v5", **small), progress=False)
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(
        CheckpointError, match=r"no state of its environment.*backend native saves its own.*env_backend"
    ):
        api.resume(tmp_path / "run", progress=False, env_backend="native", total_timesteps=200)
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_an_evaluation_that_is_broken_off_costs_nothing_and_is_made_up_for(tmp_path, monkeypatch):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("habilis.training.session.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "none", eval_episodes=2, eval_freq=960, checkpoint_freq=960)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [96]
    run = api.resume(tmp_path / "run", progress=False)
    assert run.evaluation is not None
    assert [path.name for path in (run.path / "eval").iterdir()] == ["step_000000000096.json"]
    assert CheckpointStore(run.path / "checkpoints").best() is not None
