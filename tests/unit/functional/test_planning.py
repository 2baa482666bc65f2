"""Value iteration, and what the tabular methods take the next state to be worth, by hand."""

from __future__ import annotations

import pytest
import torch

from habilis.core.errors import ConfigError
from habilis.functional.planning import value_iteration
from habilis.functional.tabular import BOOTSTRAPS, expected_value, greedy_value, sampled_value


def test_value_iteration_by_hand():
    # state 0: action 0 stays for 1; action 1 goes to state 1 or, as likely, to the end (state 2), for 0
    # state 1: either action ends, for 10 or 4
    transitions = torch.zeros(3, 2, 3)
    transitions[0, 0, 0] = 1.0
    transitions[0, 1, [1, 2]] = 0.5
    transitions[[1, 2], :, 2] = 1.0
    rewards = torch.tensor([[1.0, 0.0], [10.0, 4.0], [0.0, 0.0]])
    q = value_iteration(transitions, rewards, 0.5)
    # going: 0.5 * 0.5 * 10 = 2.5; staying once and then going: 1 + 0.5 * 2.5 = 2.25, staying for ever: 2
    assert q.tolist() == [pytest.approx([2.25, 2.5]), [10.0, 4.0], [0.0, 0.0]]
    patient = value_iteration(transitions, rewards, 0.9)
    assert patient[0].tolist() == pytest.approx([10.0, 4.5])  # staying for ever: 1 / (1 - 0.9)


def test_values_without_a_limit_are_refused():
    transitions, pays = torch.ones(1, 1, 1), torch.ones(1, 1)
    with pytest.raises(ConfigError, match=r"values still change after 100,000 sweeps with a gamma of 1"):
        value_iteration(transitions, pays, 1.0)
    assert value_iteration(transitions, 0 * pays, 1.0).tolist() == [[0.0]]
    assert value_iteration(transitions, pays, 0.9999).item() == pytest.approx(10_000)
    assert value_iteration(transitions, 1e9 * pays, 0.9).item() == pytest.approx(1e10)
    with pytest.raises(ConfigError, match=r"gamma must be in \[0, 1\], got 1.01"):
        value_iteration(transitions, pays, 1.01)


def test_values_of_the_next_state_by_hand():
    one = [1.0, 5.0, 3.0]
    assert greedy_value(one, one, 2, 0.3) == 5.0
    assert sampled_value(one, one, 2, 0.3) == 3.0
    assert expected_value(one, one, 2, 0.3) == pytest.approx(0.7 * 5 + 0.3 * 3)
    assert expected_value(one, one, 2, 0.0) == 5.0
    assert set(BOOTSTRAPS) == {"greedy", "sampled", "expected"}


def test_one_table_chooses_and_the_other_judges():
    choosing, judging = [1.0, 5.0, 3.0], [7.0, -2.0, 4.0]
    assert greedy_value(choosing, judging, 0, 0.3) == -2.0
    assert sampled_value(choosing, judging, 0, 0.3) == 7.0
    assert expected_value(choosing, judging, 0, 0.3) == pytest.approx(0.7 * -2 + 0.3 * 3)
