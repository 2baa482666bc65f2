"""What is set reaches the part of a run that it is for: replay, loop, threads, evaluations, checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv

from habilis import api
from habilis.build import build_trainer
from habilis.checkpoint import CheckpointStore
from habilis.core.errors import CheckpointError
from habilis.evaluation.evaluator import EvaluationResult
from habilis.training import session
from habilis.training.keeping import components, restore

SMALL = {"num_envs": 3, "total_timesteps": 60, "algo.hidden": [8]}
REPLAY = {"algo.learning_starts": 40, "algo.train_freq": 4, "algo.batch_size": 8, "algo.buffer_size": 120}
PRIORITIES = {"algo.priority_alpha": 0.3, "algo.priority_beta": 0.7}
GOALS = {"algo.goal_selection_strategy": "final", "algo.n_sampled_goal": 1}
TINY = {"num_envs": 1, "algo.n_steps": 16, "algo.batch_size": 16, "algo.hidden": [8], "tensorboard": False}


def build(algorithm, env, **overrides):
    return build_trainer(api.default_config(algorithm, env, **SMALL | overrides))


def test_the_replay_is_made_as_it_is_set():
    many = {"algo.n_steps": 2, "algo.gamma": 0.8}
    buffer = build("per_dqn", "probe/BitFlip-v0", **REPLAY | PRIORITIES | GOALS | many).buffer
    assert (buffer.n_steps, buffer.gamma, buffer.held * buffer.num_envs) == (2, 0.8, 120)
    assert (buffer.priorities.alpha, buffer.priorities.beta) == (0.3, 0.7)
    assert (buffer.hindsight._strategy, buffer.hindsight._share) == ("final", 0.5)


def test_priorities_follow_the_errors_and_their_weights_the_progress():
    trainer = build("per_dqn", "CartPole-v1", **REPLAY | PRIORITIES)
    betas = []
    for _ in range(5):
        trainer.iterate()
        betas.append(trainer.buffer.priorities.beta)
    assert betas == pytest.approx([0.7, 0.76, 0.82, 0.88, 0.94])
    values = trainer.buffer.priorities.tree.values
    assert len(np.unique(values[values > 0])) > 8  # each is 1 until an error is known


@pytest.mark.parametrize("algorithm", ["tqc", "simba_sac"])
def test_what_a_preset_sets_of_quantiles_is_passed_over_without_them(algorithm):
    trainer = build(algorithm, "Pendulum-v1", **REPLAY | {"algo.n_quantiles": 1, "algo.critic_hidden": [8]})
    for _ in range(4):
        trainer.iterate()
    assert (trainer.algorithm.config.top_quantiles_to_drop_per_net, trainer.algorithm.gradient_steps > 0) == (2, True)


def test_rewards_are_divided_by_the_deviation_of_the_returns_until_now():
    trainer = build("sac", "InvertedPendulum-v5", **REPLAY | {"algo.normalize_reward": True, "algo.gamma": 0.9})
    collector, update, learnt, running, returns = trainer.collector, trainer.algorithm.update, [], np.zeros(3), []
    step = collector.step

    def follow(*args):
        made = step(*args)
        valid = made.valid.clone()
        if trainer.counters.iteration == 1:  # what may not be learnt from is no part of a return
            valid[0], made.reward[0] = False, 1000.0
        running[:] = 0.9 * running + made.reward.numpy()
        returns.extend(running[valid].tolist())
        running[(made.done | ~valid).numpy()] = 0
        return replace(made, valid=valid)

    def learn(batch):
        learnt.append((batch.reward, np.std(returns)))
        return update(batch)

    collector.step, trainer.algorithm.update = follow, learn
    for _ in range(5):
        trainer.iterate()
    assert (trainer.buffer.done.any(), len(learnt)) == (True, 2)
    for rewards, deviation in learnt:  # a step of the pendulum pays 1, or 0 where it falls
        assert (rewards * deviation).tolist() == pytest.approx((rewards > 0).float().tolist(), rel=1e-5)
        assert (rewards > 0).any()
    again = build("sac", "InvertedPendulum-v5", **REPLAY | {"algo.normalize_reward": True, "algo.gamma": 0.9})
    restore(again, components(trainer))
    assert float(again.reward_norm(torch.ones(1))) == pytest.approx(1 / learnt[-1][1], rel=1e-5)
    assert again.reward_norm.running_return.tolist() == pytest.approx(running.tolist(), rel=1e-5)


def test_returns_begin_anew_where_a_resumed_run_begins_new_episodes():
    settings = REPLAY | {"algo.normalize_reward": True, "env_backend": "gymnasium"}
    trainer, again = build("sac", "Pendulum-v1", **settings), build("sac", "Pendulum-v1", **settings)
    for _ in range(4):
        trainer.iterate()
    restore(again, components(trainer))
    assert (trainer.reward_norm.running_return < 0).all()
    assert again.reward_norm.running_return.tolist() == [0.0] * 3
    assert again.reward_norm.greatest == trainer.reward_norm.greatest > 0


@pytest.mark.parametrize("normalized", [True, False])
def test_a_replay_goes_on_with_rewards_as_it_began(normalized):
    trainer, other, twin = (
        build("sac", "probe/IdentityContinuous-v0", **REPLAY | {"algo.normalize_reward": chosen})
        for chosen in (normalized, not normalized, normalized)
    )
    trainer.iterate()
    refused = f"from {'normalised' if normalized else 'raw'} rewards: leave normalize_reward as it was"
    with pytest.raises(CheckpointError, match=refused):
        restore(other, components(trainer))
    restore(twin, components(trainer))


def test_environments_that_no_episode_is_taken_of_are_told_of():
    for episodes, told_of in ((2, True), (3, False)):
        told = []
        settings = SMALL | {"algo.n_episodes": episodes}
        build_trainer(api.default_config("reinforce", "probe/IdentityContinuous-v0", **settings), told.append)
        assert any(line.startswith("1 of 3 environments are stepped for nothing") for line in told) == told_of


def test_memory_that_comes_with_the_episodes_is_told_of():
    """Three values and a slot for each transition; and as much again where each is the last of its episode."""
    told, config = [], SMALL | REPLAY | {"algo.buffer_size": 1_000_000}
    build_trainer(api.default_config("sac", "Pendulum-v1", **config), told.append)
    ring = "replay memory: 1,000,000 transitions, 27 MB, and up to 16 MB more for last observations of episodes"
    assert ring in told


@pytest.mark.parametrize(("gradient_steps", "made"), [(2, 2), (-1, 12)])
def test_actions_are_drawn_evenly_until_learning_starts(gradient_steps, made):
    trainer = build("sac", "probe/IdentityContinuous-v0", **REPLAY | {"algo.gradient_steps": gradient_steps})
    policy, acted, seen = trainer.algorithm.policy, [], []
    act = policy.act
    policy.act = lambda *args, **kwargs: acted.append(True) or act(*args, **kwargs)
    for _ in range(5):
        report = trainer.iterate()
        seen.append((report.env_steps, len(acted), report.gradient_steps))
    # rounds of four steps of three environments: the fourth round passes the fortieth step, the fifth acts after it
    assert seen == [(12, 0, 0), (24, 0, 0), (36, 0, 0), (48, 0, made), (60, 4, 2 * made)]
    uniform = trainer.buffer.actions.values[:48]
    assert 0.3 < uniform.std() < 0.9
    # the round that makes just as many steps is the last that nothing is learnt after
    known = REPLAY | {"algo.gradient_steps": gradient_steps, "algo.learning_starts": 36}
    trainer = build("sac", "probe/IdentityContinuous-v0", **known)
    assert [trainer.iterate().gradient_steps for _ in range(4)] == [0, 0, 0, made]


@pytest.mark.parametrize(
    ("algorithm", "env", "settings"),
    [
        ("sac", "probe/TruncationValueContinuous-v0", REPLAY),
        ("ppo", "probe/TruncationValueContinuous-v0", {"algo.n_steps": 4, "algo.batch_size": 12}),
        ("q_learning", "probe/TruncationValue-v0", {"algo.train_freq": 4, "algo.hidden": None, "algo.rounding": [1.0]}),
    ],
)
def test_algorithms_are_told_how_far_the_run_has_come(algorithm, env, settings):
    known = {key: value for key, value in (SMALL | settings).items() if value is not None}
    trainer = build_trainer(api.default_config(algorithm, env, **known))
    told, inner = [], trainer.algorithm.set_progress
    trainer.algorithm.set_progress = lambda *progress: told.append(progress) or inner(*progress)
    assert [report.env_steps for report in trainer] == [12, 24, 36, 48, 60]
    # episodes of five steps of three environments
    rounds = {"q_learning": 4}.get(algorithm, 1)
    assert told[::rounds] == [(pytest.approx(k / 5), 3 * (4 * k // 5)) for k in range(5)]


def test_threads_are_those_that_are_asked_for():
    before = torch.get_num_threads()
    try:
        trainer = build("sac", "HalfCheetah-v5", **REPLAY, threads=4, env_threads=2)
        assert torch.get_num_threads() == 2  # of each of two parts side by side
        assert trainer.collector.env.simulation.threads == 2
        build("dqn", "CartPole-v1", **REPLAY, threads=4)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_products_of_matrices_are_as_precise_as_is_asked_for():
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "highest"):
            build("dqn", "CartPole-v1", **REPLAY, matmul_precision=precision)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_run_is_evaluated_and_kept_ten_times_and_logged_two_hundred_times():
    names = ("eval_freq", "checkpoint_freq", "log_freq")
    for total, every in ((4000, [400, 400, 20]), (5, [1, 1, 1])):
        config = api.default_config("ppo", "probe/ObservationReward-v0", **TINY, total_timesteps=total)
        assert [config.every(name) for name in names] == every
    assert api.default_config("ppo", "probe/ObservationReward-v0", **TINY, eval_freq=7).every("eval_freq") == 7


def test_the_best_policy_is_kept_across_resumptions(tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 2.5, 4.0, 3.5])
    monkeypatch.setattr(
        session, "evaluate", lambda *_, **told: EvaluationResult(np.array([next(scores)]), np.array([1]), None)
    )
    path = tmp_path / "run"
    settings = TINY | {"eval_freq": 16, "checkpoint_freq": 48, "keep_checkpoints": 1, "run_dir": str(path)}
    api.train_config(
        api.default_config("ppo", "probe/ObservationReward-v0", **settings, total_timesteps=48), progress=False
    )
    store = CheckpointStore(path / "checkpoints")
    for best, last, more in ((32, 48, 64), (32, 64, 96), (80, 96, None)):
        assert store.best() == store.path(best)
        assert store.steps() == [best, last]
        if more:
            api.resume(path, progress=False, total_timesteps=more)


def test_as_many_checkpoints_are_kept_as_are_asked_for(tmp_path):
    settings = TINY | {"eval_episodes": 0, "checkpoint_freq": 16, "keep_checkpoints": 3, "total_timesteps": 80}
    config = api.default_config("ppo", "probe/ObservationReward-v0", **settings, run_dir=str(tmp_path / "run"))
    api.train_config(config, progress=False)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [48, 64, 80]


def test_a_resumed_run_logs_and_keeps_no_more_than_one_that_was_not_stopped(tmp_path):
    settings = TINY | {"eval_episodes": 0, "checkpoint_freq": 64, "log_freq": 64, "keep_checkpoints": 3}
    config = api.default_config(
        "ppo", "probe/ObservationReward-v0", **settings, total_timesteps=80, run_dir=str(tmp_path / "run")
    )
    api.train_config(config, progress=False)
    run = api.resume(tmp_path / "run", progress=False, total_timesteps=112)
    assert CheckpointStore(run.path / "checkpoints").steps() == [64, 80, 112]
    assert [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [64]


def test_an_evaluation_may_be_of_the_stochastic_policy_too(tmp_path):
    settings = TINY | {"eval_episodes": 2, "eval_stochastic": True, "total_timesteps": 16}
    config = api.default_config("ppo", "probe/IdentityContinuous-v0", **settings, run_dir=str(tmp_path / "run"))
    run = api.train_config(config, progress=False)
    (file,) = (run.path / "eval").iterdir()
    tree = json.loads(file.read_text())
    assert (tree["deterministic"]["deterministic"], tree["stochastic"]["deterministic"]) == (True, False)
    assert tree["deterministic"]["returns"] != tree["stochastic"]["returns"]
    asked = [{}, {"deterministic": False}, {"seed": 1}]
    assert len({tuple(api.evaluate(run.path, episodes=2, **how).returns) for how in asked}) == 3


def test_episodes_that_begin_after_a_resumption_are_others_and_end_those_in_the_replay():
    def make():
        return build("sac", "Pendulum-v1", **REPLAY, env_backend="gymnasium")

    trainer, shown = make(), []
    for _ in range(2):
        trainer.iterate()
        again = make()
        restore(again, components(trainer))
        shown.append(again.collector.obs["policy"])
        buffer = again.buffer
        assert buffer.done[(buffer._head - 1) % buffer.rows].all()
        assert torch.equal(buffer.observations.shown(buffer._head, "policy"), shown[-1])
    assert not torch.equal(*shown)


def test_what_is_planned_is_dropped_with_its_episode():
    def make():
        known = {"num_envs": 3, "algo.rounding": [0.5], "env_backend": "gymnasium"}
        return build_trainer(api.default_config("sarsa", "MountainCar-v0", **known))

    trainer, again = make(), make()
    trainer.iterate()
    assert bool((trainer.algorithm.state.planned >= 0).all())
    restore(again, components(trainer))
    assert again.algorithm.state.planned.tolist() == [-1, -1, -1]


def test_every_seed_begins_with_episodes_of_its_own():
    first, again, other = (
        build("dqn", "CartPole-v1", **REPLAY, seed=seed).collector.obs["policy"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("dqn", REPLAY | {"algo.normalize_obs": True}), ("q_learning", {"algo.train_freq": 4, "algo.rounding": [0.1]})],
)
def test_steps_that_are_not_valid_are_left_out_of_statistics_and_tables(algorithm, settings):
    hidden = SMALL if algorithm == "dqn" else {k: v for k, v in SMALL.items() if k != "algo.hidden"}
    cleared = {} if algorithm == "dqn" else {"algo.bins": [], "algo.bins_low": [], "algo.bins_high": []}
    trainer = build_trainer(api.default_config(algorithm, "CartPole-v1", **hidden | settings | cleared))
    inner = trainer.collector.step
    wrong = torch.tensor([False, True, False])
    trainer.collector.step = lambda *args: replace(step := inner(*args), valid=step.valid & ~wrong)
    trainer.iterate()
    policy = trainer.algorithm.policy
    seen = policy.encoder.normalizers["policy"].count if algorithm == "dqn" else policy.visits.sum()
    assert float(seen) == 8  # of two environments in four steps


def test_sarsa_assumes_of_an_environment_what_that_one_does_next():
    known = {"num_envs": 3, "algo.rounding": [0.5], "env_backend": "gymnasium"}
    trainer = build_trainer(api.default_config("sarsa", "MountainCar-v0", **known))
    step, plan, update = trainer.collector.step, trainer.algorithm.plan, trainer.algorithm.update
    right, planned, learnt = torch.tensor([False, True, True]), [], []
    trainer.collector.step = lambda *args: replace(step(*args), valid=right)
    trainer.algorithm.plan = lambda *args: planned.append(plan(*args)) or planned[-1]
    trainer.algorithm.update = lambda batch: learnt.append(batch.next_action) or update(batch)
    for _ in range(8):
        trainer.iterate()
    assert torch.equal(torch.cat(learnt), torch.stack(planned)[:, right].flatten())


def test_whole_episodes_begin_with_an_update():
    trainer = build("reinforce", "CartPole-v1", **{"algo.n_episodes": 4})
    inner, resets = trainer.collector.reset, []
    trainer.collector.reset = lambda *args: resets.append(args) or inner(*args)
    trainer.iterate()
    trainer.iterate()
    assert resets == [(), ()]
    assert trainer.collector.episodes.count == 8  # who has made its share waits: what it does then is no episode


def test_an_interrupted_run_is_not_evaluated_first(tmp_path, monkeypatch):
    after = session.Session._after

    def interrupted(self, report):
        after(self, report)
        self.interrupted = True

    monkeypatch.setattr(session.Session, "_after", interrupted)
    settings = TINY | {"eval_episodes": 1, "eval_freq": 64, "total_timesteps": 64, "run_dir": str(tmp_path / "run")}
    run = api.train_config(api.default_config("ppo", "probe/ObservationReward-v0", **settings), progress=False)
    assert run.interrupted
    assert run.evaluation is None
    assert CheckpointStore(run.path / "checkpoints").steps() == [16]


def test_films_and_windows_show_the_policy_that_is_asked_for(monkeypatch):
    told = []
    monkeypatch.setattr(api, "film", lambda *args, **how: told.append(how))
    monkeypatch.setattr(api, "watch", lambda *args, **how: told.append(how))
    policy = build("dqn", "CartPole-v1", **REPLAY).algorithm.policy
    api.record_video(policy, "film.mp4", seed=3, deterministic=False)
    api.play(policy, seed=3, deterministic=False)
    assert [(how["seed"], how["deterministic"]) for how in told] == [(3, False)] * 2


def test_environments_have_processes_of_their_own_where_they_are_asked_for():
    env = build("dqn", "CartPole-v1", **REPLAY, env_async=True).collector.env
    assert isinstance(env.env, AsyncVectorEnv)
    env.close()
