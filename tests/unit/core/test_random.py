"""Named streams: one object a name, independent of each other, exact after a reload."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from habilis.core.random import RandomStreams, derive_seed, generator_state, set_generator_state


def test_a_stream_is_one_object_and_each_name_its_own():
    streams = RandomStreams(3)
    assert streams.torch("a") is streams.torch("a")
    assert streams.numpy("a") is streams.numpy("a")
    assert streams.torch("a").initial_seed() != streams.torch("b").initial_seed()
    draws = {name: tuple(RandomStreams(3).numpy(name).integers(1000, size=5)) for name in "abcd"}
    assert len(set(draws.values())) == 4


def test_seeds_are_stable_for_ever_and_fit_every_generator():
    assert derive_seed(0, "init") == derive_seed(0, "init") != derive_seed(1, "init")
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in (0, 1, 10**12, -1))


def test_state_goes_on_where_it_was():
    one = RandomStreams(7)
    torch.rand(3, generator=one.torch("explore"))
    one.numpy("replay").random(5)
    state = one.state_dict()
    two = RandomStreams(0)
    held = two.torch("explore")
    two.load_state_dict(state)
    assert two.seed == 7
    assert torch.equal(torch.rand(4, generator=held), torch.rand(4, generator=one.torch("explore")))
    assert two.numpy("replay").random() == one.numpy("replay").random()
    # a stream first used after the reload is the one that the first run would have made
    assert two.torch("late").initial_seed() == one.torch("late").initial_seed()


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64, np.random.Philox, np.random.MT19937])
def test_numpy_generator_state_is_exact(kind):
    one = np.random.Generator(kind(1))
    one.integers(10, size=3, dtype=np.uint32)  # leaves half a word behind
    state = generator_state(one)
    two = np.random.Generator(kind(2))
    set_generator_state(two, state)
    assert (
        one.integers(10**6, size=9, dtype=np.uint32).tolist() == two.integers(10**6, size=9, dtype=np.uint32).tolist()
    )


def test_the_state_of_the_default_generator_is_json():
    state = json.loads(json.dumps(generator_state(np.random.default_rng(1))))
    two = np.random.default_rng(2)
    set_generator_state(two, state)
    assert two.random() == np.random.default_rng(1).random()
