"""Probe environments: tiny tasks with known answers, each of which fails for one kind of mistake in a learner.

| `probe/<Name>-v0` | episode | what a correct learner finds |
|---|---|---|
| ConstantReward | 1 step, observation 0, reward 1 | V = 1 |
| ObservationReward | 1 step, observation +-1, reward = observation | V = the observation |
| TwoStepCredit | 2 steps, observation = step, reward 1 at the second | V(0) = gamma, V(1) = 1 |
| ActionReward | 1 step, reward +1 for action 1, -1 for action 0 | action 1 |
| ActionObservationReward | 1 step, observation +-1, reward +-1 | action 1 where it is +1, else 0 |
| Identity | 8 steps, each with a new one-hot observation of 4 | the action it shows; reward 1, else 0 |
| IdentityMultiDiscrete | the same with two choices (3 and 2) | both; reward is the share that is right |
| IdentityHybrid | the same with a choice (of 3) and a value | both; reward 1 if right, less the squared error |
| TruncationValue | reward 1, truncated after 5 steps, never terminated | V = 1 / (1 - gamma) |
| Memory | 4 steps; a cue +-1 is seen in the first only | the cue at the last step; reward +-1 |

Each but the MultiDiscrete and the hybrid one has a twin with actions in [-1, 1], named `...Continuous-v0`: the reward
of the right or wrong answer becomes minus the mean squared distance to a target (0.5; half the observation or cue; for
Identity two values in [-1, 1] observed anew each step). Rewards that do not depend on the action stay. Source: the
probes follow the idea of Andy Jones, "Debugging RL, without the agonizing pain" (2021), and the identity environments
of Stable-Baselines3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from habilis.core.errors import ConfigError, did_you_mean
from habilis.core.random import derive_seed
from habilis.core.specs import (
    ActionSpec,
    BoxAction,
    DiscreteAction,
    EnvSpec,
    HybridAction,
    MultiDiscreteAction,
    ObsGroup,
)
from habilis.core.types import Obs, State, Step

Reward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(cue `[N, k]`, time `[N]`, action) -> reward `[N]`; time is the step within the episode."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one probe draws, shows and pays."""

    draw: Callable[[int, torch.Generator], Tensor]
    """Draw N cues, `[N, k]` float32."""
    observe: Callable[[Tensor, Tensor], Tensor]
    """(cue, time) -> observation `[N, obs_dim]`."""
    reward: Reward
    action: ActionSpec
    length: int = 1
    truncates: bool = False
    """Whether an episode's last step truncates it; otherwise it terminates it."""
    redraws: bool = False
    """Whether the cue is drawn anew at each step, not only at the start of an episode."""


