"""Workers that share a network: one is A2C bit for bit, several step on the same parameters, none outlives its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from habilis.algorithms.a2c import A2C
from habilis.api import default_config
from habilis.build import build_trainer, make_env
from habilis.core.errors import ConfigError, EnvError, HabilisError, NonFiniteError
from habilis.core.random import RandomStreams, derive_seed
from habilis.data.rollout import RolloutBuffer
from habilis.training import asynchronous
from habilis.training.asynchronous import ROLLOUTS, moments_of, normalizers
from habilis.training.collector import Collector
from habilis.training.on_policy import OnPolicyTrainer

SMALL = {"algo.n_steps": 4, "algo.hidden": [8], "total_timesteps": 10_000, "env_threads": 1}


def config_of(workers, env="probe/Identity-v0", **changes):
    return default_config("a3c", env, num_envs=workers, **{**SMALL, **changes})


def is_running(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_the_start_tells_of_the_workers():
    told = []
    build_trainer(config_of(3), told.append)
    assert told[-1].startswith("workers: 3, each with such an environment")


def test_threads_that_workers_have_no_use_for_are_told_of():
    for threads, told_of in ((2, True), (1, False)):
        told = []
        build_trainer(config_of(2, threads=threads), told.append)
        assert any(line.startswith("workers learn on one thread each") for line in told) == told_of


@pytest.mark.parametrize(("algorithm", "env"), [("a3c", "probe/Identity-v0"), ("q_learning", "habilis/GridWorld-v0")])
def test_what_lives_in_the_processors_memory_stays_there_beside_a_gpu(algorithm, env, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = default_config(algorithm, env, device="auto", total_timesteps=64)
    assert build_trainer(config).collector.device.type == "cpu"
    with pytest.raises(ConfigError, match="'cuda'"):
        build_trainer(replace(config, device="cuda"))


def test_an_environment_needs_no_second_process():
    with pytest.raises(ConfigError, match="a3c has a process for each environment already: leave env_async out"):
        build_trainer(config_of(2, "CartPole-v1", env_async=True))


def test_one_worker_is_a2c_bit_for_bit():
    config = config_of(1, **{"algo.learning_rate_schedule": "linear"})
    trainer, twin_start = build_trainer(config), build_trainer(config).algorithm
    report = trainer.iterate()
    seed = derive_seed(config.seed, "worker/0/0")
    streams, env_seed = RandomStreams(seed), derive_seed(seed, "env")
    env = make_env(config, 1, env_seed)
    collector = Collector(env)
    collector.reset(env_seed)
    algorithm = A2C(env.spec, config.algo, num_envs=1, streams=streams)
    algorithm.state.optimizer.flat.copy_(twin_start.state.optimizer.flat)
    buffer = RolloutBuffer(4)
    twin = OnPolicyTrainer(collector, algorithm, buffer, streams=streams, total_timesteps=10_000)
    for _ in range(ROLLOUTS):
        twin.iterate()
    assert report.env_steps == twin.counters.env_steps == 4 * ROLLOUTS
    assert trainer.algorithm.gradient_steps == ROLLOUTS
    one, other = trainer.algorithm.state.optimizer.state_dict(), algorithm.state.optimizer.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(trainer.algorithm.state.optimizer.flat, algorithm.state.optimizer.flat)
    assert not torch.equal(algorithm.state.optimizer.flat, twin_start.state.optimizer.flat)
    # what the normalisers saw is the trainer's too, as if it had taken the differences in
    pairs = zip(normalizers(trainer.algorithm.state), normalizers(algorithm.state), strict=True)
    for ours, theirs in pairs:
        assert float(ours.count) == float(theirs.count) == 4 * ROLLOUTS
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    # the policy of the trainer's process is what the worker has learnt, without being told
    obs = {"policy": torch.eye(4)}
    assert torch.equal(trainer.algorithm.policy(obs)[0], algorithm.policy(obs)[0])
    assert trainer.collector.episodes.count == collector.episodes.count == 4 * ROLLOUTS // 8
    assert list(trainer.collector.episodes.recent) == list(collector.episodes.recent)
    trainer.close()


def test_two_workers_step_on_the_same_parameters_and_end_with_the_trainer():
    trainer = build_trainer(config_of(2))
    optimizer = trainer.algorithm.state.optimizer
    before, reports = optimizer.flat.clone(), [trainer.iterate() for _ in range(3)]
    assert [r.env_steps for r in reports] == [400, 800, 1200]
    assert trainer.algorithm.gradient_steps == 300
    # both count on one counter, and may lose a count to each other
    assert 150 < float(optimizer.steps) <= 300
    assert not torch.equal(optimizer.flat, before)
    # of eight steps each; which worker made how many is chance, and the last of each may be under way
    assert trainer.collector.episodes.count in (149, 150)
    assert all(float(each.count) == 1200 for each in normalizers(trainer.algorithm.state))
    # between rounds nothing moves
    waiting = optimizer.flat.clone()
    time.sleep(0.2)
    assert torch.equal(optimizer.flat, waiting)
    pids = [process.pid for process, _ in trainer._workers]
    assert all(map(is_running, pids))
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(HabilisError, match=r"worker 1 died with exit code -9, which often means .* out of memory"):
        trainer.iterate()
    trainer.close()
    assert not any(map(is_running, pids))


ENV_THAT_FAILS = """
from dataclasses import replace

