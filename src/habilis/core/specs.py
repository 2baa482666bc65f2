"""Descriptions of what an environment gives and takes, which is all that policies and algorithms know of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from habilis.core.errors import ConfigError

Backend = Literal["native", "gymnasium", "envpool"]
"""Engines that run environments."""


@dataclass(frozen=True)
class ObsGroup:
    """One observation group: the shape of one environment's row and its kind."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    channel_axis: Literal[-3, -1] | None = None
    """Where an image has its channels, None for what is no image. An image made without it is given the first or last
    axis, whichever is shorter, and the last where they are equal."""
    one_hot: tuple[int, ...] = ()
    """Sizes of the one-hot codes of which a vector consists, where it consists of nothing else: a discrete state, or
    several side by side."""
    starts: tuple[int, ...] = ()
    """What the environment itself calls the first state of each code; 0 where it is left out."""

    def __post_init__(self) -> None:
        if self.is_image and self.channel_axis is None:
            object.__setattr__(self, "channel_axis", -3 if self.shape[0] < self.shape[2] else -1)
        object.__setattr__(self, "starts", self.starts or (0,) * len(self.one_hot))

    @property
    def is_image(self) -> bool:
        """Whether the group is an image: three axes of uint8."""
        return self.dtype == "uint8" and len(self.shape) == 3

    @property
    def size(self) -> int:
        """Number of values in a row."""
        return math.prod(self.shape)

    def rows(self, value: Any, frames: int = 1) -> tuple[np.ndarray, bool]:
        """Return observations from outside as `[N, *shape]` of the group's dtype, and whether it was one alone.

        Args:
            value: one observation or a batch of them. Where the group is a code, integers are the numbers of states, as
                the environment itself has them; a grey image needs no axis for its one channel.
            frames: how many lie side by side in the channels of an image.

        Raises:
            ValueError: it is of another shape, or no such state, or has values that uint8 cannot hold.
        """
        array = np.asarray(value)
        if self.one_hot and array.dtype.kind in "iu" and array.shape[1:] != self.shape:
            array = self._encode(array)
        elif self.is_image and self.shape[-1] == 1 and array.shape[-2:] == self.shape[:-1]:
            array = array[..., None]
        single = array.shape == self.shape
        if not single and array.shape[1:] != self.shape:
            stacked = f" ({frames} frames side by side in the channels, the newest last)"
            stack = stacked if frames > 1 and self.is_image else ""
            raise ValueError(f"has shape {array.shape}: expected {self.shape} or a batch of them{stack}")
        if self.dtype == "uint8" and array.dtype != np.uint8:
            self._require_bytes(array)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite in it
            array = array.astype(self.dtype, copy=False)
        return (array[None] if single else array), single

    def _require_bytes(self, array: np.ndarray) -> None:
        """Refuse what uint8 would round, cut off or wrap around, by its dtype alone where that is not of integers."""
        if array.dtype.kind not in "iu":
            wrong = f"is {array.dtype}"
        elif ((array < 0) | (array > 255)).any():
            wrong = f"holds whole numbers from {array.min()} to {array.max()}"
        else:
            return
        if self.is_image:
            told = "images are uint8 from 0 to 255; give them as they come from the camera, not divided by 255"
        else:
            told = "expected uint8, whole numbers from 0 to 255"
        raise ValueError(f"{wrong}: {told}")

    def _encode(self, numbers: np.ndarray) -> np.ndarray:
        """Return the codes of `[N]` or of no axis, or of one more axis where several codes stand side by side."""
        if len(self.one_hot) == 1:
            numbers = numbers[..., None]
        if numbers.ndim not in (1, 2) or numbers.shape[-1] != len(self.one_hot):
            shape = numbers.shape[:-1] if len(self.one_hot) == 1 else numbers.shape
            raise ValueError(
                f"has shape {shape}: expected the numbers of {len(self.one_hot)} states, or a batch of them"
            )
        codes = []
        for column, n, start in zip(np.moveaxis(numbers, -1, 0), self.one_hot, self.starts, strict=True):
            wrong = (column < start) | (column >= start + n)
            if wrong.any():
                raise ValueError(f"holds the state {column[wrong].flat[0]}: expected {start} to {start + n - 1}")
            codes.append(one_hot(column, n, start))
        return np.concatenate(codes, -1)


def one_hot(number: np.ndarray, n: int, start: int = 0) -> np.ndarray:
    """Return codes `[..., n]` float32 of numbers `[...]` counted from `start`; zeros for what is none of them."""
    codes: np.ndarray = (number[..., None] == np.arange(start, start + n)).astype(np.float32)
    return codes


