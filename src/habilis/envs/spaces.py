"""Gymnasium spaces in our words: an observation space becomes groups, an action space an `ActionSpec`.

A group is either an image (uint8, three axes, in the environment's own axis order; a grey one, of two axes and with
values to 255, is given a third for its one channel) or a float32 vector of one axis:

- A plain space is the group `"policy"`.
- A Dict that has the key `"policy"` keeps its keys as groups, so that `"critic"` may be privileged.
- A Dict that has the keys `"achieved_goal"` and `"desired_goal"`, as Gymnasium-Robotics' have, keeps these as groups;
  all else in it but a `"critic"`, `"observation"` first of all, is `"policy"`; where there is nothing else, what was
  achieved is.
- Any other Dict or Tuple is the one group `"policy"`: its leaves, in the space's order, side by side. A key `"critic"`
  beside others is a group of its own: what only training knows is never for the one who acts.
- An image is never mixed into a vector: it becomes a group of its own, named after the group that it is part of and
  its path (`"policy/camera"`, `"policy/1"`, `"critic/state/camera"`); where a group would otherwise be empty, its first
  image takes its name. There is always a group `"policy"`, and who reads a group reads its images.

In a vector, Box (any shape and dtype) is flattened and not scaled, Discrete and each choice of a MultiDiscrete are
one-hot, MultiBinary is zeros and ones. A vector of nothing but one-hot codes says so (`ObsGroup.one_hot`).

The leaves of a Dict or Tuple of actions stand side by side in one row: real values, choices (`MultiDiscreteAction`) or,
where there are both, the real values first (`HybridAction`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor

from habilis.core.errors import EnvError
from habilis.core.specs import (
    ACHIEVED,
    DESIRED,
    ActionSpec,
    BoxAction,
    DiscreteAction,
    HybridAction,
    MultiDiscreteAction,
    ObsGroup,
    action_parts,
    choices_of,
    one_hot,
)

MOST_CHOICES = 1_000_000
"""Of one number of an action."""

Path = tuple[str | int, ...]
MisfitKind = Literal["shape", "cut", "rounded", "bounds"]
"""`cut`: of a type that a space of integers cannot hold; `rounded`: the same of a space of real numbers."""


class Misfit(NamedTuple):
    """Something of an observation that its space does not allow."""

    leaf: str
    """The group, and where in it, say `'policy' (sensors/gyro)`."""
    kind: MisfitKind
    what: str
    """What it is and what the space says."""


class ObsLayout:
    """The groups of an observation space, and the conversion of its batches to them."""

    def __init__(self, space: spaces.Space) -> None:
        leaves = list(_leaves(space, "observations"))
        keys = set(space.spaces) if isinstance(space, spaces.Dict) else set()
        goals = {ACHIEVED, DESIRED} if {ACHIEVED, DESIRED} <= keys else set()
        kept = keys if "policy" in keys else goals | ({"critic"} & keys if keys - {"critic"} else set())
        self._parts: dict[str, list[tuple[Path, spaces.Space]]] = {}
        members_of: dict[str, list[tuple[Path, spaces.Space]]] = {}
        for path, leaf in leaves:
            members_of.setdefault(str(path[0]) if path and path[0] in kept else "policy", []).append((path, leaf))
        if ACHIEVED in members_of:  # all that there is to see of a state may be what is reached of the goal
            members_of.setdefault("policy", members_of[ACHIEVED])
        for base, members in members_of.items():
            vectors = [leaf for leaf in members if not _is_image(leaf[1])]
            images = [leaf for leaf in members if _is_image(leaf[1])]
            if vectors:
                self._name(base, vectors)
            for number, leaf in enumerate(images):
                own = not vectors and number == 0
                path = leaf[0][1:] if base in kept else leaf[0]
                self._name(base if own else "/".join(map(str, (base, *path))), [leaf])
        self.groups = {name: _group(parts) for name, parts in self._parts.items()}
        if "policy" not in self.groups or not all(math.prod(group.shape) for group in self.groups.values()):
            raise EnvError(f"a group of observations is empty: {space} must hold a value at least, a constant, say")

    def _name(self, name: str, leaves: list[tuple[Path, spaces.Space]]) -> None:
        """Make a group of leaves, without the dots in its name, which no part of a network may have."""
        name = name.replace(".", "_")
        if name in self._parts:
            raise EnvError(f"two parts of the observation would be the group {name!r}: give their keys other names")
        self._parts[name] = leaves

    def __call__(self, batch: Any, num_envs: int) -> dict[str, Tensor]:
        """Convert N observations, batched leaf by leaf, to fresh tensors `[N, ...]`.

        Raises:
            EnvError: A leaf does not hold what its space says.
        """
        obs = {}
        for name, parts in self._parts.items():
            try:
                if self.groups[name].is_image:
                    rows = np.array(_at(batch, parts[0][0]), np.uint8).reshape(num_envs, *self.groups[name].shape)
                else:
                    rows = np.concatenate([_vector(space, _at(batch, path), num_envs) for path, space in parts], 1)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise EnvError(
                    f"the observation group {name!r} does not fit its space ({error}): "
                    "return what observation_space declares"
                ) from error
            obs[name] = torch.from_numpy(rows)
        return obs

    def misfits(self, observation: Any) -> Iterator[Misfit]:
        """Yield where one observation, as its environment gave it, is not what its space declares."""
        for name, parts in self._parts.items():
            for path, space in parts:
                inner = "/".join(map(str, path))
                leaf = repr(name) if inner in ("", name) else f"{name!r} ({inner})"
                for kind, what in _misfits(space, np.asarray(_at(observation, path))):
                    yield Misfit(leaf, kind, what)


class ActionLayout:
    """The `ActionSpec` of an action space, and the conversion of our actions to what the environment takes."""

    def __init__(self, space: spaces.Space) -> None:
        self._space = space
        self._leaves = [(path, LeafLayout(leaf)) for path, leaf in _leaves(space, "actions")]
        self.spec, self._columns = _join([leaf.spec for _, leaf in self._leaves])

    def __call__(self, action: Tensor) -> Any:
        """Convert `[N, dim]`, `[N]` or `[N, k]` to what the space holds, N times: an array for each leaf."""
        if not isinstance(self._space, spaces.Dict | spaces.Tuple):
            return self._leaves[0][1](action)
        leaves = {path: leaf(action[..., at]) for (path, leaf), at in zip(self._leaves, self._columns, strict=True)}
        return _nest(self._space, leaves)

    def for_one(self, action: Any) -> Any:
        """Convert what a policy's `predict` or an export answers for one environment to what its `step` takes."""
        row = torch.as_tensor(action).unsqueeze(0)
        return next(iter(iterate(batch_space(self._space, 1), self(row))))


