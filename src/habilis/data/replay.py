"""Replay: a time-major ring of transitions of N environments, sampled uniformly, n-step returns assembled at sampling.

Observations are stored once. The successor of row t is row t + 1, except where an episode ended: its true last
observation lies in a side store that grows with the number of episodes. A million transitions of HalfCheetah take
103 MB.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from habilis.core.batches import TransitionBatch
from habilis.core.errors import ConfigError
from habilis.core.specs import EnvSpec
from habilis.core.tree import tree_index
from habilis.core.types import Obs, State, Step
from habilis.data.rollout import empty_actions
from habilis.functional.returns import n_step_return


class ReplayBuffer:
    """A ring of the last `capacity` transitions.

    Args:
        spec: what a transition consists of.
        capacity: transitions held, over all environments.
        num_envs: environments that write side by side.
        generator: source of the sampled indices.
        n_steps: rewards summed before bootstrapping.
        gamma: discount.
        device: where the data lies.
    """

    def __init__(
        self,
        spec: EnvSpec,
        capacity: int,
        num_envs: int,
        *,
        generator: np.random.Generator,
        n_steps: int = 1,
        gamma: float = 0.99,
        device: str = "cpu",
    ) -> None:
        # one row more than is held: the newest row has its observation already, its action not yet
        self.rows = -(-capacity // num_envs) + 1
        if self.rows - 1 < n_steps:
            raise ConfigError(
                f"a replay buffer of {capacity} transitions holds {self.rows - 1} of each of {num_envs} environments, "
                f"fewer than {n_steps}-step targets need: raise buffer_size"
            )
        self.num_envs = num_envs
        self.n_steps = n_steps
        self.gamma = gamma
        self._generator = generator
        shape = (self.rows, num_envs)
        self.obs = {
            name: torch.zeros(*shape, *group.shape, dtype=getattr(torch, group.dtype), device=device)
            for name, group in spec.obs.items()
        }
        self.actions = empty_actions(spec, shape, device)
        self.rewards = torch.zeros(shape, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.done = torch.zeros(shape, dtype=torch.bool, device=device)
        self.valid = torch.zeros(shape, dtype=torch.bool, device=device)
        self.final_slot = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._final_obs = {name: store[0, :0].clone() for name, store in self.obs.items()}
        self._free: list[int] = []
        self._head = 0
        self._size = 0
        self._all_valid = True

    def __len__(self) -> int:
        return self._size * self.num_envs

    @staticmethod
    def bytes_needed(spec: EnvSpec, capacity: int) -> int:
        """Return how many bytes `capacity` transitions take, the side store of episode ends left out."""
        observation = sum(group.size * (1 if group.dtype == "uint8" else 4) for group in spec.obs.values())
        action = empty_actions(spec, (1,), "cpu")
        return capacity * (observation + action.numel() * action.element_size() + 4 + 3 + 4)

    def start(self, obs: Obs) -> None:
        """Set the observation that the next action answers.

        Transitions already held stay: an episode under way (environments that could not save their state, after a
        resume) ends there as truncated, with the observation it had reached.
        """
        if self._size:
            newest = (self._head - 1) % self.rows
            open_ended = (~self.done[newest]).nonzero().squeeze(-1)
            self._keep_final(newest, open_ended, {name: store[self._head] for name, store in self.obs.items()})
            self.done[newest] = True
        for name, store in self.obs.items():
            store[self._head] = obs[name]

    def add(self, action: Tensor, step: Step) -> None:
        """Store one transition of each environment, `action` in the policy's units."""
        row, following = self._head, (self._head + 1) % self.rows
        self._release(following)
        self.actions[row] = action
        self.rewards[row] = step.reward
        self.terminated[row] = step.terminated
        self.valid[row] = step.valid
        self.valid[following] = False
        done = step.done
        self.done[row] = done
        self.final_slot[row] = -1
        if step.next_obs is not step.obs:
            self._keep_final(row, done.nonzero().squeeze(-1), step.next_obs)
        for name, store in self.obs.items():
            store[following] = step.obs[name]
        self._all_valid = self._all_valid and bool(step.valid.all())
        self._head = following
        self._size = min(self._size + 1, self.rows - 1)

    def sample(self, batch_size: int) -> TransitionBatch:
        """Draw transitions uniformly, with replacement, from those that may be learnt from."""
        index = self._draw(batch_size)
        obs = {name: store.flatten(0, 1).index_select(0, index) for name, store in self.obs.items()}
        action = self.actions.flatten(0, 1).index_select(0, index)
        if self.n_steps == 1:
            reward, terminated, last = self.rewards.take(index), self.terminated.take(index), index
            discount = torch.full_like(reward, self.gamma)
        else:
            reward, discount, last, terminated = self._n_step(index)
        return TransitionBatch(obs, action, reward, terminated, self._successors(last), discount)

    def _draw(self, batch_size: int) -> Tensor:
        """Draw valid transitions as flat indices, `row * num_envs + environment`, `[batch_size]` int64."""
        index = self._draw_any(batch_size)
        if not self._all_valid:
            while (refused := ~self.valid.take(index)).any():
                if refused.all() and not self.valid.any():
                    raise ConfigError("the replay buffer holds no transition to learn from: every step was invalid")
                index[refused] = self._draw_any(int(refused.sum()))
        return index

    def _draw_any(self, count: int) -> Tensor:
        if not self._size:
            raise ConfigError("the replay buffer is empty: add steps before sampling")
        oldest = (self._head - self._size) * self.num_envs
        index = oldest + self._generator.integers(len(self), size=count)
        return torch.from_numpy(index % self.valid.numel()).to(self.valid.device)

    def _n_step(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sum rewards from flat indices on, up to an episode's end, the newest step or a step that is not valid."""
        steps = torch.arange(self.n_steps + 1, device=index.device).unsqueeze(1)
        window = (index + steps * self.num_envs) % self.valid.numel()
        # the head's row is never valid, so what is written there next ends a window as well
        stop = self.done.take(window[:-1]) | ~self.valid.take(window[1:])
        rewards, terminated = self.rewards.take(window[:-1]), self.terminated.take(window[:-1])
        reward, discount, last, ended = n_step_return(rewards, terminated, stop, self.gamma)
        return reward, discount, window.gather(0, last.unsqueeze(0)).squeeze(0), ended

    def _successors(self, index: Tensor) -> dict[str, Tensor]:
        """Return the true successors of the steps at flat indices."""
        following = (index + self.num_envs) % self.valid.numel()
        successors = {name: store.flatten(0, 1).index_select(0, following) for name, store in self.obs.items()}
        slot = self.final_slot.take(index)
        at_end = (slot >= 0).nonzero().squeeze(-1)
        if len(at_end):
            slots = slot[at_end].long()
            for name, store in self._final_obs.items():
                successors[name][at_end] = store[slots]
        return successors

    def _keep_final(self, row: int, ended: Tensor, next_obs: Obs) -> None:
        """Put the last observations of episodes that ended into the side store."""
        while len(self._free) < len(ended):
            held = len(next(iter(self._final_obs.values())))
            room = max(64, held)
            self._free.extend(range(held + room - 1, held - 1, -1))
            self._final_obs = {
                name: torch.cat([store, store.new_zeros(room, *store.shape[1:])])
                for name, store in self._final_obs.items()
            }
        slots = torch.tensor([self._free.pop() for _ in range(len(ended))], dtype=torch.long, device=ended.device)
        self.final_slot[row, ended] = slots.int()
        for name, values in tree_index(next_obs, ended).items():
            self._final_obs[name][slots] = values

    def _release(self, row: int) -> None:
        """Give back the side store of a row about to be overwritten."""
        if self._size == self.rows - 1:
            slots = self.final_slot[row]
            self._free.extend(slots[slots >= 0].tolist())
            self.final_slot[row] = -1

    def state_dict(self) -> State:
        """Return what is held, and nothing of the room that is still empty; the tensors are the buffer's own."""
        used = self._size + 1 if self._size < self.rows - 1 else self.rows
        stores = {"actions": self.actions, "rewards": self.rewards, "terminated": self.terminated, "done": self.done}
        stores |= {"valid": self.valid, "final_slot": self.final_slot}
        return {
            "rows": self.rows,
            "num_envs": self.num_envs,
            "head": self._head,
            "size": self._size,
            "all_valid": self._all_valid,
            "free": torch.tensor(self._free, dtype=torch.long),
            "obs": {name: store[:used] for name, store in self.obs.items()},
            "final_obs": dict(self._final_obs),
            **{name: store[:used] for name, store in stores.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigError: the sizes differ.
        """
        if (state["rows"], state["num_envs"]) != (self.rows, self.num_envs):
            raise ConfigError(
                f"the saved replay buffer has {state['rows']} rows of {state['num_envs']} environments and this one "
                f"{self.rows} of {self.num_envs}: resume with the buffer_size and num_envs of the run"
            )
        self._head, self._size, self._all_valid = state["head"], state["size"], state["all_valid"]
        self._free = state["free"].tolist()
        for name, store in self.obs.items():
            store[: len(state["obs"][name])] = state["obs"][name]
        device = self.rewards.device
        self._final_obs = {name: saved.clone().to(device) for name, saved in state["final_obs"].items()}
        for name in ("actions", "rewards", "terminated", "done", "valid", "final_slot"):
            getattr(self, name)[: len(state[name])] = state[name]
