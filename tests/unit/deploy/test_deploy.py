"""Exported policies answer as the originals; whatever is not what was exported is refused."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from habilis.algorithms import discrete_sac, sac, td3
from habilis.algorithms.dqn import DQNConfig
from habilis.algorithms.dqn import make_policy as make_value_policy
from habilis.core.errors import ConfigError, ExportError, HabilisError, MissingExtraError, NonFiniteError, import_extra
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, HybridAction, MultiDiscreteAction, ObsGroup
from habilis.deploy.contract import from_metadata, to_metadata
from habilis.deploy.export import answers_of, draw_observations, export_policy
from habilis.deploy.runtime import OnnxPolicy
from habilis.deploy.verify import check_answers, checksum, verify_policy
from habilis.nn.heads import BetaHead, CategoricalHead, GaussianHead, HybridHead, SquashedGaussianHead
from habilis.nn.memory import MemoryConfig, make_encoder
from habilis.nn.mlp import MLP
from habilis.policies.action_filter import PLAIN, ActionConfig
from habilis.policies.stochastic import StochasticPolicy

VECTORS = {"policy": ObsGroup((7,)), "goal": ObsGroup((7,)), "critic": ObsGroup((11,))}
BOUNDED = BoxAction(np.array([-1.0, -3.0], np.float32), np.array([1.0, 5.0], np.float32))
BOX = BoxAction(np.array([-1.0, -3.0, -np.inf], np.float32), np.array([1.0, 5.0, np.inf], np.float32))


def make_policy(
    kind="gaussian",
    action=BOX,
    groups=VECTORS,
    names=("policy", "goal"),
    normalize=True,
    memory="none",
    filtered=PLAIN,
):
    generator = torch.Generator().manual_seed(3)
    spec = EnvSpec("Robot-v0", groups, action, control_dt=0.02, action_names=("hip", "knee", "wheel"))
    encoder = make_encoder(groups, names, normalize, MemoryConfig(kind=memory, size=16, window=5), generator)
    obs = draw_observations(spec, 200, generator)
    encoder.update_normalizers({name: rows * 0.1 + 3 for name, rows in obs.items()})
    trunk = MLP(encoder.out_dim, (32, 32), None, "tanh", generator)
    if kind == "gaussian":
        head = GaussianHead(trunk.out_dim, action.dim, "independent", 1.0, 1.0, generator)
    elif kind == "beta":
        head = BetaHead(trunk.out_dim, action.dim, 0.3, generator)
    elif kind == "hybrid":
        real = GaussianHead(trunk.out_dim, action.box.dim, "fixed", 1.0, 1.0, generator, squashed=True)
        head = HybridHead(real, CategoricalHead(trunk.out_dim, action.choices, generator))
    elif kind == "squashed":
        head = SquashedGaussianHead(trunk.out_dim, action.dim, generator)
    else:
        head = CategoricalHead(trunk.out_dim, action, generator)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(30)
    return StochasticPolicy(spec, encoder, trunk, head, filtered)


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory):
    policy = make_policy()
    return policy, export_policy(policy, policy.spec, tmp_path_factory.mktemp("deploy") / "out")


@pytest.fixture
def folder(exported_once, tmp_path):
    """An exported folder to do harm to."""
    return Path(shutil.copytree(exported_once[1], tmp_path / "copy"))


def make_obs(policy, count, seed=5):
    obs = draw_observations(policy.spec, count, torch.Generator().manual_seed(seed))
    return {name: rows.numpy() for name, rows in obs.items()}


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("gaussian", BOX),
        ("squashed", BOX),
        ("beta", BOUNDED),
        ("hybrid", HybridAction(BOUNDED, MultiDiscreteAction((3, 4)))),
        ("categorical", DiscreteAction(5)),
        ("categorical", MultiDiscreteAction((3, 4))),
    ],
)
def test_exported_policy_answers_as_the_original(tmp_path, kind, action):
    policy = make_policy(kind, action)
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    for count in (1, 37):
        obs = make_obs(policy, count)
        expected, _ = policy.predict(obs)
        answer, memory = exported.predict(obs)
        assert memory is None
        assert answer.dtype == expected.dtype
        np.testing.assert_allclose(answer, expected, atol=2e-5, rtol=0)
        single, _ = exported.predict({name: rows[0] for name, rows in obs.items()})
        np.testing.assert_allclose(single, expected[0], atol=2e-5, rtol=0)


def answers_in_turn(policy, obs, memory=None):
    """Return the actions for observations step by step, episode 1 beginning anew in step 20."""
    actions = []
    for t in range(len(obs["policy"])):
        if t == 20:
            memory["network"][1] = 0
        action, memory = policy.predict({name: rows[t] for name, rows in obs.items()}, memory)
        actions.append(action)
    return np.stack(actions), memory


@pytest.mark.parametrize(
    ("kind", "action"), [("gaussian", BOX), ("hybrid", HybridAction(BOUNDED, MultiDiscreteAction((3,))))]
)
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_an_exported_policy_smooths_and_limits_as_the_original(tmp_path, kind, action, memory):
    policy = make_policy(kind, action, memory=memory, filtered=ActionConfig(smoothing=0.5, rate_limit=0.01))
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    assert exported.memory["last_action"] == (action.dim,)
    assert ("network" in exported.memory) == (memory == "gru")
    obs = {name: rows.reshape(30, 3, -1) for name, rows in make_obs(policy, 90).items()}
    actions, theirs, mine = [], None, None
    for t in range(30):
        now = {name: rows[t] for name, rows in obs.items()}
        action_here, mine = policy.predict(now, mine)
        answer, theirs = exported.predict(now, theirs)
        np.testing.assert_allclose(answer, action_here, atol=1e-4, rtol=0)
        actions.append(answer)
    half_range = np.array([1.0, 4.0])  # of the two values that have bounds
    changes = np.abs(np.diff(np.stack(actions)[..., :2], axis=0))
    assert (changes <= 0.01 * half_range + 1e-5).all()
    assert (changes > 0.01 * half_range - 1e-5).any()
    assert (np.abs(actions[0][:, :2] - [0.0, 1.0]) <= 0.01 * half_range + 1e-5).all()  # from the middle
    if kind == "hybrid":
        assert set(np.unique(np.stack(actions)[..., 2])) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize("memory", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize(("kind", "action"), [("gaussian", BOX), ("categorical", DiscreteAction(5))])
def test_an_exported_policy_remembers_what_the_original_remembers(tmp_path, kind, action, memory):
    policy = make_policy(kind, action, memory=memory)
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    assert list(exported.memory) == ["network"]
    obs = {name: rows.reshape(60, 3, -1) for name, rows in make_obs(policy, 180).items()}
    expected, remembered = answers_in_turn(policy, obs)
    answers, memories = answers_in_turn(exported, obs)
    np.testing.assert_allclose(answers, expected, atol=5e-5, rtol=0)
    np.testing.assert_allclose(memories["network"], remembered["network"], atol=5e-5, rtol=0)
    alike = {name: np.repeat(rows[:23, :1], 2, 1) for name, rows in obs.items()}
    first, second = answers_in_turn(exported, alike)[1]["network"]
    assert not np.array_equal(first, second)
    single, kept = exported.predict({name: rows[0, 0] for name, rows in obs.items()})
    np.testing.assert_allclose(single, expected[0, 0], atol=5e-5, rtol=0)
    assert kept["network"].shape[0] == 1


def test_a_memory_that_goes_astray_is_refused(tmp_path):
    policy = make_policy(memory="gru")
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    policy.encoder.core.of_memory.weight.data += 1e-3  # which the first step, whose memory is fresh, does not show
    obs = {name: torch.from_numpy(rows) for name, rows in make_obs(policy, 80).items() if name != "critic"}
    with pytest.raises(ExportError, match=r"first in observation [2-9]"):
        check_answers(exported, *answers_of(policy, obs))


@pytest.mark.parametrize(
    ("algorithm", "action", "config"),
    [
        (td3, BOUNDED, td3.TD3Config()),
        (sac, BOUNDED, sac.SACConfig(layer_norm=True, dropout=0.1)),
        (sac, BOUNDED, sac.SACConfig(batch_renorm=True, target_networks=False)),
        (sac, BOUNDED, sac.SACConfig(network="simba", hidden=(16,))),
        (sac, BOUNDED, sac.SACConfig(network="simba_v2", hidden=(16,))),
        (discrete_sac, DiscreteAction(5), discrete_sac.DiscreteSACConfig()),
    ],
    ids=["deterministic", "dropout", "batch renormalisation", "simba", "simba_v2", "choices"],
)
def test_every_actor_is_exported(tmp_path, algorithm, action, config):
    spec = EnvSpec("Robot-v0", {"policy": ObsGroup((7,))}, action)
    policy = algorithm.make_policy(spec, config, torch.Generator().manual_seed(0))
    exported = verify_policy(export_policy(policy, spec, tmp_path / "out"))
    obs = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    expected, _ = policy.predict(obs)
    assert len(np.unique(expected, axis=0)) > 1
    np.testing.assert_allclose(exported.predict(obs)[0], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        {"normalize_obs": True},
        {"head": "categorical", "risk_level": 0.25, "dueling": True},
        {"head": "quantile", "risk_level": 0.25, "exploration": "boltzmann"},
        {"head": "quantile"},
        {"head": "implicit_quantile", "risk_level": 0.5},
        {"head": "categorical", "dueling": True, "exploration": "noisy"},
    ],
    ids=str,
)
def test_every_value_head_is_exported(tmp_path, config):
    spec = EnvSpec("Robot-v0", {"policy": ObsGroup((7,))}, DiscreteAction(5))
    policy = make_value_policy(spec, DQNConfig(**config), torch.Generator().manual_seed(0))
    folder = export_policy(policy, spec, tmp_path / "out")
    obs = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    expected, _ = policy.predict(obs)
    assert len(set(expected.tolist())) > 1
    answers, _ = verify_policy(folder).predict(obs)
    assert np.mean(answers == expected) > 0.99  # but for ties


def test_images_are_exported(tmp_path):
    groups = {"policy": ObsGroup((40, 36, 3), "uint8"), "state": ObsGroup((4,))}
    policy = make_policy("categorical", DiscreteAction(4), groups, ("policy", "state"))
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    obs = make_obs(policy, 5)
    np.testing.assert_array_equal(exported.predict(obs)[0], policy.predict(obs)[0])


def test_the_model_says_what_it_reads_and_does(folder):
    model = onnx.load(folder / "policy.onnx")
    assert [i.name for i in model.graph.input] == ["policy", "goal"]
    assert [o.name for o in model.graph.output] == ["action"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    spec = OnnxPolicy(folder / "policy.onnx").spec
    assert (spec.id, spec.control_dt, spec.action_names) == ("Robot-v0", 0.02, ("hip", "knee", "wheel"))
    assert spec.obs == {"policy": ObsGroup((7,)), "goal": ObsGroup((7,))}
    np.testing.assert_array_equal(spec.action.high, BOX.high)
    np.testing.assert_array_equal(spec.action.low, BOX.low)


def test_metadata_survives_for_every_kind_of_action():
    for action in (DiscreteAction(3), MultiDiscreteAction((2, 5))):
        spec = EnvSpec("E", VECTORS, action)
        assert from_metadata(to_metadata(spec, "1.0", {"network": (3,)})) == (spec, "1.0", {"network": (3,)})


def test_exporting_leaves_the_policy_as_it_is(tmp_path):
    policy = make_policy().train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    export_policy(policy, policy.spec, tmp_path / "out")
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_observations_handed_in_are_checked_too(tmp_path):
    policy = make_policy()
    obs = {name: torch.full((20, *group.shape), 7.0) for name, group in VECTORS.items()}
    export_policy(policy, policy.spec, tmp_path / "out", observations=obs)
    golden = json.loads((tmp_path / "out" / "golden.json").read_text())
    assert np.all(np.array(golden["observations"]["policy"]) == 7.0)
    obs["goal"][3] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        export_policy(policy, policy.spec, tmp_path / "other", observations=obs)


class Inconstant(StochasticPolicy):
    """Does something else while it is traced, as a forgotten `if self.training` would."""

    def forward(self, obs, memory=None):
        return super().forward(obs)[0] + (1e-3 if torch.compiler.is_compiling() else 0), None


class Restless(StochasticPolicy):
    """Answers otherwise at every call, which must not pass for the rounding of float32."""

    calls = 0

    def forward(self, obs, memory=None):
        self.calls += 1
        return super().forward(obs)[0] + 1e-2 * self.calls, None


class Undecided(StochasticPolicy):
    """Chooses otherwise in float64 where an observation begins with a large number, as policies do in a tie."""

    def forward(self, obs, memory=None):
        action, memory = super().forward(obs, memory)
        torn = (obs["policy"].dtype == torch.float64) & (obs["policy"][:, 0] > 1000)
        return torch.where(torn, 4 - action, action), memory


class Untraceable(StochasticPolicy):
    def forward(self, obs, memory=None):
        return super().forward(obs) if obs["policy"].mean().item() > 0 else (obs["policy"], None)


@pytest.mark.parametrize(
    ("cls", "reason"), [(Inconstant, "disagrees"), (Restless, "disagrees"), (Untraceable, "cannot be traced")]
)
def test_a_policy_that_is_not_its_trace_is_refused_and_leaves_nothing(tmp_path, cls, reason):
    policy = make_policy()
    policy.__class__ = cls
    with pytest.raises(ExportError, match=reason):
        export_policy(policy, policy.spec, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_chosen_by_rounding_is_not_held_against_an_export():
    """Two steps are ties, in the third of seven episodes and in the last: of both no step is asked for."""
    policy = make_policy("categorical", DiscreteAction(5), memory="gru")
    policy.__class__ = Undecided
    obs = {name: torch.from_numpy(rows) for name, rows in make_obs(policy, 40 * 7).items() if name != "critic"}
    with torch.no_grad():
        policy.head.logits.bias[0] += 1e6  # of five choices the middle one would be the same either way
    obs["policy"][[7 * 5 + 2, 7 * 30 + 6], 0] = 2000.0
    raw, actions, allowed, steps = answers_of(policy, obs)
    assert (len(actions), allowed, steps) == (40 * 5, 0, 40)
    for name, rows in raw.items():
        whole = obs[name].numpy().reshape(40, 7, -1)
        np.testing.assert_array_equal(rows.reshape(40, 5, -1), np.delete(whole, [2, 6], 1))


def test_a_policy_altered_after_its_export_is_refused(folder):
    policy, exported = make_policy(), OnnxPolicy(folder)
    obs = {name: torch.from_numpy(rows) for name, rows in make_obs(policy, 100).items() if name != "critic"}
    raw, actions, *rest = answers_of(policy, obs)
    check_answers(exported, raw, actions, *rest)
    with pytest.raises(ExportError, match=r"answers \(100, 3\) where the original answers \(100, 1\)"):
        check_answers(exported, raw, actions[:, :1], *rest)
    actions[7, 2] = np.nan  # of which nothing is an answer
    with pytest.raises(ExportError, match="disagrees with the original on 1 of 300 values, first in observation 7"):
        check_answers(exported, raw, actions, *rest)
    with torch.no_grad():
        policy.head.mean.bias[1] += 1e-3
    with pytest.raises(ExportError, match="disagrees"):
        check_answers(exported, *answers_of(policy, obs))


def test_a_normaliser_that_moved_after_the_export_is_refused(folder):
    policy, exported = make_policy(), OnnxPolicy(folder)
    obs = {name: torch.from_numpy(rows) for name, rows in make_obs(policy, 100).items() if name != "critic"}
    policy.encoder.update_normalizers({name: rows + 1 for name, rows in obs.items()})
    with pytest.raises(ExportError, match="disagrees"):
        check_answers(exported, *answers_of(policy, obs))


@pytest.mark.parametrize("name", ["policy.onnx", "golden.json"])
def test_altered_and_truncated_files_are_refused_by_name(folder, name):
    file = folder / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    for altered in (whole[:-1], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        file.write_bytes(altered)
        with pytest.raises(ExportError, match=name):
            verify_policy(folder)
    file.unlink()
    with pytest.raises(ExportError, match=name):
        verify_policy(folder)


def test_golden_vectors_catch_what_checksums_cannot(folder):
    golden = json.loads((folder / "golden.json").read_text())
    golden["actions"][3][1] += 1e-3
    (folder / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["golden.json"] = checksum(folder / "golden.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="observation 3"):
        verify_policy(folder)


def test_a_manifest_that_is_none_is_refused(folder):
    for text in ("{", "[]", '{"format": 99}', '{"format": 1, "sha256": {}}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ExportError, match=r"manifest\.json"):
            verify_policy(folder)


def test_nothing_is_overwritten(folder):
    before = checksum(folder / "policy.onnx")
    with pytest.raises(ExportError, match="nothing is overwritten"):
        export_policy(make_policy(), make_policy().spec, folder)
    assert checksum(folder / "policy.onnx") == before


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("habilis.deploy.export.write_golden", full)
    with pytest.raises(ExportError, match=r"out could not be written \(No space left on device; make room on the disk"):
        export_policy(make_policy(), make_policy().spec, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.partial").mkdir()  # left by an export that was killed
    (tmp_path / "empty.partial" / "golden.json").write_text("half")
    verify_policy(export_policy(make_policy(), make_policy().spec, tmp_path / "empty"))
    assert os.listdir(tmp_path) == ["empty"]


def test_what_is_no_exported_policy_is_refused(tmp_path):
    with pytest.raises(ExportError, match="no exported policy"):
        OnnxPolicy(tmp_path)
    (tmp_path / "policy.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="not a whole ONNX model"):
        OnnxPolicy(tmp_path)
    with pytest.raises(ExportError, match="format None"):
        from_metadata({})


def test_wrong_observations_are_named(folder):
    exported = OnnxPolicy(folder)
    with pytest.raises(ExportError, match="lacks the group 'goal'"):
        exported.predict(np.zeros(7))
    with pytest.raises(ExportError, match=r"'goal' has shape \(8,\)"):
        exported.predict({"policy": np.zeros(7), "goal": np.zeros(8)})


def test_no_motor_is_sent_an_action_that_is_not_finite(tmp_path):
    policy = make_policy(normalize=False)
    policy.trunk = MLP(policy.encoder.out_dim, (32,), None, "relu", torch.Generator().manual_seed(3))
    with torch.no_grad():
        next(policy.trunk.parameters()).mul_(100)
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    many = {name: rows for name, rows in make_obs(policy, 4).items() if name != "critic"}
    many["goal"][2] = 3e38  # finite, but times 100 it is not
    for asked in (policy, exported):
        with pytest.raises(NonFiniteError, match=r"the policy's action is (nan|-?inf) at \(2, \d\): .* overflows"):
            asked.predict(many)
        with pytest.raises(NonFiniteError, match=r"the policy's action is (nan|-?inf) at \(\d,\)"):
            asked.predict({name: rows[2] for name, rows in many.items()})


def test_the_original_and_its_export_refuse_alike_and_leave_the_memory(tmp_path):
    policy = make_policy(memory="gru", filtered=ActionConfig(smoothing=0.5))
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    many = {name: rows for name, rows in make_obs(policy, 4).items() if name != "critic"}
    one = {name: rows[0] for name, rows in many.items()}
    broken = {**many, "goal": np.where(np.arange(28).reshape(4, 7) == 10, np.nan, many["goal"])}
    memories = {}
    for asked in (policy, exported):
        (_, of_many), (_, of_one) = asked.predict(many), asked.predict(one)
        memories[asked] = of_many
        before = {key: np.asarray(value).copy() for key, value in of_many.items()}
        expected = asked.predict(many, of_many)[0]
        for obs, memory, error, told in (
            (broken, of_many, NonFiniteError, r"'goal' is nan at \(1, 3\).* the memory handed in is as it was"),
            (many, {key: x * np.inf for key, x in of_many.items()}, NonFiniteError, r"the memory '\w+' is not finite"),
            (one, of_many, HabilisError, r"the memory '\w+' has shape \(4, \d+\), expected \(1, \d+\)"),
            (many, of_one, HabilisError, r"the memory '\w+' has shape \(1, \d+\), expected \(4, \d+\)"),
            (many, {"network": of_many["network"]}, HabilisError, "the memory lacks 'last_action'"),
            (many, 3.0, HabilisError, "the memory is of type float"),
            ({**many, "goal": one["goal"]}, None, HabilisError, "'policy' is a batch of 4, 'goal' is one alone"),
            ({**one, "goal": many["goal"]}, None, HabilisError, "'policy' is one alone, 'goal' is a batch of 4"),
        ):
            with pytest.raises(error, match=told):
                asked.predict(obs, memory)
        assert all(np.array_equal(of_many[key], value) for key, value in before.items())
        np.testing.assert_array_equal(asked.predict(many, of_many)[0], expected)
        np.testing.assert_array_equal(asked.predict(many, {})[0], asked.predict(many)[0])
    # each takes what the other remembers
    np.testing.assert_allclose(policy.predict(many, memories[exported])[0], expected, atol=2e-5, rtol=0)
    np.testing.assert_allclose(exported.predict(many, memories[policy])[0], expected, atol=2e-5, rtol=0)


def test_an_export_says_what_images_it_wants(tmp_path):
    policy = make_policy("categorical", DiscreteAction(4), {"policy": ObsGroup((40, 36, 3), "uint8")}, ("policy",))
    exported = OnnxPolicy(export_policy(policy, replace(policy.spec, frame_stack=3), tmp_path / "out"))
    with pytest.raises(
        ExportError, match=r"expected \(40, 36, 3\) .* \(3 frames side by side in the channels, the newest"
    ):
        exported.predict(np.zeros((40, 36, 1), np.uint8))
    with pytest.raises(ExportError, match=r"is float64: images are uint8 from 0 to 255; .* not divided by 255"):
        exported.predict(np.full((40, 36, 3), 0.5))


def test_a_nearly_uniform_beta_is_exported(tmp_path):
    """Whose peak float32 tells from the excess of its parameters over 1 alone."""
    policy = make_policy("beta", BOUNDED)
    with torch.no_grad():
        policy.head.out.bias.fill_(-12.0)
    exported = verify_policy(export_policy(policy, policy.spec, tmp_path / "out"))
    obs = make_obs(policy, 200)
    exact, _ = copy.deepcopy(policy).double()({name: torch.from_numpy(rows).double() for name, rows in obs.items()})
    assert exact.std(0).min() > 0.01
    for asked in (policy, exported):
        np.testing.assert_allclose(asked.predict(obs)[0], exact.detach(), atol=1e-4, rtol=0)


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"habilis\[deploy\]"):
        import_extra("onnx_that_is_not_installed", "deploy")


def test_running_and_verifying_need_no_pytorch(folder):
    code = f"""
import sys; sys.modules["torch"] = None
from habilis.deploy.verify import verify_policy
verify_policy({str(folder)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tolerance_that_is_given_is_recorded_and_a_seed_draws_others(tmp_path, folder):
    policy = make_policy()
    other = export_policy(policy, policy.spec, tmp_path / "out", tolerance=0.01, seed=1)
    first, second = (json.loads((path / "golden.json").read_text()) for path in (folder, other))
    assert first["tolerance"] == pytest.approx([1e-5, 4e-5, 1e-5])  # of half of each range
    assert second["tolerance"] == pytest.approx([0.01, 0.04, 0.01])
    assert first["observations"] != second["observations"]
    with pytest.raises(ConfigError, match=r"0 or more, got -1\.0"):
        export_policy(policy, policy.spec, tmp_path / "third", tolerance=-1.0)
