from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.runtime.random import rng_for

CASES = st.tuples(st.integers(0, 2**63), st.integers(0, 10**6), st.sampled_from(["rollout", "update", "eval"]))


@given(CASES, CASES)
def test_equal_arguments_give_equal_numbers_and_others_do_not(a: tuple[int, int, str], b: tuple[int, int, str]):
    first, second = (torch.rand(4, generator=rng_for(*case)) for case in (a, b))
    assert torch.equal(first, torch.rand(4, generator=rng_for(*a)))
    assert torch.equal(first, second) == (a == b)


def test_the_numbers_do_not_depend_on_what_ran_before():
    torch.manual_seed(0)
    first = torch.rand(4, generator=rng_for(1, 2, "rollout"))
    torch.manual_seed(1)
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=rng_for(1, 2, "rollout")))


def test_the_stream_is_the_same_in_every_version():
    assert rng_for(0, 0, "rollout").initial_seed() == 3508645665194680335
