"""The rollout buffer gives back what was put in, with the true last observation of every episode."""

from __future__ import annotations

import pytest
import torch

from habilis.core.types import PolicyStep, Step
from habilis.data.rollout import RolloutBuffer

ACTIONS = {
    "box": lambda g: torch.randn(3, 2, generator=g),
    "choice": lambda g: torch.randint(4, (3,), generator=g),
    "choices": lambda g: torch.randint(2, (3, 2), generator=g),
}


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("ends", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("late", [False, True], ids=["in the same step", "one step later"])
def test_against_a_list(kind, ends, late):
    """Episodes begin anew in the step that ends one, or one step later: the next observation is then the last."""
    draw, g = ACTIONS[kind], torch.Generator().manual_seed(0)
    buffer = RolloutBuffer(6)

    def observe():
        image = torch.randint(256, (3, 4, 4, 1), generator=g, dtype=torch.uint8)
        return {"policy": torch.randn(3, 2, generator=g), "camera": image}

    for _ in range(2):  # the second filling must hold nothing of the first
        obs = observe()
        buffer.start(obs)
        seen, steps, acted = [obs], [], []
        for _ in range(6):
            end = torch.rand(3, generator=g) < ends
            terminated = end & (torch.rand(3, generator=g) < 0.5)
            next_obs = observe()
            here = observe() if end.any() and not late else next_obs
            valid = torch.rand(3, generator=g) < 0.8
            step = Step(here, next_obs, torch.randn(3, generator=g), terminated, end & ~terminated, valid)
            policy_step = PolicyStep(draw(g), torch.zeros(3), torch.randn(3, generator=g))
            buffer.add(policy_step, step)
            seen.append(here)
            steps.append(step)
            acted.append(policy_step)
        batch = buffer.batch()
        for name in ("policy", "camera"):
            assert torch.equal(batch.obs[name], torch.stack([o[name] for o in seen]))
            assert batch.obs[name].dtype == seen[0][name].dtype
        assert torch.equal(batch.actions, torch.stack([a.action for a in acted]))
        assert torch.equal(batch.log_probs, torch.stack([a.log_prob for a in acted]))
        for ours, theirs in (("rewards", "reward"), ("terminated",) * 2, ("truncated",) * 2, ("valid",) * 2):
            assert torch.equal(getattr(batch, ours), torch.stack([getattr(s, theirs) for s in steps]))
        ended = [(t, n) for t, s in enumerate(steps) for n in range(3) if s.done[n]]
        assert list(zip(*(i.tolist() for i in batch.final_index), strict=True)) == ended
        for k, (t, n) in enumerate(ended):
            for name in ("policy", "camera"):
                assert torch.equal(batch.final_obs[name][k], steps[t].next_obs[name][n])
        assert len(batch.final_obs["policy"]) == len(ended)


def test_a_rollout_is_read_when_it_is_full():
    buffer = RolloutBuffer(2)
    buffer.start({"policy": torch.zeros(1, 1)})
    with pytest.raises(AssertionError, match="full"):
        buffer.batch()


def test_a_rollout_that_was_broken_off_leaves_nothing_behind():
    buffer = RolloutBuffer(2)
    flag, choice = torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)

    def add(value):
        obs = {"policy": torch.full((1, 1), value)}
        step = Step(obs, obs, torch.full((1,), value), flag, flag, ~flag)
        buffer.add(PolicyStep(choice, choice, torch.zeros(1)), step)

    buffer.start({"policy": torch.zeros(1, 1)})
    add(7.0)
    buffer.start({"policy": torch.zeros(1, 1)})
    add(1.0)
    add(2.0)
    batch = buffer.batch()
    assert batch.rewards.flatten().tolist() == [1.0, 2.0]
    assert batch.obs["policy"].flatten().tolist() == [0.0, 1.0, 2.0]
