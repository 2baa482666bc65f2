"""Replay: a time-major ring of transitions of N environments, sampled uniformly, with n-step returns assembled at sampling.

Observations are stored once. The successor of row t is row t + 1, except where an episode ended: its true last observation lies in
a side store that grows with the number of episodes. A million transitions of HalfCheetah take 102 MB.
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
        if self.rows <= n_steps + 1:
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

        Transitions already held stay: an episode under way (environments that could not save their state, after a resume) ends there
        as truncated, with the observation it had reached.
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
        back, env = self._draw(batch_size)
        device = self.rewards.device
        row = torch.from_numpy((self._head - back) % self.rows).to(device)
        env_index = torch.from_numpy(env).to(device)
        flat = row * self.num_envs + env_index
        obs = {name: store.flatten(0, 1)[flat] for name, store in self.obs.items()}
        action = self.actions.flatten(0, 1)[flat]
        if self.n_steps == 1:
            reward, terminated = self.rewards.flatten()[flat], self.terminated.flatten()[flat]
            discount = torch.full_like(reward, self.gamma)
            last = flat
        else:
            reward, discount, last, terminated = self._n_step(row, env_index, torch.from_numpy(back).to(device))
        return TransitionBatch(obs, action, reward, terminated, self._successors(last), discount)

    def _draw(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how many rows back from the head, and which environment, each `[batch_size]` int64."""
        index = self._generator.integers(self._size * self.num_envs, size=batch_size)
        if not self._all_valid:
            while (bad := ~self._valid_at(index)).any():
                index[bad] = self._generator.integers(self._size * self.num_envs, size=int(bad.sum()))
        return index // self.num_envs + 1, index % self.num_envs

    def _valid_at(self, index: np.ndarray) -> np.ndarray:
        row = torch.from_numpy((self._head - index // self.num_envs - 1) % self.rows).to(self.valid.device)
        valid = self.valid[row, torch.from_numpy(index % self.num_envs).to(row.device)].cpu().numpy()
        if not valid.any() and not self.valid.any():
            raise ConfigError("the replay buffer holds no transition to learn from: every step so far was invalid")
        return valid  # type: ignore[no-any-return]

    def _n_step(self, row: Tensor, env: Tensor, back: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Assemble n-step returns; a window ends at the end of its episode and before the head of the ring."""
        steps = torch.arange(self.n_steps, device=row.device).unsqueeze(1)
        window = ((row + steps) % self.rows) * self.num_envs + env
        next_window = ((row + steps + 1) % self.rows) * self.num_envs + env
        newest = steps >= back - 1
        # a step that must not be learnt from cuts the window before it
        stop = self.done.flatten()[window] | newest | ~self.valid.flatten()[next_window]
        terminated = self.terminated.flatten()[window]
        reward, discount, last, ended = n_step_return(self.rewards.flatten()[window], terminated, stop, self.gamma)
        return reward, discount, window.gather(0, last.unsqueeze(0)).squeeze(0), ended

    def _successors(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the true successors of the steps at flat indices."""
        following = flat + self.num_envs
        following = torch.where(following >= self.rows * self.num_envs, following - self.rows * self.num_envs, following)
        successors = {name: store.flatten(0, 1)[following] for name, store in self.obs.items()}
        if len(self._final_obs[next(iter(self._final_obs))]):
            slot = self.final_slot.flatten()[flat]
            at_end = (slot >= 0).nonzero().squeeze(-1)
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
        slots = torch.tensor([self._free.pop() for _ in range(len(ended))], device=ended.device)
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
        """Return what is held, and nothing of the room that is still empty."""
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
