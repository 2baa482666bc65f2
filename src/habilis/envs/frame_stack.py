"""The last few frames at once: so that a policy without memory sees what moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from habilis.core.errors import ConfigError
from habilis.core.protocols import VecEnv
from habilis.core.specs import ObsGroup
from habilis.core.tree import tree_where
from habilis.core.types import Obs, State, Step


def stack_frames(env: VecEnv, frames: int) -> VecEnv:
    """Return `env` with the last `frames` frames of each image side by side; the same `env` for one frame.

    Raises:
        ConfigError: fewer than one frame, or an environment without images.
    """
    return env if frames == 1 else FrameStack(env, frames)


class FrameStack:
    """An environment whose image groups show the last `frames` frames, joined along their channels, the newest last.

    An episode starts with its first frame repeated. Groups that are no images pass as they are, and so does everything
    else that the environment offers: its simulation, its `render`.
    """

    def __init__(self, env: VecEnv, frames: int) -> None:
        images = {name: group for name, group in env.spec.obs.items() if group.is_image}
        if frames < 1 or not images:
            raise ConfigError(
                f"frame_stack is {frames} and {env.spec.id} observes {', '.join(images) or 'no'} images: it takes a "
                "positive number of frames of uint8 images with three axes"
            )
        self._env = env
        self._frames = frames
        self._axes = {name: group.channel_axis for name, group in images.items()}
        self._stacks: Obs = {}
        self.num_envs = env.num_envs
        self.spec = replace(
            env.spec,
            obs={**env.spec.obs, **{name: _stacked(group, frames) for name, group in images.items()}},
            frame_stack=frames,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes, each with its first frame repeated."""
        obs = self._env.reset(seed)
        self._stacks = self._repeat(obs)
        return {**obs, **self._stacks}

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment; the true successor of an episode's end still shows that episode."""
        step = self._env.step(action)
        pushed = self._push(step.next_obs)
        # a step that is not valid may lead into another episode: the dummy step of an environment that resets itself
        fresh = step.done | ~step.valid
        if not fresh.any():
            self._stacks = pushed
            obs = {**step.obs, **pushed}
            return replace(step, obs=obs, next_obs=obs)
        self._stacks = tree_where(fresh, self._repeat(step.obs), pushed)
        next_stacks = tree_where(step.done, pushed, self._stacks)
        return replace(step, obs={**step.obs, **self._stacks}, next_obs={**step.next_obs, **next_stacks})

    def state_dict(self) -> State:
        """Return the state of the environment and the frames that are seen."""
        return {"env": self._env.state_dict(), "frames": dict(self._stacks)}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._env.load_state_dict(state["env"])
        self._stacks = state["frames"]

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _repeat(self, obs: Obs) -> dict[str, Tensor]:
        """Return stacks `[N, *shape]` of one frame each."""
        return {name: torch.cat([obs[name]] * self._frames, axis) for name, axis in self._axes.items()}

    def _push(self, obs: Obs) -> dict[str, Tensor]:
        """Return the stacks with the oldest frame left out and the one of `obs` behind the newest."""
        stacks = {}
        for name, axis in self._axes.items():
            frame, stack = obs[name], self._stacks[name]
            channels = frame.shape[axis]
            stacks[name] = torch.cat([stack.narrow(axis, channels, stack.shape[axis] - channels), frame], axis)
        return stacks


def _stacked(group: ObsGroup, frames: int) -> ObsGroup:
    """Return the group with `frames` times the channels."""
    shape = list(group.shape)
    shape[group.channel_axis] *= frames
    return replace(group, shape=tuple(shape))
