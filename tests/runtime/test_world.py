from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.runtime.world import ALONE, World, packed, unpacked

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


class Rope:
    """What ties the worlds of several threads together (``world.Link``)."""

    def __init__(self, size: int, rank: int, knots: list[queue.Queue[bytes]], barrier: threading.Barrier):
        self.size, self.rank, self.knots, self.barrier = size, rank, knots, barrier

    def gather(self, own: bytes) -> list[bytes]:
        self.knots[self.rank].put(own)
        self.barrier.wait()
        found = [knot.queue[0] for knot in self.knots]
        self.barrier.wait()
        self.knots[self.rank].get()
        return found

    def first(self, own: bytes) -> bytes:
        return self.gather(own)[0]

    def check(self) -> None:
        """Threads do not end before their time."""

    def at(self, place: str) -> None:
        """See ``check``."""


def everywhere(size: int, program: Callable[[World], Any]) -> list[Any]:
    """What a program gives in every process of a world."""
    if size == 1:
        return [program(ALONE)]
    knots: list[queue.Queue[bytes]] = [queue.Queue() for _ in range(size)]
    barrier, found = threading.Barrier(size, timeout=10), [None] * size

    def run(rank: int) -> None:
        found[rank] = program(World(rank, size, Rope(size, rank, knots, barrier)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@given(st.integers(1, 4), st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_every_piece_is_done_once_and_everybody_gets_all_in_their_order(size: int, costs: list[float]):
    done: list[int] = []

    def square(piece: int) -> int:
        done.append(piece)
        return piece**2

    def program(world: World) -> list[int]:
        return list(world.shared(range(len(costs)), square, costs))

    found = everywhere(size, program)
    assert sorted(done) == list(range(len(costs)))
    assert found == [[piece**2 for piece in range(len(costs))]] * size


@given(st.integers(1, 5), st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_nobody_has_more_work_than_the_least_busy_and_one_piece(size: int, costs: list[float]):
    owners = World(0, size, None if size == 1 else Rope(size, 0, [], threading.Barrier(1))).owners(costs)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(size)]
    assert max(loads) <= min(loads) + max(costs) + 1e-9


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_gathered_has_the_order_of_the_ranks_and_others_leave_out_the_own(size: int):
    def program(world: World) -> Any:
        return world.gather(world.rank), world.others(lambda: world.rank), world.first(10 * world.rank + 7), world.leads

    for rank, (gathered, others, first, leads) in enumerate(everywhere(size, program)):
        assert gathered == list(range(size))
        assert others == [other for other in range(size) if other != rank]
        assert first == 7 and leads == (rank == 0)


def test_alone_work_is_done_one_piece_at_a_time_and_nothing_is_made_for_others():
    seen: list[int] = []
    assert next(ALONE.shared([1, 2, 3], seen.append)) is None and seen == [1]
    assert ALONE.others(lambda: pytest.fail("made for nobody")) == []
    value = torch.zeros(3, requires_grad=True)
    assert ALONE.gather(value)[0] is value and ALONE.first(value) is value


@given(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES), st.integers(0, 99))
def test_tensors_travel_to_the_bit_and_without_what_lies_behind_a_view(shape: list[int], dtype: Any, seed: int):
    whole = (100 * torch.randn(50, *shape, generator=torch.Generator().manual_seed(seed))).to(dtype)
    content = packed({"view": whole[3], "again": [whole[4], "text", 0.1]})
    found = unpacked(content)
    for made, sent in ((found["view"], whole[3]), (found["again"][0], whole[4])):
        assert made.dtype == dtype and made.shape == sent.shape and torch.equal(made, sent)
    assert len(content) < 4 * whole[3].numel() * whole.element_size() + 1500
    odd = torch.tensor([torch.nan, -0.0, torch.inf])
    assert unpacked(packed(odd)).numpy().tobytes() == odd.numpy().tobytes()


def test_a_rank_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="rank 0 of 2"):
        World(0, 2)
