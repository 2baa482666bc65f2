"""A table as ONNX: an array is a lookup, a dictionary a comparison with its keys."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from habilis.algorithms.tabular import TabularConfig, make_policy
from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.deploy.export import export_policy
from habilis.deploy.verify import verify_policy

CODES = EnvSpec("codes", {"policy": ObsGroup((9,), one_hot=(4, 5))}, DiscreteAction(3))
PLANE = EnvSpec("plane", {"policy": ObsGroup((2,))}, DiscreteAction(3))


def draw(spec, rows, generator):
    if spec is CODES:
        digits = [torch.randint(n, (rows,), generator=generator) for n in (4, 5)]
        return torch.cat([torch.eye(n)[d] for n, d in zip((4, 5), digits, strict=True)], 1)
    return torch.randn(rows, 2, generator=generator)


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        (CODES, {"double_q": True}),
        (PLANE, {"rounding": (0.5, 1.0), "initial_value": 0.5}),
        (PLANE, {"bins": (9,), "bins_low": (-2.0,), "bins_high": (2.0,)}),
    ],
    ids=["array", "rounded", "bins"],
)
def test_an_exported_table_answers_as_the_original(tmp_path, spec, config):
    g = torch.Generator().manual_seed(0)
    policy = make_policy(spec, TabularConfig(**config), g)
    policy.rows({"policy": draw(spec, 300, g)}, add=True)
    with torch.no_grad():
        policy.values[:, 1:] = torch.randn(policy.values[:, 1:].shape, generator=g, dtype=torch.float64)
    folder = export_policy(policy, spec, tmp_path / "out")
    exported = verify_policy(folder)
    assert exported.spec.obs["policy"].one_hot == spec.obs["policy"].one_hot
    obs = draw(spec, 500, g).numpy()
    expected, _ = policy.predict(obs)
    assert sorted(set(expected.tolist())) == [0, 1, 2]
    assert np.array_equal(exported.predict(obs)[0], expected)
    assert exported.predict(obs[7])[0] == expected[7]
    golden = json.loads((folder / "golden.json").read_text())
    assert len(set(golden["actions"])) > 1  # places that the table knows, not one value everywhere
