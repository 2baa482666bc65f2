"""A plugin changes what an algorithm sees, reports scalars, and is kept with the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.checkpoint import load_checkpoint, save_checkpoint
from habilis.core.config import override
from habilis.core.errors import CheckpointError, ConfigError
from habilis.plugins import learn_with
from habilis.plugins.random_shift import RandomShift
from habilis.training.keeping import components, restore

SMALL = {
    "ppo": {"num_envs": 2, "algo.n_steps": 8, "algo.batch_size": 8, "algo.n_epochs": 1, "algo.hidden": [8]},
    "sac": {"num_envs": 2, "algo.learning_starts": 2, "algo.batch_size": 8, "algo.buffer_size": 64, "algo.hidden": [8]},
}


class Bonus:
    """Adds a number to every reward and counts the batches it has seen."""

    def __init__(self, bonus: float) -> None:
        self.bonus = bonus
        self.seen = 0

    def transform(self, batch):
        if hasattr(batch, "rewards"):
            return replace(batch, rewards=batch.rewards + self.bonus)
        return replace(batch, reward=batch.reward + self.bonus)

    def update(self, batch):
        self.seen += 1
        return {"bonus": torch.tensor(self.bonus)}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def trainer_with(algorithm: str, bonus: float):
    trainer = build_trainer(default_config(algorithm, "probe/IdentityContinuous-v0", **SMALL[algorithm]))
    trainer.plugins = [Bonus(bonus)]
    return trainer


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_the_algorithm_sees_the_transformed_batch_and_the_buffer_stays_raw(algorithm):
    plain, changed = trainer_with(algorithm, 0.0), trainer_with(algorithm, 5.0)
    seen, raw = {}, []
    if algorithm == "ppo":  # a rollout is given out once: what was given stays as it is
        give = changed.buffer.batch
        changed.buffer.batch = lambda: raw.append(give()) or raw[-1]
    for name, trainer in (("plain", plain), ("changed", changed)):
        inner = trainer.algorithm.update

        def spy(batch, name=name, inner=inner):
            seen.setdefault(name, getattr(batch, "rewards", getattr(batch, "reward", None)).clone())
            return inner(batch)

        trainer.algorithm.update = spy
        reports = [trainer.iterate() for _ in range(3)]
        assert float(reports[-1].metrics["bonus"]) == trainer.plugins[0].bonus
    torch.testing.assert_close(seen["changed"], seen["plain"] + 5.0)
    # the task's own rewards are distances, never above zero
    held = [batch.rewards for batch in raw] or [changed.buffer.rewards.values]
    assert all(float(rewards.max()) <= 0.0 for rewards in held)


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_its_state_is_in_the_checkpoint(algorithm, tmp_path: Path):
    trainer = trainer_with(algorithm, 1.0)
    for _ in range(3):
        trainer.iterate()
    save_checkpoint(tmp_path / "c", components(trainer), meta={"exact": True})
    again = trainer_with(algorithm, 1.0)
    restore(again, load_checkpoint(tmp_path / "c")[0])
    assert again.plugins[0].seen == trainer.plugins[0].seen > 0


def test_plugins_transform_in_their_order_and_learn_after_the_algorithm():
    told = []

    class Adds:
        def __init__(self, name, number):
            self.name, self.number = name, number

        def transform(self, batch):
            return batch * 10 + self.number

        def update(self, batch):
            told.append((self.name, batch))
            return {self.name: torch.tensor(float(batch))}

    class Learner:
        def update(self, batch):
            told.append(("algorithm", batch))
            return {"loss": torch.tensor(0.0)}

    metrics = learn_with([Adds("first", 2), Adds("second", 3)], Learner(), 1)
    assert told == [("algorithm", 123), ("first", 1), ("second", 12)]
    assert set(metrics) == {"loss", "first", "second"}


def test_a_run_has_the_plugins_of_its_configuration(tmp_path: Path):
    config = default_config(
        "sac",
        "habilis/ReacherPixels-v0",
        **SMALL["sac"],
        env_kwargs={"pixels": 20},
        plugins={"random_shift": {"pad": 2}, "next_state_prediction": {"hidden": 8}},
    )
    trainer = build_trainer(config)
    assert isinstance(trainer.plugins[0], RandomShift)
    assert trainer.plugins[0].config.pad == 2
    metrics = [trainer.iterate().metrics for _ in range(3)][-1]
    assert metrics["next_state_prediction_loss"].isfinite()
    with pytest.raises(ConfigError, match=r"plugins\.next_state_prediction\.learning_rate must be finite, got inf"):
        override(config, {"plugins": {"next_state_prediction": {"learning_rate": float("inf")}}})
    save_checkpoint(tmp_path / "c", components(trainer), meta={"exact": True})
    other = build_trainer(override(config, {"plugins": {"random_shift": {}}}))
    with pytest.raises(CheckpointError, match="2 plugins and the run has 1"):
        restore(other, load_checkpoint(tmp_path / "c")[0])


@pytest.mark.parametrize(
    ("algorithm", "env", "words"),
    [
        ("ppo", "habilis/Catch-v0", "learns from its own actions"),
        ("a3c", "habilis/Catch-v0", "a3c takes no plugins, got random_shift"),
        ("q_learning", "habilis/GridWorld-v0", "q_learning takes no plugins"),
        ("trpo", "habilis/Catch-v0", "trpo takes no plugins"),
        ("sac", "probe/IdentityContinuous-v0", "shows none"),
    ],
)
def test_who_has_no_place_for_a_plugin_says_so(algorithm, env, words):
    with pytest.raises(ConfigError, match=words):
        build_trainer(default_config(algorithm, env, plugins={"random_shift": {}}))
