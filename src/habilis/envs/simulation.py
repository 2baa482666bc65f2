"""N copies of one MuJoCo model, stepped together on CPU threads: the physics engine under every native environment.

A thin layer on MuJoCo's own `mujoco.batch.Batch`. It adds what learning needs: threads chosen by measurement,
simulations that diverge named instead of raised, and the whole state, randomised model fields included, saved and
restored exactly.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import threading
import time
from collections.abc import Callable

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS, Batch, SimulationError

from habilis.core.acceleration import cpu_count, require_room
from habilis.core.config import require
from habilis.core.errors import CheckpointError, ConfigError
from habilis.core.types import State
from habilis.envs.external_forces import has_external_forces
from habilis.envs.mujoco_library import mujoco_library

_BAD = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQACC + 1)
logger = logging.getLogger(__name__)
_measured_threads: dict[tuple[int, ...], int] = {}

Rows = slice | np.ndarray
"""Which simulations: all of them (`slice(None)`) or sorted indices."""


class Simulation:
    """N copies of one physics model.

    The state is live: `qpos` `[N, nq]`, `qvel` `[N, nv]`, `act` `[N, na]`, `ctrl` `[N, nu]` and `time` `[N]` are
    float64 views (`dynamics` is the first three side by side), and a write to them is the simulation's state at its
    next call. Everything derived (`bind("xpos")`, ...) is refreshed by `step` and `forward`; after `step` it describes
    the state before the last substep, as in MuJoCo itself. Results do not depend on the number of threads.

    Args:
        model: the model; the batch works on a copy of it.
        num_envs: N.
        threads: CPU threads, the caller's included; None measures once a process which number is fastest.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, *, threads: int | None = None) -> None:
        if num_envs < 1 or (threads is not None and threads < 1):
            raise ConfigError(f"num_envs and threads must be at least 1, got {num_envs} and {threads}")
        require(
            not model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP,
            'a model whose bodies may sleep has more than a state to save: leave out <flag sleep="enable"/>',
        )
        model = self.model = _without_islands(model)
        require_room(f"{num_envs:,} simulations take at least", num_envs * mujoco.MjData(model).nbuffer, "--num-envs")
        self.num_envs = num_envs
        self.threads = min(num_envs, threads) if threads else _fastest_threads(model, num_envs)
        self.diverged_total = 0
        self._batch = Batch(model, num_envs, self.threads)
        self._external_forces = _ExternalForces(self._batch) if has_external_forces(model) else None
        self.qpos = self.bind("qpos")
        self.qvel = self.bind("qvel")
        self.act = self.bind("act")
        self.ctrl = self.bind("ctrl")
        self.time = self.bind("time")
        self._bad_counts = self._batch.warning[:, _BAD, 1]
        # they lie side by side in a row of the state, after time
        self.dynamics: np.ndarray = self._batch.state[:, 1 : 1 + model.nq + model.nv + model.na]

    @property
    def timestep(self) -> float:
        """Seconds of one substep."""
        return float(self.model.opt.timestep)

    def bind(self, name: str) -> np.ndarray:
        """Return the live `[N, ...]` array of a field of `MjData`.

        Derived fields are read-only, and zero until the first `step` or `forward` after they are bound; `cfrc_ext` is
        of the last `step`, and of the models that `compute_external_forces` was asked for.
        """
        if name == "cfrc_ext" and self._external_forces is not None:
            return self._external_forces.values
        array: np.ndarray = self._batch.bind(name)
        return array

    def expand(self, name: str) -> np.ndarray:
        """Give a field of `MjModel` a value per simulation and return the live `[N, ...]` array.

        Options are named `opt.<name>`. After a write to a field that constants are derived from (masses, inertias,
        lengths, reference poses, ...) call `set_const`.
        """
        array: np.ndarray = self._batch.expand(name)
        return array

    def set_const(self, ids: np.ndarray | None = None) -> None:
        """Compute again the constants that MuJoCo derives from expanded fields, for some or all simulations."""
        self._batch.set_const(ids)

    def reset(self, ids: np.ndarray | None = None, keyframe: int = -1) -> None:
        """Set some or all simulations to the model's default state, or to a keyframe.

        Derived fields stay as they were: write the state that the episode starts from, then call `forward`.

        Args:
            ids: boolean mask `[N]` or sorted indices; None for all.
            keyframe: index of the keyframe; -1 for the defaults.
        """
        self._batch.reset(ids, keyframe, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        if self._external_forces is not None:
            self._external_forces.values[slice(None) if ids is None else ids] = 0.0

    def forward(self, ids: np.ndarray | None = None) -> None:
        """Compute every derived field at the present state, without advancing time."""
        with _UNDISTURBED:
            self._batch.forward(ids)

    def step(self, nstep: int = 1) -> np.ndarray:
        """Advance every simulation by `nstep` substeps.

        Returns:
            `[N]` bool: the simulations that diverged in this call: MuJoCo found a position, velocity or acceleration
            that was not finite or beyond 1e10, or raised an error. Their state means nothing until the caller resets
            them; the others are untouched by it. MuJoCo's own warning of it is not written anywhere.
        """
        diverged = np.zeros(self.num_envs, dtype=bool)
        try:
            with _UNDISTURBED:
                self._batch.step(nstep=nstep)
        except SimulationError as error:
            diverged[error.ids] = True
        if self._external_forces is not None:
            self._external_forces.take()
        if self._bad_counts.any():
            diverged |= self._bad_counts.any(axis=1)
            self._bad_counts[:] = 0
        # what the last substep did is checked by MuJoCo only at the next one; written so that NaN fails the test, and
        # asked in one operation first: where the squares come to so little, none is beyond the limit
        limit = mujoco.mjMAXVAL
        if not np.einsum("ij,ij->", self.dynamics, self.dynamics) <= limit * limit:
            diverged |= ~((self.dynamics <= limit) & (self.dynamics >= -limit)).all(axis=1)
        self.diverged_total += int(np.count_nonzero(diverged))
        return diverged

    def get_model(self, index: int) -> mujoco.MjModel:
        """Return a copy of the model with the expanded fields of one simulation, to render it for example."""
        return self._batch.get_model(index)

    def get_data(self, index: int) -> mujoco.MjData:
        """Return a copy of one simulation as `MjData`, with every derived field computed at its state."""
        model = self.get_model(index)
        data = mujoco.MjData(model)
        self.copy_to(index, model, data)
        return data

    def copy_to(self, index: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Write what `get_model` and `get_data` return into a model and data of the caller's, which is quicker."""
        self._batch.get_model(index, model)
        self._batch.get_data(index, data)
        mujoco.mj_forward(model, data)

    def state_dict(self) -> State:
        """Return the state of every simulation and every model field that differs between them."""
        fields = {name: self._batch.expanded(name) for name in sorted(MODEL_FIELDS)}
        return {
            "state": self._batch.state.copy(),
            "fields": {name: values.copy() for name, values in fields.items() if values is not None},
            "diverged_total": self.diverged_total,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; the simulations go on bit for bit as the saved ones would have.

        Raises:
            CheckpointError: the state is of another model or another number of simulations.
        """
        rows = np.asarray(state["state"])
        if rows.shape != self._batch.state.shape:
            raise CheckpointError(
                f"the saved simulations have the shape {rows.shape}, these {self._batch.state.shape}: "
                "restore into the same model and the same number of environments"
            )
        shared = {name for name in MODEL_FIELDS if self._batch.expanded(name) is not None} - set(state["fields"])
        for name in shared:
            owner, attribute = (self.model.opt, name[4:]) if name.startswith("opt.") else (self.model, name)
            values = self.expand(name).reshape(self.num_envs, -1)
            values[:] = np.ravel(getattr(owner, attribute))[: values.shape[1]]
        for name, values in state["fields"].items():
            self.expand(name)[:] = np.asarray(values)
        self._batch.state[:] = rows
        self._batch.warning[:] = 0
        self.diverged_total = int(state["diverged_total"])

    def close(self) -> None:
        """Free the threads; the simulation cannot be used afterwards."""
        del self._batch, self._external_forces


class _Undisturbed:
    """While it is entered, MuJoCo's warnings are heard here, unless somebody else hears them, and it takes no times.

    MuJoCo's Python package lets it read the clock around each part of a step, for `mjData.timer`, and has no way to
    stop that (`set_mjcb_time(None)` is how it begins); of a small robot's step it is a tenth to a fifth.
    """

    def __init__(self) -> None:
        library = mujoco_library()
        self._clock = ctypes.c_void_p() if library is None else ctypes.c_void_p.in_dll(library, "mjcb_time")
        self._lock = threading.Lock()
        self._inside = 0
        # of both, what was there before the first thread entered
        self._function: int | None = None
        self._hearer: Callable[[str], None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._function, self._clock.value = self._clock.value, None
                self._hearer = mujoco.get_mju_user_warning()
                if self._hearer is None:
                    mujoco.set_mju_user_warning(_hear)

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:  # another thread's step still calls what would be taken away
                mujoco.set_mju_user_warning(self._hearer)
                self._clock.value = self._function


_UNDISTURBED = _Undisturbed()


def _hear(warning: str) -> None:
    """Take a warning in MuJoCo's place, which would write it into a file in the working directory.

    That a simulation diverges is left to the caller of `Simulation.step`, who is told.
    """
    if not warning.startswith("Nan, Inf or huge value"):
        logger.warning("MuJoCo: %s", warning)


class _ExternalForces:
    """`cfrc_ext` `[N, nbody, 6]` of every simulation after its last step, zero where it was reset since.

    What a batch shows of it after any other call is that of whichever simulation was computed there before.
    """

    def __init__(self, batch: Batch) -> None:
        self._computed = batch.bind("cfrc_ext")
        self.values = np.zeros_like(self._computed)

    def take(self) -> None:
        """Take over what a step has computed."""
        self.values[:] = self._computed


def _without_islands(model: mujoco.MjModel) -> mujoco.MjModel:
    """Return a model that is not searched for islands of constraints where there can be one alone.

    The bits stay the same, and a step takes a twentieth to a twelfth less.
    """
    if model.ntree > 1:
        return model
    model = copy.copy(model)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
    return model


def _fastest_threads(model: mujoco.MjModel, num_envs: int) -> int:
    """Measure which number of threads steps `num_envs` simulations fastest; at most a few tenths of a second, once."""
    most = min(num_envs, cpu_count())
    if most == 1:
        return 1
    key = (num_envs, model.nq, model.nv, model.nbody, model.ngeom, model.nu, most)
    if key not in _measured_threads:
        counts = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if n < most] + [most]
        with _UNDISTURBED:
            seconds = {n: _best_time(Batch(model, num_envs, n).step) for n in counts}
        # a thread more must earn its place: within 5% the smaller number wins
        _measured_threads[key] = min(n for n in counts if seconds[n] <= 1.05 * min(seconds.values()))
    return _measured_threads[key]


def _best_time(step: Callable[[], None], repeats: int = 5, budget: float = 0.05) -> float:
    """Return the shortest time of a call of `step`, after one that warms it up."""
    step()
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while len(times) < repeats or time.perf_counter() < deadline:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)
