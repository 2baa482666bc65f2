"""What is wrong with an environment: plays it with random actions and says what would hurt learning, and why.

`check_env` works on any `VecEnv`, whatever its backend. It resets and steps the environment, and leaves it open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from habilis.core.errors import EnvError
from habilis.core.protocols import VecEnv
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, MultiDiscreteAction, action_parts, choices_of
from habilis.core.types import Obs, Step
from habilis.envs.gymnasium import GymnasiumVecEnv
from habilis.envs.spaces import Misfit

HUGE_OBSERVATION = 1e3
HUGE_REWARD = 1e2
HUGE_ACTION = 1e2

MISFITS: dict[str, tuple[Literal["warning", "error"], str, str]] = {
    "shape": (
        "error",
        "networks and buffers are built from the space",
        "return what observation_space declares, or correct the space",
    ),
    "cut": (
        "error",
        "fractions are cut off, and what is too large becomes another number",
        "return the type that the space declares, or declare a float Box",
    ),
    "rounded": (
        "warning",
        "every observation is converted, and large numbers lose their last digits",
        "return the type that the space declares: observation.astype(space.dtype)",
    ),
    "bounds": (
        "warning",
        "whoever scales by the bounds, or checks them, is misled",
        "correct the bounds, or clip the observation to them",
    ),
}
"""How bad each kind of `Misfit` is, why, and what to do."""


@dataclass(frozen=True)
class Finding:
    """One thing that the checker saw."""

    level: Literal["ok", "warning", "error"]
    what: str
    why: str = ""
    """Why it matters; empty where all is well."""
    fix: str = ""
    """What to do about it."""


@dataclass
class _Trace:
    """A rollout: what was returned, and digests of it taken at once, to see whether it changes afterwards."""

    first: Obs
    steps: list[Step] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """Of all that is learnt from."""
    infos: list[bytes] = field(default_factory=list)
    """Of the infos, which may tell the time of day and are not compared between rollouts."""


def check_env(env: VecEnv, steps: int = 200, seed: int = 0) -> list[Finding]:
    """Play `steps` random steps, several times, and return what was found: errors, then warnings, then what is well.

    Args:
        env: Any environment; it is reset.
        steps: Length of a rollout; episode ends are checked only if some fall within it.
        seed: Of the environment and of the actions.
    """
    findings = list(_check_spec(env.spec))
    try:
        with _watched(env, findings):
            trace = _rollout(env, _actions(env, steps, seed), env.reset(seed))
        wrong_shapes = list(_check_shapes(env, trace))
        findings += wrong_shapes
        if not wrong_shapes:
            for what, check in (
                ("every value is finite", _check_finite),
                ("observations and rewards have a sane scale", _check_scale),
                ("episodes end and begin as they should", _check_episodes),
                ("returned tensors are not written to again", _check_aliasing),
                ("infos have the same keys every step", _check_info),
            ):
                findings += list(check(env, trace)) or [Finding("ok", what)]
            findings += _check_determinism(env, trace, steps, seed)
            findings += _check_state(env, steps, seed)
    except Exception as error:
        findings.append(
            Finding(
                "error",
                f"the environment raised {type(error).__name__}: {error}",
                "a run stops there",
                "mend the environment; its traceback is in the error's cause",
            )
        )
    return sorted(findings, key=lambda finding: ("error", "warning", "ok").index(finding.level))


def _actions(env: VecEnv, steps: int, seed: int) -> list[Tensor]:
    """Draw random actions: uniform between two bounds, else normal, and clipped to the one bound that there may be."""
    generator = torch.Generator().manual_seed(seed)
    n = env.num_envs
    box, choices = action_parts(env.spec.action)

    def draw_values(spec: BoxAction) -> Tensor:
        low, high = (torch.from_numpy(np.nan_to_num(bound, posinf=0, neginf=0)) for bound in (spec.low, spec.high))
        uniform = low + (high - low) * torch.rand(n, spec.dim, generator=generator)
        values = torch.where(torch.from_numpy(spec.bounded), uniform, torch.randn(n, spec.dim, generator=generator))
        return values.clamp(torch.from_numpy(spec.low), torch.from_numpy(spec.high))

    def draw_choices(spec: DiscreteAction | MultiDiscreteAction) -> Tensor:
        if isinstance(spec, DiscreteAction):
            return torch.randint(spec.n, (n,), generator=generator) + spec.start
        sizes = zip(spec.nvec, spec.starts, strict=True)
        return torch.stack([torch.randint(size, (n,), generator=generator) + start for size, start in sizes], 1)

    def draw() -> Tensor:
        if box is None:
            assert choices is not None
            return draw_choices(choices)
        return draw_values(box) if choices is None else torch.cat([draw_values(box), draw_choices(choices)], 1)

    return [draw() for _ in range(steps)]


def _rollout(env: VecEnv, actions: list[Tensor], first: Obs) -> _Trace:
    trace = _Trace(first, digests=[_digest(first)], infos=[b""])
    for action in actions:
        step = env.step(action)
        trace.steps.append(step)
        trace.digests.append(_step_digest(step))
        trace.infos.append(_digest(step.info))
    return trace


def _digest(tensors: Obs) -> bytes:
    """Return the bytes of named tensors, NaN equal to NaN."""
    return b"".join(name.encode() + tensors[name].numpy(force=True).tobytes() for name in sorted(tensors))


def _step_digest(step: Step) -> bytes:
    flags = {k: getattr(step, k) for k in ("reward", "terminated", "truncated", "valid")}
    return _digest(step.obs) + _digest(step.next_obs) + _digest(flags)


@contextmanager
def _watched(env: VecEnv, findings: list[Finding]) -> Iterator[None]:
    """Add what of Gymnasium's raw observations their spaces do not allow, the first of each kind and leaf.

    Our own tensors cannot tell: they were made to be of the type and shape that the spec says.
    """
    if not isinstance(env, GymnasiumVecEnv):
        yield
        return
    seen: dict[tuple[str, str], Finding] = {}

    def look(index: int, misfit: Misfit) -> None:
        level, why, fix = MISFITS[misfit.kind]
        finding = Finding(level, f"observation {misfit.leaf} of environment {index} {misfit.what}", why, fix)
        seen.setdefault((misfit.leaf, misfit.kind), finding)

    env.watch(look)
    try:
        yield
    finally:
        env.watch(None)
        findings += list(seen.values()) or [Finding("ok", "raw observations are what their space declares")]


def _check_spec(spec: EnvSpec) -> Iterator[Finding]:
    if "policy" not in spec.obs:
        yield Finding("error", "there is no observation group 'policy'", "it is what acts", "name a group 'policy'")
    box, choices = action_parts(spec.action)
    if choices is not None:
        among = f"choices among {', '.join(map(str, choices_of(choices)[0]))}"
        yield Finding("ok", f"actions are {among}" if box is None else f"beside values, actions are {among}")
    if box is None:
        return
    low, high = box.low, box.high
    bounded = box.bounded
    width, largest = (high - low)[bounded], np.maximum(np.abs(low), np.abs(high))[bounded]
    found = []
    if not bounded.all():
        found.append(
            Finding(
                "warning",
                f"actions {np.flatnonzero(~bounded).tolist()} have no bounds",
                "a squashed policy has nothing to scale to, and random exploration no range",
                "give finite low and high",
            )
        )
    if (width <= 0).any():
        found.append(
            Finding("error", "an action's low is not below its high", "it cannot be chosen", "correct the bounds")
        )
    elif width.size and not np.allclose(low[bounded], -high[bounded], atol=1e-6 * width.max()):
        found.append(
            Finding(
                "warning",
                "action bounds are not symmetric about 0",
                "a Gaussian policy starts at 0, which is then not the middle of the range",
                "let the environment take actions in [-1, 1] and scale them itself",
            )
        )
    if width.size and (largest.max() > HUGE_ACTION or largest.max() > 100 * largest.min()):
        found.append(
            Finding(
                "warning",
                f"actions are scaled badly: bounds from {largest.min():g} to {largest.max():g}",
                "one standard deviation of exploration then means nothing in one action and everything in another",
                "let the environment take actions in [-1, 1] and scale them itself",
            )
        )
    yield from found or [Finding("ok", f"{box.dim} actions with sane bounds")]


def _check_shapes(env: VecEnv, trace: _Trace) -> Iterator[Finding]:
    n = env.num_envs
    wrong: dict[str, str] = {}

    def expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: str) -> None:
        got = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if got != f"{list(shape)} {dtype}":
            wrong.setdefault(name, f"{name} is {got}, the contract says {list(shape)} {dtype}")

    for obs in (trace.first, *(o for step in trace.steps for o in (step.obs, step.next_obs))):
        if set(obs) != set(env.spec.obs):
            wrong["groups"] = f"the observation groups are {sorted(obs)}, spec says {sorted(env.spec.obs)}"
            break
        for name, group in env.spec.obs.items():
            expect(f"observation {name!r}", obs[name], (n, *group.shape), group.dtype)
    for step in trace.steps:
        expect("reward", step.reward, (n,), "float32")
        for name in ("terminated", "truncated", "valid"):
            expect(name, getattr(step, name), (n,), "bool")
    for what in wrong.values():
        yield Finding("error", what, "networks and buffers are built from the spec", "return what the spec declares")


def _check_finite(env: VecEnv, trace: _Trace) -> Iterator[Finding]:
    seen = set()
    for number, step in enumerate(trace.steps):
        values = {"reward": step.reward, **{f"observation {k!r}": v for k, v in step.next_obs.items()}}
        for name, tensor in values.items():
            bad = ~torch.isfinite(tensor.float()).flatten(1 if tensor.dim() > 1 else 0)
            if bad.any() and name not in seen:
                seen.add(name)
                index = int(bad.nonzero()[0, 0])
                yield Finding(
                    "error",
                    f"{name} is not finite in environment {index} at step {number}",
                    "one such value destroys every weight of a network",
                    "find the division, logarithm or diverged physics it comes from, and end the episode there",
                )


def _check_scale(env: VecEnv, trace: _Trace) -> Iterator[Finding]:
    for name, group in env.spec.obs.items():
        largest = max(float(step.next_obs[name].float().abs().max()) for step in trace.steps)
        if group.is_image and largest <= 1:
            yield Finding(
                "warning",
                f"the image {name!r} has no value above {largest:g}",
                "images are taken to lie in 0..255 and divided by 255",
                "return pixels in 0..255, or declare it as a float Box",
            )
        elif group.dtype == "float32" and HUGE_OBSERVATION < largest < np.inf:
            yield Finding(
                "warning",
                f"observation {name!r} reaches {largest:.3g}",
                "networks learn badly from unscaled inputs",
                "scale it in the environment, or keep the observation normaliser on",
            )
    rewards = torch.stack([step.reward for step in trace.steps])
    largest = float(rewards.abs().max())
    if HUGE_REWARD < largest < np.inf:
        yield Finding(
            "warning",
            f"rewards reach {largest:.3g}",
            "values and their losses grow with it, and clipped gradients then learn slowly",
            "scale the reward to about 1 a step, or keep the return normaliser on",
        )
    if not rewards.any():
        yield Finding(
            "warning",
            "random actions never met a reward other than 0",
            "there is nothing to learn from until one is found",
            "check a longer rollout; if the reward is that sparse, shape it or add an exploration bonus",
        )


def _check_episodes(env: VecEnv, trace: _Trace) -> Iterator[Finding]:
    """Look at every end of an episode, and at every step that is none."""
    problems: dict[str, Finding] = {}
    length = torch.zeros(env.num_envs, dtype=torch.int64)
    limit, ends, at_limit, followed, lost = env.spec.max_episode_steps, 0, 0, 0, 0
    changing = any(not torch.equal(trace.first[k], step.next_obs[k]) for step in trace.steps for k in trace.first)
    for number, step in enumerate(trace.steps):
        length += step.valid
        if (step.terminated & step.truncated).any():
            problems["both"] = Finding(
                "error",
                f"terminated and truncated are both true at step {number}",
                "one forbids the bootstrap, the other asks for it",
                "terminated wins: clear truncated",
            )
        moved = ~_rows_equal(step.obs, step.next_obs)
        if (moved & ~step.done & step.valid).any():
            problems["moved"] = Finding(
                "error",
                f"obs differs from next_obs at step {number} where no episode ended",
                "what the policy acts on is then not what its action led to",
                "return the same observation twice unless an episode ended",
            )
        later = trace.steps[number + 1].valid if number + 1 < len(trace.steps) else torch.zeros_like(step.valid)
        at_once = step.done & step.valid & later
        followed, lost = followed + int(at_once.sum()), lost + int((at_once & ~moved).sum())
        if limit is not None and (length > limit).any():
            problems["long"] = Finding(
                "error",
                f"an episode is longer than max_episode_steps = {limit}",
                "horizons and statistics are computed from it",
                "truncate at the limit, or correct it",
            )
        ends += int((step.done & step.valid).sum())
        at_limit += int((step.terminated & (length == limit)).sum()) if limit is not None else 0
        length = torch.where(step.done, 0, length)
    yield from problems.values()
    if changing and followed and lost == followed:
        yield Finding(
            "error",
            "next_obs equals obs wherever an episode ended and the next began",
            "values are then bootstrapped from the start of another episode",
            "return the last observation of the old episode as next_obs (Gymnasium: final_obs)",
        )
    if not ends:
        yield Finding(
            "warning",
            f"no episode ended within {len(trace.steps)} steps, so resets were not checked",
            "most mistakes of an environment are made there",
            f"check more steps than an episode has{f' ({limit})' if limit else ''}",
        )
    elif at_limit == ends and limit is not None and limit > 1:
        yield Finding(
            "warning",
            f"every episode terminated at the limit of {limit} steps and none was truncated",
            "a time limit that is called a termination teaches that the future is worth nothing",
            "set truncated, not terminated, when time is up",
        )


def _rows_equal(a: Obs, b: Obs) -> Tensor:
    """Return `[N]`: whether the rows of all groups are equal, NaN equal to NaN."""
    same = [((a[k] == b[k]) | ((a[k] != a[k]) & (b[k] != b[k]))).flatten(1).all(1) for k in a]
    return torch.stack(same).all(0)


def _check_aliasing(env: VecEnv, trace: _Trace) -> Iterator[Finding]:
    now = [(_digest(trace.first), b""), *((_step_digest(step), _digest(step.info)) for step in trace.steps)]
    then = zip(trace.digests, trace.infos, strict=True)
    changed = [i for i, (after, before) in enumerate(zip(now, then, strict=True)) if after != before]
    if changed:
        where = "reset" if changed[0] == 0 else f"step {changed[0] - 1}"
        yield Finding(
            "error",
            f"what {where} returned was changed by a later step",
            "a buffer that holds it is silently overwritten",
            "return fresh tensors (a clone) from every step",
        )


def _check_info(env: VecEnv, trace: _Trace) -> Iterator[Finding]:
    known = set(trace.steps[0].info) if trace.steps else set()
    late, lost, shapes = set(), set(), set()
    for step in trace.steps:
        late |= set(step.info) - known
        lost |= (known | late) - set(step.info)
        shapes |= {k for k, v in step.info.items() if v.dim() not in (1, 2) or len(v) != env.num_envs}
    if shapes:
        yield Finding(
            "error", f"infos {sorted(shapes)} are not [N] or [N, k]", "they cannot be logged", "give one row each"
        )
    if lost:
        yield Finding(
            "error", f"infos {sorted(lost)} vanish", "what reads them then fails", "give the same keys every step"
        )
    if late:
        yield Finding(
            "warning",
            f"infos {sorted(late)} are absent from the first steps",
            "what is stored every step needs its keys from the first on",
            "give the same keys every step",
        )


def _check_determinism(env: VecEnv, trace: _Trace, steps: int, seed: int) -> list[Finding]:
    again = _rollout(env, _actions(env, steps, seed), env.reset(seed))
    for number, (now, then) in enumerate(zip(again.digests, trace.digests, strict=True)):
        if now != then:
            where = "the reset" if number == 0 else f"step {number - 1}"
            return [
                Finding(
                    "error",
                    f"the same seed and actions give another result from {where} on",
                    "no run can be repeated",
                    "draw every random number from a generator that reset(seed) seeds",
                )
            ]
    return [Finding("ok", f"deterministic under a seed over {steps} steps")]


def _check_state(env: VecEnv, steps: int, seed: int) -> list[Finding]:
    if not env.spec.saves_state:
        try:
            env.state_dict()
        except EnvError:
            return [Finding("ok", "cannot save its state, and says so: a resumed run starts new episodes")]
        return [
            Finding(
                "error",
                "saves_state is false, yet state_dict does not raise",
                "a checkpoint would hold a state that is not exact",
                "raise EnvError, or make the state exact and declare saves_state",
            )
        ]
    # 97 of 200: where a usual limit of steps divides it, a counter that is not saved is at 0 in both rollouts
    half = max(steps // 2 - 3, 1)
    actions = _actions(env, 2 * half, seed)
    _rollout(env, actions[:half], env.reset(seed))
    state = env.state_dict()
    expected = _rollout(env, actions[half:], {}).digests
    for _ in range(2):  # the second time finds a state that the environment went on writing to
        env.load_state_dict(state)
        if _rollout(env, actions[half:], {}).digests != expected:
            return [
                Finding(
                    "error",
                    "the state does not restore the environment exactly",
                    "a resumed run is then another run",
                    "save copies of physics, counters, pending resets and random streams",
                )
            ]
    return [Finding("ok", "saves and restores its state exactly")]
