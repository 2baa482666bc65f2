"""What every algorithm promises: a complete bundle, reloads that go on bit for bit, nothing drawn from outside."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from habilis.core import recording
from habilis.core.recording import Recorded
from habilis.core.state import bundle_state
from habilis.data.priorities import Priorities
from habilis.nn.optimizer import Optimizer
from habilis.nn.value import ValueRegression
from habilis.policies.smoothness import SmoothnessConfig

SMOOTH = {"smoothness": SmoothnessConfig(temporal=0.3, spatial=0.2, local=0.1)}

PPO_KINDS = {
    "plain": {},
    "squashed": {"distribution": "squashed", "ent_coef": 0.01},
    "beta": {"distribution": "beta", "ent_coef": 0.01},
    "state-dependent, smooth": {"use_sde": True, "sde_sample_freq": 4, **SMOOTH},
    "shared": {"share_trunk": True},
    "adaptive": {"learning_rate_schedule": "adaptive", "std_type": "dependent"},
    "annealed": {"learning_rate_schedule": "linear", "clip_range_schedule": "linear", "std_type": "annealed"},
}
SAC_KINDS = {
    "plain": {},
    "fixed temperature": {"ent_coef": 0.2},
    "many critics": {"n_critics": 5, "normalize_obs": True, "n_steps": 3},
    "tqc": {"n_quantiles": 5, "top_quantiles_to_drop_per_net": 1, "policy_critic": "mean"},
    "redq": {"n_critics": 4, "n_target_critics": 2, "policy_critic": "mean"},
    "droq": {"layer_norm": True, "dropout": 0.1, "learning_rate_schedule": "linear"},
    "crossq": {"batch_renorm": True, "target_networks": False, "policy_delay": 2, "adam_beta1": 0.5},
    "simba": {"network": "simba", "critic_hidden": (8, 8), "normalize_obs": True},
    "simba_v2": {"network": "simba_v2"},
    "droq with simba_v2": {"network": "simba_v2", "layer_norm": True, "dropout": 0.1},
    "crossq with simba": {"network": "simba", "batch_renorm": True, "target_networks": False, "adam_beta1": 0.5},
    "state-dependent, smooth": {"use_sde": True, **SMOOTH},
}
DQN_KINDS = {
    "plain": {},
    "categorical, dueling, double": {
        "head": "categorical",
        "dueling": True,
        "double_q": True,
        "tau": 0.5,
        "n_atoms": 11,
    },
    "quantiles, n-step": {"head": "quantile", "n_steps": 3, "n_quantiles": 7, "exploration": "boltzmann"},
    "implicit quantiles": {"head": "implicit_quantile", "normalize_obs": True, "exploration_schedule": "exponential"},
    "rainbow": {
        "head": "categorical",
        "dueling": True,
        "double_q": True,
        "n_steps": 3,
        "exploration": "noisy",
        "prioritized": True,
        "learning_rate_schedule": "linear",
    },
}
DQN_KINDS = {kind: {"target_update_interval": 2, **config} for kind, config in DQN_KINDS.items()}
DISCRETE_SAC_KINDS = {
    "plain": {},
    "fixed temperature": {"ent_coef": 0.2, "n_critics": 3, "normalize_obs": True, "n_steps": 3},
}
TD3_KINDS = {
    "plain": {},
    "ddpg": {"n_critics": 1, "policy_delay": 1, "target_policy_noise": 0.0, "action_noise": "ornstein_uhlenbeck"},
    "many critics": {"n_critics": 5, "normalize_obs": True, "n_steps": 3},
    "simba": {"network": "simba"},
    "layer norm, smooth": {"layer_norm": True, "critic_hidden": (8, 8), **SMOOTH},
    "fast": {"n_atoms": 11, "v_max": 90.0, "action_noise_std_min": 0.01, "weight_decay": 0.1, "normalize_obs": True},
}
A2C_KINDS = {
    "plain": {},
    "beta, smooth": {"distribution": "beta", **SMOOTH},
    "shared": {"share_trunk": True, "ent_coef": 0.01},
    "adam": {"use_rms_prop": False, "normalize_advantage": True, "learning_rate_schedule": "linear"},
}
REINFORCE_KINDS = {"plain": {}, "no baseline": {"baseline": False, "distribution": "squashed"}}
TRPO_KINDS = {
    "plain": {},
    "npg": {"line_search": False, "sub_sampling_factor": 2, "std_type": "dependent"},
    "beta": {"distribution": "beta"},
    "state-dependent": {"use_sde": True},
}
ON_POLICY = {"ppo": PPO_KINDS, "a2c": A2C_KINDS, "reinforce": REINFORCE_KINDS, "trpo": TRPO_KINDS}
KINDS = {**ON_POLICY, "sac": SAC_KINDS, "discrete_sac": DISCRETE_SAC_KINDS, "td3": TD3_KINDS, "dqn": DQN_KINDS}
CHOOSING = ("discrete_sac", "dqn")
CASES = [(name, config) for name, kinds in KINDS.items() for config in kinds.values()]
NAMES = [f"{name} {kind}" for name, kinds in KINDS.items() for kind in kinds]
every_algorithm = pytest.mark.parametrize(("name", "config"), CASES, ids=NAMES)


class Learning:
    """One algorithm and its data, one iteration at a time."""

    def __init__(self, lab, name, config, seed=0):
        self.lab = lab
        shown = lab.VECTOR if config.get("share_trunk") else lab.ASYMMETRIC
        self.env = lab.env(shown, "choice" if name in CHOOSING else "box")
        self.algorithm = getattr(lab, name)(self.env, seed, **config)
        priorities = Priorities() if config.get("prioritized") else None
        replay = {"n_steps": config.get("n_steps", 1), "priorities": priorities}
        self.buffer = None if name in ON_POLICY else lab.replay(self.algorithm, self.env, **replay)

    def batch(self, index):
        if self.buffer is None:
            return self.lab.rollout(self.algorithm, self.env, seed=index)
        self.buffer._generator = np.random.default_rng(index)
        return self.buffer.sample(32)

    def iterate(self, first, last):
        for index in range(first, last):
            self.algorithm.set_progress(index / 10, index)
            batch = self.batch(index)
            metrics = self.algorithm.update(batch)
            if "td_error" in metrics:
                self.buffer.update_priorities(batch.index, metrics.pop("td_error"))
            if self.buffer is not None and self.algorithm.config.normalize_obs:
                self.algorithm.update_normalizers(self.env.obs, torch.ones(4, dtype=torch.bool))
        return metrics


def assert_equal(a, b, path="state"):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def held(value, found=None):
    """What can change by learning, by walking through an object: tensors, modules, optimisers, generators."""
    found = {} if found is None else found
    if id(value) in found or isinstance(value, str | int | float | bool | type(None) | type | Recorded):
        return found  # a recording reads the bundle's tensors where they are: that it holds none is tested below
    if isinstance(
        value, Tensor | nn.Module | Optimizer | torch.optim.Optimizer | torch.Generator | np.random.Generator
    ):
        found[id(value)] = value
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list | tuple | set):
        children = list(value)
    elif hasattr(value, "__dict__"):
        children = list(vars(value).values())
    else:
        children = []
    for child in children:
        held(child, found)
    return found


def outside(algorithm):
    """What learning may change and the bundle does not hold; a view of a held tensor is held."""
    inside = held(algorithm.state)
    storages = {t.untyped_storage().data_ptr() for t in inside.values() if isinstance(t, Tensor)}
    return [
        value
        for key, value in held(algorithm).items()
        if key not in inside and not (isinstance(value, Tensor) and value.untyped_storage().data_ptr() in storages)
    ]


@pytest.fixture
def record_after(monkeypatch):
    """Sets how many calls a function runs as it is written before it is recorded."""
    return lambda calls: monkeypatch.setattr(recording, "RECORD_AFTER", calls)


NEVER = 10**9


def recordings(algorithm):
    """What the algorithm's functions, and those of its parts, have recorded."""
    parts = [algorithm, *(x for x in vars(algorithm).values() if isinstance(x, ValueRegression))]
    functions = [x for part in parts for x in vars(part).values() if isinstance(x, Recorded)]
    return [recording for function in functions for recording in function._recordings.values()]


