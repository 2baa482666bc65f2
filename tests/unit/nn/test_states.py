"""The number of a state: of one-hot codes by arithmetic, of real values by a dictionary."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from habilis.nn.states import FIRST_CAPACITY, ArrayStates, DictionaryStates


def codes(*values, sizes):
    return {"policy": torch.cat([one_hot(torch.tensor(v), n).float() for v, n in zip(values, sizes, strict=True)], -1)}


def test_one_hot_codes_are_digits():
    assert ArrayStates((5,))(codes([3, 0, 4], sizes=(5,))).tolist() == [3, 0, 4]
    states = ArrayStates((3, 2, 4))
    assert states.capacity == 24
    obs = codes([0, 2, 1], [1, 0, 1], [3, 0, 2], sizes=(3, 2, 4))
    assert states(obs).tolist() == [0 * 8 + 1 * 4 + 3, 2 * 8 + 0 * 4 + 0, 1 * 8 + 1 * 4 + 2]
    every = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(4)).T
    assert states(codes(*every.tolist(), sizes=(3, 2, 4))).tolist() == list(range(24))
    drawn = states.denormalize({"policy": torch.randn(50, 9, generator=torch.Generator().manual_seed(0))})["policy"]
    assert drawn.sum(1).tolist() == [3.0] * 50
    assert set(drawn.unique().tolist()) == {0.0, 1.0}


def bins():
    # value 0: 4 bins of 0.5 from -1 to 1; value 1: 2 bins of 5 from 0 to 10
    return DictionaryStates(torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 5.0]), torch.tensor([4.0, 2.0]))


def test_bins_by_hand():
    rows = [[-1.0, 0.0], [-0.51, 4.9], [-0.5, 5.0], [0.99, 9.9], [1.0, 10.0], [-7.0, 99.0]]
    expected = [[0, 0], [0, 0], [1, 1], [3, 1], [3, 1], [0, 1]]
    assert bins().cells({"policy": torch.tensor(rows)}).tolist() == expected


def test_rounding_by_hand():
    step = torch.tensor([0.5, 10.0])
    states = DictionaryStates(-step / 2, step, None)
    rows = [[0.2, 4.0], [0.3, 6.0], [-0.3, -26.0], [1000.0, 0.0]]
    assert states.cells({"policy": torch.tensor(rows)}).tolist() == [[0, 0], [1, 1], [-1, -3], [2000, 0]]


def test_states_get_the_next_number_when_they_are_met():
    states = bins()
    first, second = ({"policy": torch.tensor([row])} for row in ([0.0, 0.0], [0.9, 9.0]))
    assert states.rows(first).tolist() == [0]  # never met
    assert states.rows(first, add=True).tolist() == [1]
    assert states.rows(second).tolist() == [0]
    assert states.rows(second, add=True).tolist() == [2]
    both = {"policy": torch.tensor([[0.9, 9.0], [0.1, 1.0], [-0.9, 0.0]])}
    assert states.rows(both).tolist() == states(both).tolist() == [2, 1, 0]
    assert states.count == 2
    assert states.rows({"policy": torch.empty(0, 2)}, add=True).dtype == torch.int64


@pytest.mark.parametrize("met", [FIRST_CAPACITY - 2, FIRST_CAPACITY, 3000])
def test_a_dictionary_grows_and_is_restored(met):
    states = DictionaryStates(torch.zeros(1), torch.ones(1), None)
    obs = {"policy": torch.arange(met).flip(0)[:, None] - 500.0}
    numbers = states.rows(obs, add=True)
    assert numbers.tolist() == list(range(1, met + 1))
    assert states.capacity > met
    assert torch.equal(states(obs), numbers)
    again = DictionaryStates(torch.zeros(1), torch.ones(1), None)
    again.restore(states.keys)
    assert again.count == met
    assert torch.equal(again.rows(obs), numbers)
    assert again.rows({"policy": torch.tensor([[9e6]])}, add=True).tolist() == [met + 1]


def test_what_is_farther_than_numbers_reach_has_a_cell_too():
    states = DictionaryStates(torch.zeros(1), torch.full((1,), 0.1), None)
    obs = {"policy": torch.tensor([[3e38], [0.3], [-3e38], [0.7]])}
    assert states.rows(obs, add=True).tolist() == [1, 2, 3, 4]
    assert states(obs).tolist() == [1, 2, 3, 4]
    again = DictionaryStates(torch.zeros(1), torch.full((1,), 0.1), None)
    again.restore(states.keys)
    assert again.rows(obs).tolist() == [1, 2, 3, 4]


def test_a_checker_is_given_places_in_states_that_were_met():
    states, drawn = bins(), {"policy": torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) * 10}
    states.rows({"policy": torch.tensor([[0.9, 9.0], [-0.9, 1.0]])}, add=True)
    assert set(states(states.denormalize(drawn)).tolist()) == {1, 2}
    assert bins().denormalize(drawn)["policy"].isfinite().all()