@dataclass(frozen=True)
class BoxAction:
    """Real-valued actions `[N, dim]` between `low` and `high`, each `[dim]`; infinite where unbounded."""

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ConfigError(
                f"an action needs bounds of one axis and equal shape, got {self.low.shape} and {self.high.shape}"
            )

    @property
    def dim(self) -> int:
        """Number of values in an action."""
        return int(self.low.shape[0])

    @property
    def bounded(self) -> np.ndarray:
        """Which values have two bounds, `[dim]` bool."""
        finite: np.ndarray = np.isfinite(self.low) & np.isfinite(self.high)
        return finite

    @property
    def middle_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        """The middle between two bounds and how far they are from it, `[dim]` float32; 0 and 1 where there are not two.

        `middle - half` and `middle + half` are within the bounds after rounding too.
        """
        # infinities are left out before the arithmetic, not after it, so that none is subtracted from another
        low, high = np.where(self.bounded, (self.low, self.high), np.array([[-1.0], [1.0]]))
        middle = ((high + low) / 2).astype(np.float32)
        half = np.minimum(high - middle, middle - low)
        rounded = half.astype(np.float32)
        return middle, np.where(rounded > half, np.nextafter(rounded, np.float32(0)), rounded)


@dataclass(frozen=True)
class DiscreteAction:
    """One choice among `n`: actions are `[N]` int64 in `[start, start + n)`; policies count from 0."""

    n: int
    start: int = 0


@dataclass(frozen=True)
class MultiDiscreteAction:
    """Several choices at once: actions are `[N, len(nvec)]` int64, column k in `[starts[k], starts[k] + nvec[k])`.

    Policies count each from 0, which is also what `starts` are where they are left out.
    """

    nvec: tuple[int, ...]
    starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", self.starts or (0,) * len(self.nvec))


@dataclass(frozen=True)
class HybridAction:
    """Real values and choices in one action, `[N, dim]` float32: the values first, then the number of each choice."""

    box: BoxAction
    choices: MultiDiscreteAction

    @property
    def dim(self) -> int:
        """Number of values and choices."""
        return self.box.dim + len(self.choices.nvec)


ActionSpec = BoxAction | DiscreteAction | MultiDiscreteAction | HybridAction


def action_parts(
    action: ActionSpec,
) -> tuple[BoxAction | None, DiscreteAction | MultiDiscreteAction | None]:
    """Return the real values and the choices of which an action consists, None for what it has not."""
    if isinstance(action, HybridAction):
        return action.box, action.choices
    return (action, None) if isinstance(action, BoxAction) else (None, action)