@every_algorithm
def test_a_recording_gives_the_same_bits_and_holds_no_state(lab, name, config, record_after):
    """All at once recorded, never recorded, and recorded late after a reload: what is learnt does not know of it."""
    config = config if name == "a2c" else config | {"batch_size": 16}
    record_after(NEVER)
    written = Learning(lab, name, config)
    written.iterate(0, 8)
    record_after(1)
    recorded = Learning(lab, name, config)
    recorded.iterate(0, 4)
    # without a baseline nothing of REINFORCE has the same shape twice
    assert bool(recordings(recorded.algorithm)) == config.get("baseline", True)
    state = recorded.algorithm.state_dict()
    recorded.iterate(4, 6)
    recorded.algorithm.load_state_dict(state)  # under the recordings, which must see it
    assert_equal(recorded.algorithm.state_dict(), state)
    again = Learning(lab, name, config)
    again.iterate(0, 4)
    again.iterate(4, 8)
    assert_equal(again.algorithm.state_dict(), written.algorithm.state_dict())
    fresh = Learning(lab, name, config)
    fresh.iterate(0, 4)
    record_after(NEVER)
    twin = getattr(lab, name)(fresh.env, seed=9, **config)
    twin.load_state_dict(state)
    batch = fresh.batch(4)
    twin.update(batch)
    recorded.algorithm.update(batch)
    assert_equal(recorded.algorithm.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", [*ON_POLICY, "sac", "discrete_sac", "td3", "dqn"])
def test_images_are_learnt_from_without_a_recording(lab, name, record_after):
    record_after(1)
    env = lab.env(lab.IMAGES, "choice" if name in CHOOSING else "box")
    algorithm = getattr(lab, name)(env)
    buffer = lab.replay(algorithm, env, steps=4)
    for seed in range(4):
        algorithm.update(lab.rollout(algorithm, env, 4, seed) if name in ON_POLICY else buffer.sample(8))
    assert not recordings(algorithm)


@every_algorithm
def test_the_bundle_holds_all_state(lab, name, config):
    learning = Learning(lab, name, config)
    learning.iterate(0, 2)
    assert outside(learning.algorithm) == []
    learning.algorithm.hidden_counter = {"steps": [torch.zeros(1)]}
    assert len(outside(learning.algorithm)) == 1


@every_algorithm
def test_every_part_of_the_bundle_moves_and_is_restored(lab, name, config):
    learning = Learning(lab, name, config)
    before = learning.algorithm.state_dict()
    learning.iterate(0, 3)
    after = learning.algorithm.state_dict()
    fresh = Learning(lab, name, config, seed=5).algorithm
    fresh.load_state_dict(after)
    assert_equal(fresh.state_dict(), after)
    changed = [f.name for f in dataclasses.fields(learning.algorithm.state) if not same(before[f.name], after[f.name])]
    still = {
        "ppo": {"clip_range"},
        "a2c": set() if "smoothness" in config else {"noise"},
        "reinforce": set() if config.get("baseline", True) else {"critic", "critic_optimizer", "shuffle"},
        "trpo": {"skipped"},
        "sac": {"log_alpha", "alpha_optimizer", "target_critics"},
        "td3": set(),
        "discrete_sac": {"log_alpha", "alpha_optimizer"},
        "dqn": {"noise"},
    }[name]
    assert {f.name for f in dataclasses.fields(learning.algorithm.state)} - set(changed) <= still


def same(a, b):
    try:
        assert_equal(a, b)
    except AssertionError:
        return False
    return True


@every_algorithm
def test_a_reload_goes_on_bit_for_bit(lab, name, config):
    straight, resumed = Learning(lab, name, config), Learning(lab, name, config)
    straight.iterate(0, 5)
    resumed.iterate(0, 2)
    state = resumed.algorithm.state_dict()
    fresh = getattr(lab, name)(resumed.env, seed=77, **config)
    fresh.load_state_dict(state)
    resumed.algorithm = fresh
    resumed.iterate(2, 5)
    assert_equal(resumed.algorithm.state_dict(), straight.algorithm.state_dict())


@every_algorithm
def test_the_saved_state_does_not_move(lab, name, config):
    learning = Learning(lab, name, config)
    learning.iterate(0, 2)
    state = learning.algorithm.state_dict()
    again = bundle_state(learning.algorithm.state)
    fresh = getattr(lab, name)(learning.env, seed=3, **config)
    fresh.load_state_dict(state)
    learning.iterate(2, 3)
    assert_equal(state, again)
    assert_equal(fresh.state_dict(), again)


@every_algorithm
def test_the_same_seed_is_bit_equal_and_another_is_not(lab, name, config):
    runs = [Learning(lab, name, config, seed) for seed in (1, 1, 2)]
    for learning in runs:
        learning.iterate(0, 3)
    one, two, other = (r.algorithm.state_dict() for r in runs)
    assert_equal(one, two)
    assert not same(one["policy"], other["policy"])


@every_algorithm
def test_no_global_random_state_is_touched(lab, name, config):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    Learning(lab, name, config).iterate(0, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


@every_algorithm
def test_metrics_are_detached_scalars(lab, name, config):
    metrics = Learning(lab, name, config).iterate(0, 1)
    assert all(v.dim() == 0 and not v.requires_grad and v.isfinite() for v in metrics.values()), metrics


@every_algorithm
@pytest.mark.parametrize("where", ["reward", "policy", "critic"])
def test_nan_in_a_batch_leaves_everything_finite(lab, name, config, where):
    learning = Learning(lab, name, config)
    learning.iterate(0, 1)
    batch = learning.batch(1)
    if where == "reward":
        rewards = "rewards" if name in ON_POLICY else "reward"
        batch = dataclasses.replace(batch, **{rewards: torch.full_like(getattr(batch, rewards), math.nan)})
    elif where in batch.obs:
        batch = dataclasses.replace(batch, obs=dict(batch.obs) | {where: torch.full_like(batch.obs[where], math.nan)})
    learning.algorithm.update(batch)
    skipped = sum(float(v) for v in learning.algorithm.skipped.values())
    unread = where == "critic" and (name == "dqn" or "critic" not in batch.obs or not config.get("baseline", True))
    assert skipped == 0 if unread else skipped > 0
    assert all(bool(t.isfinite().all()) for t in held(learning.algorithm.state).values() if isinstance(t, Tensor))
    # and it can learn again
    before = [float(v) for v in learning.algorithm.skipped.values()]
    metrics = learning.iterate(2, 4)
    assert [float(v) for v in learning.algorithm.skipped.values()] == before
    assert all(bool(v.isfinite()) for v in metrics.values())


@every_algorithm
def test_counts_its_gradient_steps(lab, name, config):
    learning = Learning(lab, name, config)
    if name not in ON_POLICY or name == "a2c":
        learning.iterate(0, 3)
        assert learning.algorithm.gradient_steps == 3
    else:
        batch = learning.batch(0)
        learning.algorithm.update(batch)
        epochs = 2 * (int(batch.valid.sum()) // 8) * config.get("baseline", True)  # two of eights, of PPO or a critic
        assert learning.algorithm.gradient_steps == epochs + (name != "ppo")
