"""What makes a `Simulation` a `VecEnv`: a robot, a scene, and terms.

A `TaskConfig` lists, as plain functions with their weights and parameters, what is observed, rewarded, ended,
randomised and logged; a `Task` runs the list on N simulations at once. A step goes: events before the step (a push),
the action, the physics, `sense` (one frozen state of batched tensors, from which every term is a pure function),
rewards and endings, events after the step (a new command), observations, resets. A config is never changed,
randomisation always starts from the model's nominal values, and everything that a step changes is in `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import continuous_actions
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.specs import BoxAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step
from habilis.envs.simulation import Rows, Simulation

ALL: Rows = slice(None)
"""Every simulation."""


@dataclass(frozen=True, kw_only=True)
class ObsTerm:
    """A part of an observation group: `function(state, **params) -> [n, k]`."""

    function: Callable[..., Tensor]
    noise: float = 0.0
    """Amplitude of the uniform noise added to every value, in the term's own units."""
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RewardTerm:
    """A part of the reward: `function(state, **params) -> [n]`, times its weight, a second."""

    function: Callable[..., Tensor]
    weight: float
    """Reward a second for a value of 1; negative for a penalty."""
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A plain function of the state, `function(state, **params) -> [n]`: an ending, or a quantity to log."""

    function: Callable[..., Tensor]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens to the simulations; see the fields of `TaskConfig` for what its function takes."""

    function: Callable[..., Any]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task, whole: what a `Task` runs."""

    id: str
    model: Path
    """The MJCF file."""
    keyframe: str
    """The keyframe in which an episode starts, before the reset events; its controls are the centre of the actions."""
    substeps: int
    """Physics steps for one action."""
    episode_steps: int
    """Steps after which an episode is truncated."""
    action_scale: tuple[float, ...]
    """Controls are the keyframe's plus this times the action, one value an actuator, or one for all."""
    memory: Mapping[str, int]
    """What an episode remembers: names and widths of float32 rows `[N, width]`, zero at its start."""
    sense: Callable[[mujoco.MjModel], Callable[[Task, Rows], Any]]
    """`sense(model)(task, rows)` returns the state of those simulations: a frozen dataclass of fresh tensors."""
    observations: Mapping[str, Mapping[str, ObsTerm]]
    """The groups, and the terms of each in order."""
    rewards: Mapping[str, RewardTerm]
    terminations: Mapping[str, Term]
    info: Mapping[str, Term] = field(default_factory=dict)
    """Quantities that every `Step.info` carries."""
    on_reset: tuple[Event, ...] = ()
    """`function(task, ids, **params)`: set or randomise what the episodes of `ids` start with."""
    before_step: tuple[Event, ...] = ()
    """`function(task, **params)`: before the action is applied."""
    after_step: tuple[Event, ...] = ()
    """`function(task, state, **params) -> state`: after the reward, before the observation."""