from habilis.envs.probes import ProbeEnv


class Failing(ProbeEnv):
    def step(self, action):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 30:
            raise RuntimeError("the gripper is stuck")
        return super().step(action)


class Diverging(ProbeEnv):
    def step(self, action):
        step = super().step(action)
        return replace(step, reward=step.reward / 0)


def make(seed):
    return Failing("probe/Identity-v0", 1, seed=seed)


def make_diverging(seed):
    return Diverging("probe/Identity-v0", 1, seed=seed)
"""


def test_what_a_worker_raises_is_told(tmp_path, monkeypatch):
    (tmp_path / "env_that_fails.py").write_text(ENV_THAT_FAILS)
    monkeypatch.syspath_prepend(tmp_path)
    from env_that_fails import make, make_diverging

    trainer = build_trainer(config_of(1))
    trainer._work = replace(trainer._work, make_env=make)
    with pytest.raises(HabilisError, match="worker 0 stopped: RuntimeError: the gripper is stuck") as caught:
        trainer.iterate()
    assert "in step" in caught.value.__notes__[0]
    trainer.close()
    # an error of the environment, or of how it is made, is one here too
    trainer = build_trainer(config_of(1))
    trainer._work = replace(trainer._work, make_env=partial(make_env, config_of(1, "probe/None-v0"), 1))
    with pytest.raises(EnvError, match="worker 0 stopped: there is no environment 'probe/None-v0'"):
        trainer.iterate()
    trainer.close()
    # and one that a run writes `nonfinite/` for stays one
    trainer = build_trainer(config_of(1))
    trainer._work = replace(trainer._work, make_env=make_diverging)
    with pytest.raises(NonFiniteError, match="worker 0 stopped: the reward of environment 0 is not finite"):
        trainer.iterate()
    trainer.close()


ENV_THAT_DIVERGES = """
from dataclasses import replace

import torch

from habilis.envs.probes import ProbeEnv


class Diverging(ProbeEnv):
    def step(self, action):
        self.steps = getattr(self, "steps", 0) + 1
        diverged = torch.tensor([self.steps % 10 == 0])
        return replace(super().step(action), valid=~diverged, info={"diverged": diverged})


def make(seed):
    return Diverging("probe/Identity-v0", 1, seed=seed)
