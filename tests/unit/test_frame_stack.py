"""Stacked frames: the environment against a twin of deques, the buffer against what the policy saw, and whole runs."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis import api
from habilis.build import ALGORITHMS, build_trainer
from habilis.checkpoint import load_checkpoint, save_checkpoint
from habilis.core.errors import ConfigError, HabilisError
from habilis.core.random import generator_state, set_generator_state
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, ObsGroup, spec_from_dict, spec_to_dict
from habilis.core.types import PolicyStep, Step
from habilis.data.priorities import Priorities
from habilis.data.replay import ReplayBuffer
from habilis.data.rollout import RolloutBuffer
from habilis.deploy.verify import verify_policy
from habilis.envs.checker import check_env
from habilis.envs.frame_stack import FrameStack, stack_frames
from habilis.envs.make import NATIVE
from habilis.training.keeping import components, restore

LAST, FIRST = ObsGroup((10, 10, 2), "uint8"), ObsGroup((1, 9, 11), "uint8")


class Frames:
    """Every observation is another number, seen in two images of either layout and in a vector.

    What a step does is read from `kinds`, one for each environment: "go", "end", "cut", "diverge" (cut, and not valid),
    or "late", an end after which the next step only resets and is not valid. Without kinds chance decides.
    """

    def __init__(self, num_envs, seed=0, action=None):
        self.num_envs = num_envs
        self.spec = EnvSpec(
            "test/Frames-v0",
            {"policy": LAST, "camera": FIRST, "state": ObsGroup((1,))},
            action or DiscreteAction(3),
            saves_state=True,
            backend="native",
        )
        self.kinds = None
        self.closed = False
        self.reset(seed)

    def fresh(self):
        numbers = torch.arange(self.count, self.count + self.num_envs)
        self.count += self.num_envs
        low, high = (numbers % 256).to(torch.uint8), (numbers // 256).to(torch.uint8)
        image = torch.stack([low, high], -1).view(-1, 1, 1, 2).expand(-1, 10, 10, 2)
        return {
            "policy": image.clone(),
            # changes less often than the other: a stack may be of one frame here and of several there
            "camera": (numbers // 6 % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 9, 11).clone(),
            "state": numbers.float()[:, None],
        }

    def reset(self, seed=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
            self.count = seed % 1000
        self.late = torch.zeros(self.num_envs, dtype=torch.bool)
        self.obs = self.fresh()
        return self.obs

    def step(self, action):
        kinds = self.kinds or self.rng.choice(["go"] * 5 + ["end", "cut"], self.num_envs).tolist()
        resetting, self.late = self.late, torch.tensor([kind == "late" for kind in kinds]) & ~self.late
        is_kind = lambda *names: torch.tensor([kind in names for kind in kinds]) & ~resetting  # noqa: E731
        terminated, truncated = is_kind("end", "late"), is_kind("cut", "diverge")
        at_once = is_kind("end", "cut", "diverge")
        next_obs = obs = self.fresh()
        if at_once.any():
            reset = self.fresh()
            obs = {k: torch.where(at_once.view(-1, *[1] * (v.dim() - 1)), reset[k], v) for k, v in next_obs.items()}
        self.obs = obs
        # a value that a critic can learn: the number's parity
        reward = next_obs["state"][:, 0] % 2
        return Step(obs, next_obs, reward, terminated, truncated, ~resetting & ~is_kind("diverge"))

    def state_dict(self):
        return {"count": self.count, "late": self.late, "rng": generator_state(self.rng), "obs": dict(self.obs)}

    def load_state_dict(self, state):
        self.count, self.late, self.obs = state["count"], state["late"], state["obs"]
        set_generator_state(self.rng, state["rng"])

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        self.closed = True


KIND = st.sampled_from(["go", "go", "go", "go", "end", "cut", "diverge", "late"])
IMAGES = {"policy": -1, "camera": -3}


def run_kinds(data, env, num_envs, at_most=40):
    """Yield each step, or None where the environment was reset, which its own `reset` has done already."""
    kinds = st.lists(KIND, min_size=num_envs, max_size=num_envs)
    for event in data.draw(st.lists(st.one_of(st.just("reset"), *[kinds] * 8), max_size=at_most)):
        if event == "reset":
            yield None, env.reset()
        else:
            (env._env if isinstance(env, FrameStack) else env).kinds = event
            step = env.step(torch.zeros(num_envs, dtype=torch.long))
            yield step, step.obs


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_stack_is_its_twin_of_deques(data):
    num_envs, frames = data.draw(st.tuples(st.integers(1, 3), st.integers(2, 4)))
    env, plain = FrameStack(Frames(num_envs), frames), Frames(num_envs)
    numbers = [deque([n] * frames, frames) for n in plain.reset(0)["state"][:, 0].tolist()]
    first = env.reset(0)

    def shown(stacks):
        numbers = torch.tensor([list(stack) for stack in stacks])
        low, high = numbers % 256, numbers // 256
        pairs = torch.stack([low, high], -1).flatten(1).to(torch.uint8)
        camera = (numbers // 6 % 256).to(torch.uint8).view(num_envs, frames, 1, 1).expand(-1, -1, 9, 11)
        return {"policy": pairs.view(num_envs, 1, 1, -1).expand(-1, 10, 10, -1), "camera": camera}

    def check(obs, stacks):
        expected = shown(stacks)
        assert all(torch.equal(obs[name], expected[name]) for name in IMAGES)
        assert obs["state"][:, 0].tolist() == [stack[-1] for stack in stacks]

    check(first, numbers)
    for step, obs in run_kinds(data, env, num_envs):
        if step is None:
            numbers = [deque([n] * frames, frames) for n in plain.reset()["state"][:, 0].tolist()]
            check(obs, numbers)
            continue
        plain.kinds = env._env.kinds
        raw = plain.step(None)
        newest = raw.next_obs["state"][:, 0].tolist()
        reached = [deque([*stack, n], frames) for stack, n in zip(numbers, newest, strict=True)]
        restarts = (raw.done | ~raw.valid).tolist()
        fresh = [deque([n] * frames, frames) for n in raw.obs["state"][:, 0].tolist()]
        numbers = [new if restart else old for restart, new, old in zip(restarts, fresh, reached, strict=True)]
        check(step.obs, numbers)
        ends = raw.done.tolist()
        check(step.next_obs, [old if end else new for end, old, new in zip(ends, reached, numbers, strict=True)])
        assert torch.equal(step.valid, raw.valid)
        if not any(restarts):
            assert step.next_obs is step.obs


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_buffer_gives_back_what_the_policy_saw(data):
    num_envs, held, n_steps = data.draw(st.tuples(st.integers(1, 2), st.integers(3, 6), st.sampled_from([1, 3])))
    frames = data.draw(st.integers(1, 4))
    env = stack_frames(Frames(num_envs), frames)
    by_priority = data.draw(st.booleans())

    def make(seed):
        generator, priorities = np.random.default_rng(seed), Priorities(alpha=0.0) if by_priority else None
        return ReplayBuffer(
            env.spec, held * num_envs, num_envs, generator=generator, n_steps=n_steps, gamma=1.0, priorities=priorities
        )

    buffer = make(0)
    kept = {name: column.values.shape[1:] for name, column in buffer.observations.columns.items()}
    assert kept == {name: env.spec.frame(name).shape for name in env.spec.obs}  # no frame is stored twice
    obs = env.reset(0)
    buffer.start(obs)
    history = [[] for _ in range(num_envs)]
    row = lambda tree, n: {name: tensor[n].clone() for name, tensor in tree.items()}  # noqa: E731
    swap = data.draw(st.integers(0, 20))
    for count, (step, shown) in enumerate(run_kinds(data, env, num_envs)):
        if count == swap:  # a saved and loaded buffer goes on as the other, whatever it held before
            saved, buffer = buffer.state_dict(), make(1)
            no, zeros = torch.zeros(num_envs, dtype=torch.bool), torch.zeros(num_envs)
            buffer.start(shown)
            for _ in range(data.draw(st.integers(0, 2 * held))):
                buffer.add(zeros.long(), Step(shown, shown, zeros, no, no, ~no))
            buffer.load_state_dict(saved)
        if step is None:
            for past in history:
                if past:
                    past[-1]["done"] = True
            buffer.start(shown)
        else:
            buffer.add(torch.zeros(num_envs, dtype=torch.long), step)
            for n, past in enumerate(history):
                flags = {"done": bool(step.done[n]), "valid": bool(step.valid[n])}
                past.append({"obs": row(obs, n), "next_obs": row(step.next_obs, n), **flags})
        obs = shown
    expected = {}
    for past in history:
        window = past[-held:]
        for i, first in enumerate(window):
            j = i
            while j < i + n_steps - 1 and j + 1 < len(window) and not window[j]["done"] and window[j + 1]["valid"]:
                j += 1
            if first["valid"]:
                expected[float(first["obs"]["state"])] = (first["obs"], window[j]["next_obs"])
    if not expected:
        with pytest.raises(ConfigError, match=r"holds no transition|is empty"):
            buffer.sample(4)
        return
    batch = buffer.sample(30 * held * num_envs)
    assert batch.obs["policy"].dtype == batch.next_obs["camera"].dtype == torch.uint8
    assert set(batch.obs["state"][:, 0].tolist()) == expected.keys()
    for i, number in enumerate(batch.obs["state"][:, 0].tolist()):
        seen, reached = expected[number]
        assert same(row(batch.obs, i), seen)
        assert same(row(batch.next_obs, i), reached)


def test_what_is_kept_only_for_its_frames_is_no_transition():
    env = FrameStack(Frames(1), 3)
    buffer = ReplayBuffer(env.spec, 3, 1, generator=np.random.default_rng(0))
    buffer.start(env.reset(0))
    env._env.kinds = ["go"]
    for count in range(6):
        step = env.step(None)
        buffer.add(torch.zeros(1, dtype=torch.long), replace(step, valid=torch.tensor([count < 3])))
    assert not buffer.valid.any()
    with pytest.raises(ConfigError, match="holds no transition"):
        buffer.sample(1)


def test_a_loaded_buffer_forgets_what_it_held():
    env = FrameStack(Frames(1), 3)
    env._env.kinds = ["go"]
    buffers = [ReplayBuffer(env.spec, 9, 1, generator=np.random.default_rng(0), n_steps=3) for _ in range(2)]
    for buffer, steps in zip(buffers, (3, 12), strict=True):
        buffer.start(env.reset(0))
        for _ in range(steps):
            buffer.add(torch.zeros(1, dtype=torch.long), env.step(None))
    buffers[1].load_state_dict(buffers[0].state_dict())
    step = env.step(None)
    for buffer in buffers:
        buffer.add(torch.zeros(1, dtype=torch.long), step)
    one, other = (buffer.sample(40) for buffer in buffers)
    assert torch.equal(one.discount, other.discount)
    assert same(one.next_obs, other.next_obs)


def test_bytes_of_a_buffer_of_stacked_frames():
    env = FrameStack(Frames(1), 4)
    needed = ReplayBuffer.bytes_needed(env.spec, 1000)
    # both images once, the vector; action, reward; three flags and that of a first frame; where the last frame lies
    assert needed == 1000 * (200 + 99 + 4 + 8 + 4 + 4 + 4)
    buffer = ReplayBuffer(env.spec, 1000, 1, generator=np.random.default_rng(0))
    ring = buffer.observations
    columns = [*ring.columns.values(), buffer.actions, buffer.rewards, buffer.terminated]
    stores = [*(column.values for column in columns), ring.first, ring.final_slot, buffer.done, buffer.valid]
    assert sum(store.nbytes for store in stores) == needed + 4 * needed // 1000


def test_the_rollout_buffer_keeps_what_the_policy_saw():
    env = FrameStack(Frames(2, seed=4), 3)
    buffer = RolloutBuffer(20)
    shown = [env.reset(4)]
    buffer.start(shown[0])
    zeros = torch.zeros(2)
    final = {}
    for t in range(20):
        step = env.step(None)
        buffer.add(PolicyStep(zeros.long(), zeros.long(), zeros), step)
        shown.append(step.obs)
        final |= {(t, n): step.next_obs["policy"][n] for n in step.done.nonzero().squeeze(-1).tolist()}
    batch = buffer.batch()
    assert all(same({k: v[t] for k, v in batch.obs.items()}, shown[t]) for t in range(21))
    assert batch.obs["policy"].dtype == torch.uint8
    where = list(zip(*(x.tolist() for x in batch.final_index), strict=True))
    assert where == list(final)
    assert all(torch.equal(seen, final[i]) for i, seen in zip(where, batch.final_obs["policy"], strict=True))


def test_what_the_stack_says_of_itself():
    env = FrameStack(Frames(2), 3)
    assert env.spec.frame_stack == 3
    assert env.spec.obs == {
        "policy": ObsGroup((10, 10, 6), "uint8"),
        "camera": ObsGroup((3, 9, 11), "uint8"),
        "state": ObsGroup((1,)),
    }
    assert {name: env.spec.frame(name) for name in env.spec.obs} == Frames(2).spec.obs
    assert spec_from_dict(spec_to_dict(env.spec)) == env.spec
    # what an environment has besides, and what it has not
    assert env.render().shape == (4, 4, 3)
    assert not hasattr(env, "simulation")
    env.close()
    assert env._env.closed
    errors = [f.what for f in check_env(FrameStack(Frames(2), 3), 60) if f.level == "error"]
    assert errors == []


def test_a_policy_asked_about_one_frame_says_that_it_wants_them_side_by_side():
    spec = EnvSpec("x", {"policy": ObsGroup((36, 36, 3), "uint8")}, DiscreteAction(2), frame_stack=3)
    policy = ALGORITHMS["dqn"].make_policy(spec, ALGORITHMS["dqn"].config(), torch.Generator())
    frame = np.zeros((36, 36, 1), np.uint8)
    with pytest.raises(HabilisError, match=r"expected \(36, 36, 3\) .* \(3 frames side by side in the channels"):
        policy.predict(frame)
    assert policy.predict(np.concatenate([frame] * 3, -1))[0].shape == ()


def test_the_axis_of_the_channels_outlives_the_stacking():
    square = Frames(1)
    group = ObsGroup((5, 10, 10), "uint8")
    square.spec = EnvSpec("x", {"policy": group}, DiscreteAction(2))
    stacked = FrameStack(square, 3).spec
    assert stacked.obs["policy"].shape == (15, 10, 10)
    assert stacked.obs["policy"].channel_axis == group.channel_axis == -3
    assert stacked.frame("policy") == group
    again = spec_from_dict(spec_to_dict(stacked))
    assert again.obs["policy"].channel_axis == -3
    assert [ObsGroup(s, "uint8").channel_axis for s in ((84, 84, 3), (3, 84, 84), (4, 4, 4))] == [-1, -3, -1]
    assert ObsGroup((3,)).channel_axis is None


def test_a_spec_of_before_is_read():
    tree = spec_to_dict(Frames(1).spec)
    del tree["frame_stack"]
    for group in tree["obs"].values():
        del group["channel_axis"]
    spec = spec_from_dict(tree)
    assert spec == Frames(1).spec
    assert spec.frame_stack == 1


def test_stacks_are_refused_where_they_make_no_sense():
    env = Frames(1)
    assert stack_frames(env, 1) is env
    with pytest.raises(ConfigError, match="frame_stack is 0"):
        stack_frames(env, 0)
    env.spec = EnvSpec("x", {"policy": ObsGroup((3,))}, DiscreteAction(2))
    with pytest.raises(ConfigError, match="no images"):
        stack_frames(env, 2)
    with pytest.raises(ConfigError, match="frame_stack must be positive"):
        api.default_config("ppo", "test/Frames-v0", frame_stack=0)


SMALL = {
    "ppo": {"algo.n_steps": 8, "algo.batch_size": 8, "algo.n_epochs": 1, "algo.hidden": [8]},
    "sac": {"algo.learning_starts": 4, "algo.batch_size": 4, "algo.buffer_size": 40, "algo.hidden": [8]},
    "rainbow": {
        "algo.learning_starts": 4,
        "algo.batch_size": 4,
        "algo.buffer_size": 20,
        "algo.hidden": [8],
        "algo.image_encoder": "impala",
    },
}


@pytest.fixture
def frames_env(monkeypatch):
    """Make the environment known for one test: with real actions for SAC."""

    def build(id, num_envs, *, seed, threads, real=False):
        return Frames(num_envs, seed, BoxAction(-np.ones(2, np.float32), np.ones(2, np.float32)) if real else None)

    monkeypatch.setitem(NATIVE._entries, "test/Frames-v0", build)


def frames_config(algorithm, **overrides):
    small = {"num_envs": 2, "frame_stack": 3, "env_kwargs": {"real": algorithm == "sac"}, "total_timesteps": 48}
    return api.default_config(algorithm, "test/Frames-v0", **{**small, **SMALL[algorithm], **overrides})


@pytest.mark.parametrize("algorithm", SMALL)
@pytest.mark.usefixtures("frames_env")
def test_a_run_with_stacked_frames(algorithm, tmp_path):
    config = frames_config(algorithm, run_dir=str(tmp_path / "run"), eval_episodes=2, tensorboard=False)
    run = api.train_config(config, progress=False)
    assert run.evaluation.episodes == 2  # its environments were stacked as well
    policy = api.load(run.path)
    assert policy.spec.obs == run.policy.spec.obs
    assert policy.spec.frame_stack == 3
    images = np.random.default_rng(0).integers(0, 256, (4, 10, 10, 6), dtype=np.uint8)
    assert np.array_equal(policy.predict(images)[0], run.policy.predict(images)[0])
    kwargs = config.env_kwargs
    results = [
        api.evaluate(run.path, episodes=3, seed=1),
        api.evaluate(policy, episodes=3, seed=1, **kwargs),
        api.evaluate(policy, "test/Frames-v0", episodes=3, seed=1, **kwargs),
        api.evaluate(policy, api.make_env("test/Frames-v0", 3, seed=1, **kwargs), episodes=3, seed=1),
        api.evaluate(policy, FrameStack(api.make_env("test/Frames-v0", 3, seed=1, **kwargs), 3), episodes=3, seed=1),
    ]
    assert all(np.array_equal(result.returns, results[0].returns) for result in results)
    exported = verify_policy(api.export(run.path, tmp_path / "exported"))
    assert exported.spec.frame_stack == 3
    np.testing.assert_allclose(exported.predict(images)[0], policy.predict(images)[0], atol=1e-4)


@pytest.mark.parametrize("algorithm", SMALL)
@pytest.mark.usefixtures("frames_env")
def test_a_run_with_stacked_frames_resumes_exactly(algorithm, tmp_path):
    def trainer():
        return build_trainer(frames_config(algorithm))

    whole = trainer()
    for _ in range(6):
        whole.iterate()
    save_checkpoint(tmp_path / "c", components(whole), meta={"exact": True})
    again = trainer()
    restore(again, load_checkpoint(tmp_path / "c")[0])
    for each in (whole, again):
        for _ in range(12):
            each.iterate()
    for one, other in zip(whole.algorithm.policy.parameters(), again.algorithm.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert same(whole.collector.obs, again.collector.obs)