class LeafLayout:
    """The same of a plain space."""

    def __init__(self, space: spaces.Space) -> None:
        self._shape, self._dtype = space.shape, space.dtype
        self.spec: ActionSpec
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            low, high = _inner_bound(space.low, np.inf), _inner_bound(space.high, -np.inf)
            # between bounds that double precision alone tells apart lies no float32: the nearest below them then
            self.spec = BoxAction(np.minimum(low, high), high)
        elif isinstance(space, spaces.Box):
            low, high = space.low.astype(np.int64).ravel(), space.high.astype(np.int64).ravel()
            if ((high < low) | (high - low < 0) | (high - low >= MOST_CHOICES)).any():
                raise EnvError(
                    f"actions of a {space.dtype} Box are choices, and this one has more than {MOST_CHOICES:,}: give it "
                    "bounds, or a floating-point type"
                )
            self.spec = MultiDiscreteAction(tuple((high - low + 1).tolist()), tuple(low.tolist()))
        elif isinstance(space, spaces.Discrete):
            self.spec = DiscreteAction(int(space.n), int(space.start))
        elif isinstance(space, spaces.MultiDiscrete):
            self.spec = MultiDiscreteAction(tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist()))
        else:
            self.spec = MultiDiscreteAction((2,) * int(np.prod(space.shape)))

    def __call__(self, action: Tensor) -> np.ndarray:
        """Convert `[N, dim]`, `[N]` or `[N, k]` to the array `[N, *space.shape]` of the space's own dtype."""
        return action.numpy(force=True).reshape(-1, *self._shape).astype(self._dtype)


def _inner_bound(bound: np.ndarray, inside: float) -> np.ndarray:
    """Return the bound as float32, rounded towards `inside`; beyond the largest float32 there is none."""
    with np.errstate(over="ignore"):
        rounded = bound.astype(np.float32).ravel()
    outside = np.isfinite(rounded) & ((rounded < bound.ravel()) if inside > 0 else (rounded > bound.ravel()))
    return np.where(outside, np.nextafter(rounded, np.float32(inside)), rounded)


