"""A plugin changes what an algorithm sees, reports scalars, and is kept with the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.checkpoint import load_checkpoint, save_checkpoint
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
    seen = {}
    for name, trainer in (("plain", plain), ("changed", changed)):
        inner = trainer.algorithm.update

        def spy(batch, name=name, inner=inner):
            seen.setdefault(name, getattr(batch, "rewards", getattr(batch, "reward", None)).clone())
            return inner(batch)

        trainer.algorithm.update = spy
        reports = [trainer.iterate() for _ in range(3)]
        assert float(reports[-1].metrics["bonus"]) == trainer.plugins[0].bonus
    torch.testing.assert_close(seen["changed"], seen["plain"] + 5.0)
    assert float(changed.buffer.rewards.max()) <= 0.0  # the task's own rewards are distances, never above zero


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_its_state_is_in_the_checkpoint(algorithm, tmp_path: Path):
    trainer = trainer_with(algorithm, 1.0)
    for _ in range(3):
        trainer.iterate()
    save_checkpoint(tmp_path / "c", components(trainer), meta={"exact": True})
    again = trainer_with(algorithm, 1.0)
    restore(again, load_checkpoint(tmp_path / "c")[0])
    assert again.plugins[0].seen == trainer.plugins[0].seen > 0
