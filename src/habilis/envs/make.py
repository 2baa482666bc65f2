"""From an id to a `VecEnv`: the native engine where there is one, else Gymnasium, else what the user names.

Native are the probe environments, the batched twins of Gymnasium's classic control and MuJoCo tasks, and whatever a
higher floor registers with `register_native`. Importing this file imports no simulator: an engine is imported when an
id is asked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, cast, get_args

from habilis.core.errors import ConfigError, EnvError, HabilisError, did_you_mean
from habilis.core.protocols import VecEnv
from habilis.core.registry import Registry
from habilis.core.specs import Backend
from habilis.envs.bit_flip import BitFlip
from habilis.envs.classic import CLASSIC, make_classic
from habilis.envs.finite import make_maximization_bias
from habilis.envs.probes import PROBES, ProbeEnv

BACKENDS = get_args(Backend)
"""The engines that `make_vec_env` knows."""

VERSION = re.compile(r"-v(\d+)$")
"""How an id ends that names its version."""

NativeBuilder = Callable[..., VecEnv]
"""`builder(id, num_envs, *, seed, threads, **kwargs)`."""

NATIVE: Registry[NativeBuilder] = Registry("native environment")
"""The builders of native environments, by id, but for the MuJoCo twins, which `habilis.envs.mujoco` lists."""


def register_native(id: str, builder: NativeBuilder) -> None:
    """Let `make_vec_env(id)` call `builder(id, num_envs, seed=..., threads=..., **kwargs)`.

    Raises:
        ConfigError: The id is already registered.
    """
    NATIVE.add(id, builder)


def make_vec_env(
    id: str,
    num_envs: int = 1,
    *,
    backend: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    asynchronous: bool = False,
    **kwargs: Any,
) -> VecEnv:
    """Make N environments that step together.

    Args:
        id: The environment, say `"HalfCheetah-v5"`, `"habilis/QuadrupedWalk-v0"` or `"package:Env-v0"`. Without its
            version it is the newest.
        num_envs: N.
        backend: `"native"`, `"gymnasium"` or `"envpool"`; None chooses native where the id has a native environment,
            else Gymnasium.
        seed: Where the random streams of the environments start.
        threads: Threads of the native engine and of EnvPool; None lets them choose. Gymnasium has none.
        asynchronous: One process for each environment, which only Gymnasium does: implies that backend.
        **kwargs: Arguments of the environment.

    Raises:
        ConfigError: The backend or the id does not exist, or the one does not have the other.
        EnvError: The environment cannot be made.
        MissingExtraError: The backend is not installed.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs is {num_envs}: ask for at least one environment")
    if backend not in (None, *BACKENDS):
        raise ConfigError(f"there is no backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if asynchronous and backend in ("native", "envpool"):
        raise ConfigError(f"asynchronous is an option of the gymnasium backend: the {backend} backend has threads")
    id = newest_version(id, "gymnasium" if asynchronous else backend)
    if backend == "envpool":
        from habilis.envs.envpool import EnvPoolVecEnv

        return EnvPoolVecEnv(id, num_envs, seed=seed, threads=threads, **kwargs)
    if backend == "gymnasium" or asynchronous:
        return _make_gymnasium(id, num_envs, seed=seed, asynchronous=asynchronous, **kwargs)
    id = _import_module_of(id)
    builder = _native_builder(id)
    if builder is not None:
        try:
            return builder(id, num_envs, seed=seed, threads=threads, **kwargs)
        except (TypeError, ValueError) as error:
            if not kwargs:
                raise
            raise _unfit(id, kwargs, error) from error
    if backend == "native":
        raise ConfigError(
            f"{id!r} has no native environment{did_you_mean(id, list_env_ids('native'))}: choose another backend"
        )
    return _make_gymnasium(id, num_envs, seed=seed, asynchronous=False, **kwargs)


def newest_version(id: str, backend: str | None = None) -> str:
    """Return the id with its newest version, where it is given without one and there are versions; else as it is.

    Args:
        id: as for `make_vec_env`.
        backend: whose versions count; None for those that are found without naming one.
    """
    if not id or ":" in id or VERSION.search(id):
        return id
    ids = list_env_ids(backend)
    versions = {other: int(found[1]) for other in ids if (found := VERSION.search(other)) and other == id + found[0]}
    return id if id in ids or not versions else max(versions, key=versions.__getitem__)


def describe_env(env: VecEnv) -> str:
    """Return a line on what runs an environment, say `Ant-v5: native batched twin (mujoco.batch), 8 ...`."""
    backend, simulation = env.spec.backend, getattr(env, "simulation", None)
    engine = {"gymnasium": "Gymnasium", "envpool": "EnvPool"}.get(backend, "native")
    if simulation is not None:
        twin = env.spec.id in _mujoco().NATIVE_IDS
        engine = f"native batched {'twin' if twin else 'task'} (mujoco.batch)"
    elif engine == "native" and env.spec.id in CLASSIC:
        engine = "native batched twin (NumPy)"
    parts = [engine, _count(env.num_envs, "environment")]
    if simulation is not None:
        parts.append(_count(simulation.threads, "thread"))
    return f"{env.spec.id}: {', '.join(parts)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def list_env_ids(backend: str | None = None) -> list[str]:
    """Return the ids of one backend, or those that `make_vec_env` finds without being told a backend.

    Raises:
        ConfigError: There is no such backend.
        MissingExtraError: The backend is not installed.
    """
    if backend == "envpool":
        from habilis.envs.envpool import envpool_ids

        return envpool_ids()
    if backend not in (None, "native", "gymnasium"):
        raise ConfigError(f"there is no backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    ids: set[str] = set()
    if backend != "gymnasium":
        ids.update(NATIVE, _mujoco().NATIVE_IDS)
    if backend != "native":
        import gymnasium

        ids.update(gymnasium.registry)
    return sorted(ids)


def kin_of(id: str) -> list[str]:
    """Return the other native environments whose names begin with that of `id`, or that of `id` with theirs."""
    names = {other: other.rpartition("-v")[0] for other in list_env_ids("native") if other != id}
    name = id.rpartition("-v")[0]
    return [other for other, theirs in names.items() if name and (theirs.startswith(name) or name.startswith(theirs))]


def _import_module_of(id: str) -> str:
    """Import what stands before the colon of an id; return what follows where that is a native environment."""
    module, _, name = id.rpartition(":")
    if module:
        with suppress(ModuleNotFoundError):  # of which Gymnasium tells
            importlib.import_module(module)
    return name if name in NATIVE else id


def _native_builder(id: str) -> NativeBuilder | None:
    if id in NATIVE:
        return NATIVE[id]
    mujoco = _mujoco()
    return cast(NativeBuilder, mujoco.make_native) if id in mujoco.NATIVE_IDS else None


def _unfit(id: str, kwargs: dict[str, Any], error: Exception) -> HabilisError:
    """Return what to tell of an error that the arguments of a native environment led to."""
    unknown = next((key for key in kwargs if f" keyword argument {key!r}" in str(error)), None)
    if unknown is None:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        return EnvError(f"{id} cannot be made with {given}: {error} ({type(error).__name__})")
    kin = kin_of(id)
    among = f"; {' and '.join(kin)} are environments of their own" if kin else ""
    return ConfigError(f"{id} takes no argument {unknown!r}: see its page in the docs{among}")


def _mujoco() -> Any:
    """Import the MuJoCo twins, which takes the simulator's import with it, only now."""
    return importlib.import_module("habilis.envs.mujoco")


def _make_gymnasium(id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    import gymnasium

    from habilis.envs.gymnasium import make_gymnasium

    try:
        return make_gymnasium(id, num_envs, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        hint = _in_envpool(id) or "an environment that your own file registers is found as `module:id`"
        raise ConfigError(
            f"there is no environment {id!r}{did_you_mean(id, list_env_ids())}: {error} ({hint})"
        ) from error
    except EnvError as error:
        package, _, name = id.rpartition(":")
        hint = _in_envpool(name) if package else None  # another package's environment, which may not work here
        if hint is None:
            raise
        raise EnvError(f"{error}: {hint}") from error


def _in_envpool(id: str) -> str | None:
    """Return what to tell of an id that EnvPool has, where that is installed."""
    there = find_spec("envpool") and id in list_env_ids("envpool")
    return f"EnvPool has {id}: --env-backend envpool, or `backend` in Python" if there else None


def _make_probe(id: str, num_envs: int, *, seed: int, threads: int | None) -> VecEnv:
    return ProbeEnv(id, num_envs, seed=seed)


for _id in PROBES:
    register_native(_id, _make_probe)
for _id in CLASSIC:
    register_native(_id, make_classic)
register_native("probe/MaximizationBias-v0", make_maximization_bias)
register_native("probe/BitFlip-v0", BitFlip)
