"""State bundles: copies on the way out, in place on the way in, and a clear refusal of what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from habilis.core.errors import CheckpointError
from habilis.core.state import bundle_state, load_bundle


@dataclass
class Bundle:
    net: nn.Module = field(default_factory=lambda: nn.utils.skip_init(nn.Linear, 2, 2))
    value: Tensor = field(default_factory=lambda: torch.zeros(3))
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))
    count: int = 0
    maybe: Any = None


def test_round_trip():
    one, two = Bundle(), Bundle()
    with torch.no_grad():
        one.net.weight.fill_(2.0)
        one.net.bias.fill_(3.0)
    one.value.fill_(4.0)
    one.count = 5
    torch.rand(7, generator=one.generator)
    view = two.value.view(3, 1)
    load_bundle(two, bundle_state(one))
    assert torch.equal(two.net.weight, one.net.weight)
    assert view.flatten().tolist() == [4, 4, 4]
    assert two.count == 5
    assert torch.equal(torch.rand(3, generator=two.generator), torch.rand(3, generator=one.generator))


def test_a_state_does_not_change_with_what_it_was_taken_from():
    bundle = Bundle()
    with torch.no_grad():
        bundle.net.weight.fill_(1.0)
    state = bundle_state(bundle)
    with torch.no_grad():
        bundle.net.weight.fill_(2.0)
    bundle.value.fill_(2.0)
    assert state["net"]["weight"].tolist() == [[1, 1], [1, 1]]
    assert state["value"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("count"), "is expected"),
        (lambda s: s.update(other=1), "other"),
        (lambda s: s.update(value=torch.zeros(1)), "'value' does not fit"),
        (lambda s: s.update(maybe={"a": 1}), "'maybe' does not fit"),
        (lambda s: s["net"].update(weight=torch.zeros(3, 3)), "'net' does not fit"),
        (lambda s: s["net"].pop("bias"), "'net' does not fit"),
        (lambda s: s.update(generator=torch.zeros(3, dtype=torch.uint8)), "'generator' does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    state = bundle_state(Bundle())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_bundle(Bundle(), state)