class ProbeEnv:
    """N copies of a probe on the CPU, with exact state.

    Args:
        id: One of `PROBES`.
        num_envs: N.
        seed: Where the random stream of the cues starts.

    Raises:
        ConfigError: There is no such probe.
    """

    def __init__(self, id: str, num_envs: int = 1, *, seed: int = 0) -> None:
        if id not in PROBES:
            raise ConfigError(f"there is no probe {id!r}{did_you_mean(id, PROBES)}; known: {', '.join(PROBES)}")
        self._probe = PROBES[id]
        self.num_envs = num_envs
        self._generator = torch.Generator()
        obs = self.reset(seed)
        self.spec = EnvSpec(
            id=id,
            obs={"policy": ObsGroup(tuple(obs["policy"].shape[1:]))},
            action=self._probe.action,
            max_episode_steps=self._probe.length if self._probe.truncates else None,
            saves_state=True,
            backend="native",
        )

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, the random stream starts from it."""
        if seed is not None:
            self._generator.manual_seed(derive_seed(seed, "probe"))
        self._time = torch.zeros(self.num_envs, dtype=torch.int64)
        self._cue = self._probe.draw(self.num_envs, self._generator)
        return self._observe()

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment."""
        probe = self._probe
        reward = probe.reward(self._cue, self._time, action)
        self._time = self._time + 1
        if probe.redraws:
            self._cue = probe.draw(self.num_envs, self._generator)
        done = self._time >= probe.length
        obs = next_obs = self._observe()
        if done.any():
            self._cue = torch.where(done[:, None], probe.draw(self.num_envs, self._generator), self._cue)
            self._time = torch.where(done, 0, self._time)
            obs = self._observe()
        never = torch.zeros_like(done)
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=reward,
            terminated=never if probe.truncates else done,
            truncated=done if probe.truncates else never,
            valid=torch.ones_like(done),
        )

    def state_dict(self) -> State:
        """Return where each episode is and the position of the random stream."""
        return {"time": self._time, "cue": self._cue, "generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._time, self._cue = state["time"], state["cue"]
        self._generator.set_state(state["generator"])

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _observe(self) -> Obs:
        return {"policy": self._probe.observe(self._cue, self._time)}


def _nothing(n: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(n, 1)


def _sign(n: int, generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, (n, 1), generator=generator) - 1.0


def _point(n: int, generator: torch.Generator) -> Tensor:
    return 2.0 * torch.rand(n, 2, generator=generator) - 1.0


def _choices(*nvec: int) -> Callable[[int, torch.Generator], Tensor]:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch.stack([torch.randint(k, (n,), generator=generator) for k in nvec], 1).float()

    return draw


def _choice_and_point(n: int, generator: torch.Generator) -> Tensor:
    return torch.cat([_choices(3)(n, generator), _point(n, generator)[:, :1]], 1)


def _see_cue(cue: Tensor, time: Tensor) -> Tensor:
    return cue.clone()


def _see_time(cue: Tensor, time: Tensor) -> Tensor:
    return time[:, None].float()


def _see_cue_first(cue: Tensor, time: Tensor) -> Tensor:
    return torch.where(time[:, None] == 0, cue, 0.0)


def _see_one_hot(*nvec: int) -> Callable[[Tensor, Tensor], Tensor]:
    def observe(cue: Tensor, time: Tensor) -> Tensor:
        return torch.cat([one_hot(cue[:, i].long(), k).float() for i, k in enumerate(nvec)], 1)

    return observe


def _see_one_hot_and_point(cue: Tensor, time: Tensor) -> Tensor:
    return torch.cat([one_hot(cue[:, 0].long(), 3).float(), cue[:, 1:]], 1)


def _pay_one(cue: Tensor, time: Tensor, action: Tensor) -> Tensor:
    return torch.ones(len(cue))


def _pay_cue(cue: Tensor, time: Tensor, action: Tensor) -> Tensor:
    return cue[:, 0].clone()


def _pay_right(cue: Tensor, time: Tensor, action: Tensor) -> Tensor:
    """Pay the share of the choices that are the cue's."""
    return (action.view(len(cue), -1) == cue).float().mean(1)


def _pay_right_and_near(cue: Tensor, time: Tensor, action: Tensor) -> Tensor:
    """Pay 1 for the cue's choice, which is the last column of the action, less the squared error of its value."""
    return (action[:, 1] == cue[:, 0]).float() - (action[:, 0] - cue[:, 1]).square()


def _pay_sign(right: Callable[[Tensor], Tensor]) -> Reward:
    """Pay +1 for action 1 where `right(cue)` is positive and action 0 where it is not, -1 for the other."""
    return lambda cue, time, action: torch.where((action == 1) == (right(cue)[:, 0] > 0), 1.0, -1.0)


def _pay_near(target: Callable[[Tensor], Tensor]) -> Reward:
    """Pay minus the mean squared distance to `target(cue)`."""
    return lambda cue, time, action: -(action - target(cue)).square().mean(1)


def _pay_at(when: int, reward: Reward) -> Reward:
    """Pay `reward` in the step `when` only."""
    return lambda cue, time, action: torch.where(time == when, reward(cue, time, action), 0.0)


def _box(dim: int) -> BoxAction:
    return BoxAction(np.full(dim, -1.0, np.float32), np.full(dim, 1.0, np.float32))


def _pair(name: str, discrete: Reward, continuous: Reward, **parts: Any) -> dict[str, Probe]:
    return {
        f"probe/{name}-v0": Probe(reward=discrete, action=DiscreteAction(2), **parts),
        f"probe/{name}Continuous-v0": Probe(reward=continuous, action=_box(1), **parts),
    }


_IDENTITY: dict[str, Any] = {"length": 8, "redraws": True}

PROBES: dict[str, Probe] = {
    **_pair("ConstantReward", _pay_one, _pay_one, draw=_nothing, observe=_see_cue),
    **_pair("ObservationReward", _pay_cue, _pay_cue, draw=_sign, observe=_see_cue),
    **_pair("TwoStepCredit", _pay_at(1, _pay_one), _pay_at(1, _pay_one), draw=_nothing, observe=_see_time, length=2),
    **_pair(
        "ActionReward",
        _pay_sign(torch.ones_like),
        _pay_near(lambda cue: torch.full_like(cue, 0.5)),
        draw=_nothing,
        observe=_see_cue,
    ),
    **_pair(
        "ActionObservationReward",
        _pay_sign(lambda cue: cue),
        _pay_near(lambda cue: 0.5 * cue),
        draw=_sign,
        observe=_see_cue,
    ),
    "probe/Identity-v0": Probe(
        draw=_choices(4), observe=_see_one_hot(4), reward=_pay_right, action=DiscreteAction(4), **_IDENTITY
    ),
    "probe/IdentityMultiDiscrete-v0": Probe(
        draw=_choices(3, 2),
        observe=_see_one_hot(3, 2),
        reward=_pay_right,
        action=MultiDiscreteAction((3, 2)),
        **_IDENTITY,
    ),
    "probe/IdentityHybrid-v0": Probe(
        draw=_choice_and_point,
        observe=_see_one_hot_and_point,
        reward=_pay_right_and_near,
        action=HybridAction(_box(1), MultiDiscreteAction((3,))),
        **_IDENTITY,
    ),
    "probe/IdentityContinuous-v0": Probe(
        draw=_point, observe=_see_cue, reward=_pay_near(lambda cue: cue), action=_box(2), **_IDENTITY
    ),
    **_pair("TruncationValue", _pay_one, _pay_one, draw=_nothing, observe=_see_cue, length=5, truncates=True),
    **_pair(
        "Memory",
        _pay_at(3, _pay_sign(lambda cue: cue)),
        _pay_at(3, _pay_near(lambda cue: 0.5 * cue)),
        draw=_sign,
        observe=_see_cue_first,
        length=4,
    ),
}
"""Every probe by its id."""