class Task:
    """N copies of a task: a `VecEnv` whose `simulation` is open to the caller.

    Actions are in `[-1, 1]`; values beyond are cut. Besides the logged terms `Step.info` holds `reward/<term>` (each
    term's part of the step's reward) and `termination/<term>`, with `time_limit` and `diverged` among them. A
    simulation that diverges is reset while the others go on; its step is truncated and not `valid`.

    Args:
        config: the task.
        num_envs: N.
        seed: the root of every random stream of the task.
        threads: CPU threads of the physics; None measures which number is fastest.
    """

    def __init__(self, config: TaskConfig, num_envs: int, *, seed: int = 0, threads: int | None = None) -> None:
        model = mujoco.MjModel.from_xml_path(str(config.model))
        if len(config.action_scale) not in (1, model.nu):
            raise ConfigError(f"action_scale needs 1 or {model.nu} values (one an actuator), got {config.action_scale}")
        self.config = config
        self.num_envs = num_envs
        self.simulation = Simulation(model, num_envs, threads=threads)
        self.streams = RandomStreams(seed)
        self.control_dt = float(model.opt.timestep) * config.substeps
        """Seconds between two actions."""
        self.episode_step = torch.zeros(num_envs, dtype=torch.int64)
        """[N]: steps since the start of each episode."""
        self.action = torch.zeros(num_envs, model.nu)
        """[N, nu]: the action in force, cut to [-1, 1]."""
        self.last_action = torch.zeros(num_envs, model.nu)
        """[N, nu]: the one before."""
        self.memory = {name: torch.zeros(num_envs, width) for name, width in config.memory.items()}
        self._keyframe = model.key(config.keyframe).id
        self._ctrl = torch.from_numpy(self.simulation.ctrl)
        self._ctrl_centre = torch.tensor(model.key_ctrl[self._keyframe])
        self._ctrl_scale = torch.tensor(config.action_scale, dtype=torch.float64)
        self._sense = config.sense(model)
        self._noise: dict[str, Tensor] = {}
        self.spec = self._describe(model)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, every random stream starts from it."""
        if seed is not None:
            self.streams = RandomStreams(seed)
        ids = np.arange(self.num_envs)
        self._start_episodes(ids)
        return self._observe(self._sense(self, ids))

    def step(self, action: Tensor) -> Step:
        """Apply one action `[N, nu]` in [-1, 1] to each simulation.

        Raises:
            EnvError: the actions have another shape.
            NonFiniteError: an action is not finite.
        """
        config = self.config
        continuous_actions(self.spec, action, self.num_envs)
        for event in config.before_step:
            event.function(self, **event.params)
        self.last_action, self.action = self.action, action.detach().float().clamp(-1.0, 1.0)
        torch.add(self._ctrl_centre, self.action * self._ctrl_scale, out=self._ctrl)
        diverged = torch.from_numpy(self.simulation.step(config.substeps))
        self.episode_step += 1
        state = self._sense(self, ALL)
        reward, info = self._judge(state)
        terminated = self._endings(state, info, diverged)
        truncated = (diverged | (self.episode_step >= config.episode_steps)) & ~terminated
        info["termination/time_limit"] = truncated & ~diverged
        info["termination/diverged"] = diverged
        for event in config.after_step:
            state = event.function(self, state, **event.params)
        next_obs = self._observe(state)
        obs, ended = next_obs, np.flatnonzero((terminated | truncated).numpy())
        if ended.size:
            obs = self._restart(ended, next_obs)
        if diverged.any():
            reward, next_obs = _forget(diverged, reward, info, obs, next_obs)
        return Step(obs, next_obs, reward, terminated, truncated, ~diverged, info)

    def state_dict(self) -> State:
        """Return the exact state: physics, randomised model fields, episode memory, counters, random streams."""
        return {
            "simulation": self.simulation.state_dict(),
            "streams": self.streams.state_dict(),
            "episode_step": self.episode_step.clone(),
            "action": self.action.clone(),
            "memory": {name: value.clone() for name, value in self.memory.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; what follows is bit for bit what would have followed it."""
        self.simulation.load_state_dict(state["simulation"])
        self.streams = RandomStreams(state["streams"]["seed"])
        self.streams.load_state_dict(state["streams"])
        self.episode_step = state["episode_step"].clone()
        self.action = state["action"].clone()  # the last action is set anew at every step
        for name, value in state["memory"].items():
            self.memory[name].copy_(value)

    def close(self) -> None:
        """Free the threads of the physics."""
        self.simulation.close()

    def _describe(self, model: mujoco.MjModel) -> EnvSpec:
        """Learn the widths of the observation groups from one start, and leave the random streams as they were."""
        seed = self.streams.seed
        state = self._sense(self, self._start_episodes(np.arange(self.num_envs)))
        groups = {}
        for name, terms in self.config.observations.items():
            widths = [term.function(state, **term.params).shape[1] for term in terms.values()]
            noise = [torch.full((width,), term.noise) for width, term in zip(widths, terms.values(), strict=True)]
            if any(term.noise for term in terms.values()):
                self._noise[name] = torch.cat(noise)
            groups[name] = ObsGroup((sum(widths),))
        self.streams = RandomStreams(seed)
        ones = np.ones(model.nu, dtype=np.float32)
        return EnvSpec(
            id=self.config.id,
            obs=groups,
            action=BoxAction(-ones, ones),
            max_episode_steps=self.config.episode_steps,
            saves_state=True,
            backend="native",
            control_dt=self.control_dt,
            action_names=tuple(model.actuator(i).name for i in range(model.nu)),
        )

    def _start_episodes(self, ids: np.ndarray) -> np.ndarray:
        """Put the simulations of `ids` at the start of an episode, and return `ids`."""
        self.simulation.reset(ids, keyframe=self._keyframe)
        rows = torch.from_numpy(ids)
        for memory in (self.episode_step, self.action, self.last_action, *self.memory.values()):
            memory[rows] = 0
        for event in self.config.on_reset:
            event.function(self, ids, **event.params)
        self.simulation.forward(ids)
        return ids

    def _observe(self, state: Any) -> dict[str, Tensor]:
        """Return the observation groups of a state, noise added."""
        groups = {}
        for name, terms in self.config.observations.items():
            values = torch.cat([term.function(state, **term.params) for term in terms.values()], dim=1)
            values = values.float()  # what the simulation says is in double precision
            if name in self._noise:
                uniform = torch.rand(values.shape, generator=self.streams.torch("noise"))
                values.addcmul_(uniform.mul_(2.0).sub_(1.0), self._noise[name])
            groups[name] = values
        return groups

    def _judge(self, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the reward `[N]` and the info so far: the reward's parts and the logged quantities."""
        info = {}
        reward = torch.zeros(self.num_envs)
        for name, term in self.config.rewards.items():
            value = term.function(state, **term.params) * (term.weight * self.control_dt)
            info[f"reward/{name}"] = value
            reward += value
        for name, quantity in self.config.info.items():
            info[name] = quantity.function(state, **quantity.params)
        return reward, info

    def _endings(self, state: Any, info: dict[str, Tensor], diverged: Tensor) -> Tensor:
        """Return who terminated `[N]`, each reason noted in `info`."""
        terminated = torch.zeros(self.num_envs, dtype=torch.bool)
        for name, term in self.config.terminations.items():
            info[f"termination/{name}"] = ended = term.function(state, **term.params) & ~diverged
            terminated |= ended
        return terminated

    def _restart(self, ids: np.ndarray, next_obs: Obs) -> dict[str, Tensor]:
        """Start new episodes in `ids` and return `next_obs` with their rows replaced by the first observations."""
        first = self._observe(self._sense(self, self._start_episodes(ids)))
        rows = torch.from_numpy(ids)
        return {name: values.index_copy(0, rows, first[name]) for name, values in next_obs.items()}


def _forget(
    diverged: Tensor, reward: Tensor, info: dict[str, Tensor], obs: Obs, next_obs: Obs
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replace what diverged simulations said, which may be NaN: no reward, no terms, the next episode's observation."""
    for name, value in info.items():
        if name != "termination/diverged":
            info[name] = value.masked_fill(diverged, 0)
    kept = {name: torch.where(diverged[:, None], obs[name], value) for name, value in next_obs.items()}
    return reward.masked_fill(diverged, 0.0), kept