def _join(parts: list[ActionSpec]) -> tuple[ActionSpec, list[slice]]:
    """Return one spec for several side by side, and the columns of each; one alone stays as it is."""
    if len(parts) == 1:
        return parts[0], [slice(None)]
    boxes: list[BoxAction] = []
    nvec: list[int] = []
    starts: list[int] = []
    for box, choices in map(action_parts, parts):
        boxes += [] if box is None else [box]
        sizes, firsts = choices_of(choices)
        nvec += sizes
        starts += firsts
    value, choice, columns = 0, sum(box.dim for box in boxes), []
    for part in parts:
        if isinstance(part, BoxAction):
            columns.append(slice(value, value := value + part.dim))
        else:
            count = 1 if isinstance(part, DiscreteAction) else len(part.nvec)
            columns.append(slice(choice, choice := choice + count))
    several = MultiDiscreteAction(tuple(nvec), tuple(starts))
    if not boxes:
        return several, columns
    joined = BoxAction(*(np.concatenate([getattr(box, bound) for box in boxes]) for bound in ("low", "high")))
    return (HybridAction(joined, several) if nvec else joined), columns


def _nest(space: spaces.Space, leaves: Mapping[Path, np.ndarray], path: Path = ()) -> Any:
    """Return leaves as the nested space has them."""
    if isinstance(space, spaces.Dict):
        return {key: _nest(child, leaves, (*path, key)) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(child, leaves, (*path, index)) for index, child in enumerate(space.spaces))
    return leaves[path]


def _leaves(space: spaces.Space, what: str, path: Path = ()) -> Iterator[tuple[Path, spaces.Space]]:
    """Yield the plain spaces of a nested space with where they lie in it."""
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from _leaves(child, what, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _leaves(child, what, (*path, index))
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        yield path, space
    else:
        raise EnvError(
            f"{what} of a {type(space).__name__} space are not supported: wrap the environment so that it "
            f"has Box, Discrete, MultiDiscrete or MultiBinary {what}, or Dict and Tuple of those"
        )


def _is_image(space: spaces.Space) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 3 or (len(space.shape) == 2 and bool((space.high == 255).all()))


def _group(parts: list[tuple[Path, spaces.Space]]) -> ObsGroup:
    first = parts[0][1]
    if _is_image(first):
        return ObsGroup(first.shape if len(first.shape) == 3 else (*first.shape, 1), "uint8")
    width, leaves = sum(_width(space) for _, space in parts), [space for _, space in parts]
    if not all(isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete) for leaf in leaves):
        return ObsGroup((width,))
    codes = [choices_of(LeafLayout(leaf).spec) for leaf in leaves]
    return ObsGroup((width,), one_hot=sum((sizes for sizes, _ in codes), ()), starts=sum((at for _, at in codes), ()))


def _width(space: spaces.Space) -> int:
    """Number of values that a leaf takes in a vector."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum() if isinstance(space, spaces.MultiDiscrete) else math.prod(space.shape))


def _misfits(space: spaces.Space, value: np.ndarray) -> Iterator[tuple[MisfitKind, str]]:
    """Yield what of one leaf is wrong. Values that are not finite are out of no bounds."""
    if value.shape != space.shape:
        yield "shape", f"has the shape {value.shape}, its space says {space.shape}"
        return
    real = space.dtype.kind == "f"
    if not (np.can_cast(value.dtype, space.dtype) if isinstance(space, spaces.Box) else value.dtype.kind in "biu"):
        yield "rounded" if real else "cut", f"is {value.dtype}, its space says {space.dtype}"
    low, high = _bounds(space)
    if real:  # a bound was rounded to the type of its space, so that what reaches it is to be rounded likewise
        value = value.astype(space.dtype)
    outside = ((value < low) | (value > high)) & np.isfinite(value)
    if outside.any():
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        side, bound = ("least", low) if value[at] < low[at] else ("most", high)
        yield "bounds", f"is {value[at]}{f' at {list(at)}' if at else ''}, its space says at {side} {bound[at]}"


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest values of a leaf, of its shape."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    count = space.n if isinstance(space, spaces.Discrete) else space.nvec
    return np.asarray(space.start), np.asarray(space.start + count - 1)


def _at(batch: Any, path: Path) -> Any:
    for key in path:
        batch = batch[key]
    return batch


def _vector(space: spaces.Space, value: Any, num_envs: int) -> np.ndarray:
    """Return the rows `[N, width]` of one leaf, float32."""
    if isinstance(space, spaces.Discrete):
        return one_hot(np.asarray(value).reshape(num_envs), space.n, space.start)
    if isinstance(space, spaces.MultiDiscrete):
        columns = np.asarray(value).reshape(num_envs, space.nvec.size).T
        choices = zip(columns, space.nvec.ravel(), space.start.ravel(), strict=True)
        return np.concatenate([one_hot(column, n, start) for column, n, start in choices], 1)
    return np.asarray(value, np.float32).reshape(num_envs, _width(space))