def choices_of(action: DiscreteAction | MultiDiscreteAction | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of all choices and what the environment calls the first of each; none of None."""
    if action is None:
        return (), ()
    if isinstance(action, DiscreteAction):
        return (action.n,), (action.start,)
    return action.nvec, action.starts


ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
"""Names of the groups that an environment with goals has: what has been reached, and what is to be."""

GoalSelection = Literal["none", "final", "future", "episode"]
"""Where the goals of hindsight come from: nowhere, or what the episode reached at its end, later on, or at any time."""


@dataclass(frozen=True)
class EnvSpec:
    """What a learner must know of an environment."""

    id: str
    obs: Mapping[str, ObsGroup]
    action: ActionSpec
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; None where there is no limit or it is not known."""
    saves_state: bool = False
    """Whether `state_dict` of the environment restores it exactly."""
    backend: str = "gymnasium"
    """Which engine runs it: one of `Backend`."""
    control_dt: float | None = None
    """Seconds between two actions, where known."""
    action_names: tuple[str, ...] = ()
    """Names of the actuators in order, where known."""
    frame_stack: int = 1
    """Frames, the newest last, that lie side by side along the channels of every image group."""

    @property
    def step_limit(self) -> float:
        """Steps after which an episode is truncated, infinitely many where there is no limit."""
        return math.inf if self.max_episode_steps is None else self.max_episode_steps

    @property
    def has_goals(self) -> bool:
        """Whether each observation says what goal has been reached and which one is wanted."""
        return ACHIEVED in self.obs and DESIRED in self.obs

    @property
    def policy_groups(self) -> tuple[str, ...]:
        """Names of the groups that a policy reads: "policy", its images, and the goal that is wanted."""
        return self._parts("policy") + self._goal

    @property
    def critic_groups(self) -> tuple[str, ...]:
        """Names of the groups that a critic reads: as a policy does, of a privileged group where there is one."""
        return (self._parts("critic") or self._parts("policy")) + self._goal

    @property
    def _goal(self) -> tuple[str, ...]:
        return self._parts(DESIRED) if self.has_goals else ()

    def _parts(self, base: str) -> tuple[str, ...]:
        """Return the names of a group and of the images beside it."""
        return tuple(name for name in self.obs if name == base or name.startswith(f"{base}/"))

    def group(self, name: str) -> ObsGroup:
        """Return the group `name`, or `"policy"` where the environment does not have it (no privileged group)."""
        return self.obs.get(name, self.obs["policy"])

    def frame(self, name: str) -> ObsGroup:
        """Return the group `name` as it is without a stack of frames: what is new in each step."""
        group = self.obs[name]
        if group.channel_axis is None:
            return group
        shape = list(group.shape)
        shape[group.channel_axis] //= self.frame_stack
        return replace(group, shape=tuple(shape))


KINDS = {
    BoxAction: ("real-valued actions", "sac, td3 or ppo"),
    DiscreteAction: ("one choice among several", "dqn, discrete_sac or ppo"),
    MultiDiscreteAction: ("several choices at once", "ppo or a2c"),
    HybridAction: ("values and choices at once", "ppo or a2c"),
}
"""What actions are called, and which algorithms take them."""


class ActionKindError(ConfigError):
    """An environment that takes another kind of action than a learner gives."""

    def __init__(self, message: str, kind: type[BoxAction] | type[DiscreteAction]) -> None:
        super().__init__(message)
        self.kind = kind
        """What the learner gives."""


def require_action(
    spec: EnvSpec, kind: type[BoxAction] | type[DiscreteAction], learner: str, *, bounded: bool = False
) -> None:
    """Refuse an environment that does not take the kind of action that a learner gives, with bounds or without.

    Args:
        spec: what the environment takes.
        kind: what the learner gives.
        learner: what it is called.
        bounded: whether it needs two finite bounds of every value.

    Raises:
        ActionKindError: it takes another kind.
        ConfigError: it does not bound a value.
    """
    action = spec.action
    if not isinstance(action, kind):
        has, use = KINDS[type(action)]
        raise ActionKindError(f"{learner} needs {KINDS[kind][0]} and {spec.id} has {has}: use {use}", kind)
    if bounded and isinstance(action, BoxAction) and not action.bounded.all():
        raise ConfigError(
            f"{learner} scales its actions to their bounds, and the actions {np.flatnonzero(~action.bounded).tolist()} "
            f"of {spec.id} do not have two finite ones: bound them in the environment, or use ppo"
        )


def require_fit(learnt: EnvSpec, env: EnvSpec) -> None:
    """Raise `ConfigError` where a policy that was made for one environment cannot read or move another."""
    for name in learnt.policy_groups:
        have = env.obs[name].shape if name in env.obs else None
        if have != learnt.obs[name].shape:
            raise ConfigError(
                f"a policy for {learnt.id} reads the observation group {name!r} of shape {learnt.obs[name].shape}, and "
                f"{env.id} has {'no such group' if have is None else have}: choose an environment like its own"
            )
    does, takes = (_what_is_done(spec.action) for spec in (learnt, env))
    if does != takes:
        raise ConfigError(
            f"a policy for {learnt.id} gives {does}, and {env.id} takes {takes}: choose an environment like its own"
        )


def require_made_for(policy: object, env: EnvSpec) -> None:
    """Raise `ConfigError` where a policy says what it was made for and that is nothing like `env`."""
    made_for = getattr(policy, "spec", None)
    if isinstance(made_for, EnvSpec):
        require_fit(made_for, env)


def _what_is_done(action: ActionSpec) -> str:
    box, choices = action_parts(action)
    values = [] if box is None else [f"{box.dim} values"]
    return " and ".join(values + ([] if choices is None else [f"choices among {choices_of(choices)[0]}"]))


def spec_to_dict(spec: EnvSpec) -> dict[str, Any]:
    """Return a spec as JSON values (infinite bounds as text), which `spec_from_dict` reads back."""
    action: dict[str, Any] = {}
    box, choices = action_parts(spec.action)
    if box is not None:
        action |= {"low": list(map(str, box.low.tolist())), "high": list(map(str, box.high.tolist()))}
    if isinstance(choices, DiscreteAction):
        action |= {"n": choices.n, "start": choices.start}
    elif choices is not None:
        action |= {"nvec": list(choices.nvec), "starts": list(choices.starts)}
    return {
        "id": spec.id,
        "obs": {
            name: {
                "shape": list(group.shape),
                "dtype": group.dtype,
                "channel_axis": group.channel_axis,
                "one_hot": list(group.one_hot),
                "starts": list(group.starts),
            }
            for name, group in spec.obs.items()
        },
        "action": action,
        "max_episode_steps": spec.max_episode_steps,
        "saves_state": spec.saves_state,
        "backend": spec.backend,
        "control_dt": spec.control_dt,
        "action_names": list(spec.action_names),
        "frame_stack": spec.frame_stack,
    }


def spec_from_dict(tree: Mapping[str, Any]) -> EnvSpec:
    """Read what `spec_to_dict` returned."""
    # an older file names neither the axis of the channels nor a stack of frames nor codes nor where choices start
    obs = {
        name: ObsGroup(
            tuple(group["shape"]),
            group["dtype"],
            group.get("channel_axis"),
            tuple(group.get("one_hot", ())),
            tuple(group.get("starts", ())),
        )
        for name, group in tree["obs"].items()
    }
    rest = {k: v for k, v in tree.items() if k not in ("obs", "action", "action_names")}
    action = _action_from_dict(tree["action"])
    return EnvSpec(obs=obs, action=action, action_names=tuple(tree["action_names"]), **rest)


def _action_from_dict(tree: Mapping[str, Any]) -> ActionSpec:
    if "n" in tree:
        return DiscreteAction(tree["n"], tree.get("start", 0))
    choices = MultiDiscreteAction(tuple(tree.get("nvec", ())), tuple(tree.get("starts", ())))
    if "low" not in tree:
        return choices
    box = BoxAction(*(np.array([float(x) for x in tree[k]], dtype=np.float32) for k in ("low", "high")))
    return HybridAction(box, choices) if choices.nvec else box