"""


def test_divergences_of_workers_are_counted(tmp_path, monkeypatch):
    (tmp_path / "env_that_diverges.py").write_text(ENV_THAT_DIVERGES)
    monkeypatch.syspath_prepend(tmp_path)
    from env_that_diverges import make

    trainer = build_trainer(config_of(1))
    trainer._work = replace(trainer._work, make_env=make)
    for _ in range(2):
        report = trainer.iterate()
    assert trainer.collector.episodes.summary()["rollout/diverged_steps"] == report.env_steps // 10
    trainer.close()


def test_a_run_ends_where_it_was_told_to():
    trainer = build_trainer(config_of(2, total_timesteps=100))
    assert [report.env_steps for report in trainer] == [100]
    trainer.close()


def test_a_script_that_starts_itself_anew_is_told_how_to_be_written(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import habilis\nhabilis.train('a3c', env='probe/Identity-v0', num_envs=1, run_dir='run')\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "worker 0 died with exit code 1 before it did anything" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
    assert "out of memory" not in done.stderr


SCRIPT = """
from habilis.api import default_config
from habilis.build import build_trainer
if __name__ == "__main__":
    trainer = build_trainer(default_config("a3c", "probe/Identity-v0", num_envs=2, total_timesteps=10**9))
    trainer.iterate()
    print(*(process.pid for process, _ in trainer._workers), flush=True)
    for _ in trainer:
        pass
"""


def test_no_worker_outlives_a_trainer_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        try:
            pids = [int(word) for word in process.stdout.readline().split()]
            assert len(pids) == 2
            assert all(map(is_running, pids))
        finally:
            process.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def test_an_interrupted_run_is_kept_and_goes_on(tmp_path):
    """Ctrl-C reaches every process of the terminal; the workers leave it to the trainer."""
    run = tmp_path / "run"
    flags = ["--env", "probe/Identity-v0", "--num-envs", "2", "--algo.n-steps", "4", "--run-dir", str(run)]
    flags += ["--total-timesteps", "1000000000", "--log-freq", "400", "--eval-episodes", "0", "--no-tensorboard"]
    command = [sys.executable, "-m", "habilis", "train", "a3c", *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    metrics = run / "metrics.jsonl"
    try:
        wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "--resume" in output
    (kept,) = (run / "checkpoints").glob("step_*")
    assert json.loads((kept / "manifest.json").read_text())["meta"]["exact"] is False
    steps = int(kept.name.removeprefix("step_"))
    command = [sys.executable, "-m", "habilis", "train", "--resume", str(run), "--total-timesteps", str(steps + 1)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "asynchronous workers never do the same twice" in done.stdout + done.stderr
    (last, *_) = sorted((run / "checkpoints").glob("step_*"), reverse=True)
    assert int(last.name.removeprefix("step_")) == steps + 4  # a rollout, not a round, is what goes beyond at most


def test_a_worker_anneals_by_the_steps_of_all_and_multiplies_as_precisely_as_it_is_told():
    config = config_of(2, matmul_precision="medium", **{"algo.learning_rate_schedule": "linear"})
    trainer, made = build_trainer(config), []
    torch.set_float32_matmul_precision("highest")  # as a new process begins
    work, state = trainer._work, trainer.algorithm.state
    claimed = torch.multiprocessing.get_context("spawn").Value("q", 5000)
    shared = asynchronous.Shared(state.optimizer.share(), [moments_of(x) for x in normalizers(state)], claimed)
    here, there = Pipe()
    here.send(5004)
    here.send(None)
    told = replace(work, make_algorithm=lambda *args: made.append(work.make_algorithm(*args)) or made[-1])
    try:
        asynchronous._serve(told, 0, shared, there)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert here.recv().updates == 1
    assert float(made[0].state.optimizer.learning_rate) == pytest.approx(config.algo.learning_rate / 2)


def test_no_two_workers_have_the_same_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(asynchronous, "derive_seed", lambda *args: seeds.append(derive_seed(*args)) or seeds[-1])
    trainer = build_trainer(config_of(3))
    trainer._start()
    trainer.close()
    assert len(set(seeds)) == 3
