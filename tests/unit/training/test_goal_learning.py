"""Goals from the environment to the exported policy."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.core.errors import ConfigError, EnvError
from habilis.core.specs import ACHIEVED, DESIRED
from habilis.deploy.export import export_policy
from habilis.deploy.runtime import OnnxPolicy

POINT, BITS = "habilis/PointReachGoal-v0", "probe/BitFlip-v0"
REPLAY = {"algo.learning_starts": 20, "algo.batch_size": 16, "algo.buffer_size": 500, "algo.hidden": [16]}
HINDSIGHT = REPLAY | {"algo.goal_selection_strategy": "future", "algo.normalize_obs": True}


def trained(algorithm, env, rounds=40, **settings):
    trainer = build_trainer(default_config(algorithm, env, num_envs=2, threads=1, total_timesteps=1000, **settings))
    for _ in range(rounds):
        trainer.iterate()
    return trainer


@pytest.mark.parametrize(
    ("algorithm", "env", "settings"),
    [
        ("sac", POINT, HINDSIGHT),
        ("tqc", POINT, HINDSIGHT),
        *((name, POINT, HINDSIGHT) for name in ("td3", "ddpg")),
        *(
            (name, POINT, {**HINDSIGHT, "algo.critic_hidden": [16]})
            for name in ("crossq", "redq", "droq", "simba_sac", "fast_td3")
        ),
        ("discrete_sac", BITS, HINDSIGHT),
        ("dqn", BITS, HINDSIGHT),
        ("rainbow", BITS, HINDSIGHT),
        ("ppo", POINT, {"algo.n_steps": 4, "algo.batch_size": 8, "algo.hidden": [16]}),
    ],
)
def test_policies_and_critics_read_the_goal_that_is_wanted(algorithm, env, settings):
    trainer = trained(algorithm, env, 2 if algorithm == "ppo" else 40, **settings)
    learner = trainer.algorithm
    assert learner.gradient_steps > 0
    assert learner.policy.encoder.names == ("policy", DESIRED)
    for name in ("critics", "critic"):
        if hasattr(learner.state, name):
            assert getattr(learner.state, name).encoder.names == ("policy", DESIRED)
    obs = trainer.collector.obs
    other = {**obs, DESIRED: 1 - obs[DESIRED]}
    asked = {"dqn": "scores", "rainbow": "scores", "discrete_sac": "distribution"}.get(algorithm, "forward")
    answers = [getattr(learner.policy, asked)(o) for o in (obs, other)]
    told = [x.entropy() if asked == "distribution" else x if asked == "scores" else x[0] for x in answers]
    assert not torch.equal(*told)


def test_goals_in_hindsight_are_normalised_as_those_that_were_wanted():
    trainer = build_trainer(default_config("sac", POINT, num_envs=2, threads=1, **HINDSIGHT))
    seen = []
    for _ in range(30):
        seen.append(trainer.collector.obs)
        trainer.iterate()
    for module in (trainer.algorithm.policy, trainer.algorithm.state.critics):
        norm = module.encoder.normalizers[DESIRED]
        goals = torch.cat([obs[name] for obs in seen for name in (DESIRED, ACHIEVED)]).double()
        assert float(norm.count) == 120
        torch.testing.assert_close(norm.mean, goals.mean(0))
        torch.testing.assert_close(norm.var, goals.var(0, correction=0))
        states = torch.cat([obs["policy"] for obs in seen]).double()
        assert float(module.encoder.normalizers["policy"].count) == 60
        torch.testing.assert_close(module.encoder.normalizers["policy"].mean, states.mean(0))
        torch.testing.assert_close(module.encoder.normalizers["policy"].var, states.var(0, correction=0))


def test_goals_may_be_learnt_of_without_hindsight():
    trainer = trained("sac", POINT, 15, **REPLAY, **{"algo.goal_selection_strategy": "none"})
    assert trainer.buffer.hindsight is None
    assert trainer.algorithm.gradient_steps > 0


@pytest.mark.parametrize("backend", ["gymnasium", "native"])
def test_a_policy_takes_what_gymnasium_shows_and_so_does_its_export(backend, tmp_path):
    trainer = trained("sac", POINT, 20, env_backend=backend, **HINDSIGHT)
    policy, spec = trainer.algorithm.policy, trainer.collector.env.spec
    rng = np.random.default_rng(0)
    shown = {name: rng.normal(size=(5, spec.obs[name].size)).astype(np.float32) for name in ("policy", DESIRED)}
    as_gymnasium = {"observation": shown["policy"], DESIRED: shown[DESIRED], ACHIEVED: shown["policy"][:, :3]}
    action, _ = policy.predict(shown)
    assert np.array_equal(policy.predict(as_gymnasium)[0], action)
    onnx = OnnxPolicy(export_policy(policy, spec, tmp_path / "exported"))
    assert list(onnx.spec.obs) == ["policy", DESIRED]
    for obs in (shown, as_gymnasium):
        assert np.allclose(onnx.predict(obs)[0], action, atol=1e-5)


def test_what_has_no_goals_is_refused():
    with pytest.raises(ConfigError, match="Pendulum-v1 has no goals"):
        trained("sac", "Pendulum-v1", **{"algo.goal_selection_strategy": "future"})


def test_a_reward_under_a_wrapper_that_changes_it_is_refused():
    def scaled():
        return gymnasium.wrappers.TransformReward(gymnasium.make(f"habilis.tasks:{POINT}"), lambda reward: 2 * reward)

    gymnasium.register("ScaledGoal-v0", entry_point=scaled, disable_env_checker=True)
    with pytest.raises(EnvError, match="paid something else than its compute_reward"):
        trained("sac", "ScaledGoal-v0", 110, **HINDSIGHT)
