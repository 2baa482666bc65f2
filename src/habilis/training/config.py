"""The configuration of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from habilis.algorithms.a2c import A2CConfig
from habilis.algorithms.discrete_sac import DiscreteSACConfig
from habilis.algorithms.dqn import DQNConfig
from habilis.algorithms.ppo import PPOConfig
from habilis.algorithms.reinforce import ReinforceConfig
from habilis.algorithms.sac import SACConfig
from habilis.algorithms.tabular import TabularConfig
from habilis.algorithms.td3 import TD3Config
from habilis.algorithms.trpo import TRPOConfig
from habilis.core.acceleration import Precision
from habilis.core.config import coerce_fields, require, require_finite, require_not_negative, require_positive, to_dict
from habilis.core.specs import Backend
from habilis.plugins import resolve_plugins

_SAID_ELSEWHERE = {
    "id": "env",
    "num_envs": "num_envs",
    "backend": "env_backend",
    "seed": "seed",
    "threads": "env_threads",
    "asynchronous": "env_async",
}
"""Arguments of `make_vec_env` that are not the environment's, and the key that decides each."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides how a run goes. Written into the run as `config.json`."""

    algorithm: str
    """Which algorithm learns."""
    env: str
    """Environment id."""
    algo: (
        PPOConfig
        | A2CConfig
        | ReinforceConfig
        | TRPOConfig
        | SACConfig
        | DiscreteSACConfig
        | DQNConfig
        | TabularConfig
        | TD3Config
    )
    """Hyper-parameters of the algorithm."""
    plugins: Mapping[str, Any] = field(default_factory=dict)
    """Modifiers of learning by name, each with its hyper-parameters, in the order in which they transform batches."""
    env_backend: Backend | None = None
    """Engine of the environment; None: the native one where there is one, else Gymnasium."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment."""
    env_async: bool = False
    """One process for each environment (Gymnasium only)."""
    env_threads: int | None = None
    """Threads of the simulation; None: chosen by a short measurement."""
    frame_stack: int = 1
    """Frames that a policy sees at once, joined along the channels of each image."""
    num_envs: int = 1
    """Environments stepped together."""
    total_timesteps: int = 1_000_000
    """Environment steps, over all environments, after which training ends."""
    seed: int = 0
    """Seed of every random stream."""
    device: str = "cpu"
    """Where networks live: cpu, cuda or auto."""
    threads: int = 1
    """Threads of learning: for independent parts of an update side by side, then for the operations in each."""
    matmul_precision: Precision = "highest"
    """Of float32 products: "medium" lets PyTorch use oneDNN where that computes in float32 too, and TF32 on a GPU."""
    eval_freq: int | None = None
    """Environment steps between evaluations; None: a tenth of the run."""
    eval_episodes: int = 10
    """Episodes in an evaluation; 0 for none."""
    eval_stochastic: bool = False
    """Whether evaluations also let the policy act at random."""
    checkpoint_freq: int | None = None
    """Environment steps between checkpoints; None: a tenth of the run."""
    keep_checkpoints: int = 2
    """Checkpoints kept besides the best."""
    log_freq: int | None = None
    """Environment steps between two lines of metrics; None: a two-hundredth of the run."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens when a quantity is not finite: stop with a report, or leave that step out and go on."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    wandb_project: str | None = None
    """Project of Weights & Biases to log to."""
    run_dir: str | None = None
    """Directory of the run; None: `runs/<env>/<algorithm>/<name>_s<seed>_<time>`."""
    name: str = "run"
    """Name of the run within its default directory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", resolve_plugins(self.plugins))
        coerce_fields(self)
        require_positive(self, "num_envs", "frame_stack", "total_timesteps", "threads", "keep_checkpoints")
        for name, ours in _SAID_ELSEWHERE.items():
            require(name not in self.env_kwargs, f"env_kwargs cannot hold {name!r}: set {ours} instead")
        require_positive(self, "env_threads", "eval_freq", "checkpoint_freq", "log_freq")
        require_not_negative(self, "eval_episodes")
        require_finite(to_dict(self.algo), "algo")
        require_finite(to_dict(self.plugins), "plugins")
        require(self.run_dir != "", "run_dir is empty: name a directory, or leave it out for one below runs/")

    def every(self, name: Literal["eval_freq", "checkpoint_freq", "log_freq"]) -> int:
        """Return a frequency in environment steps, its default filled in."""
        value: int | None = getattr(self, name)
        return value or max(1, self.total_timesteps // {"eval_freq": 10, "checkpoint_freq": 10, "log_freq": 200}[name])
