"""Reward models that wait on the host are on their device while they judge, one at a time, and untouched after."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from astrolabe.rewards import visiting
from astrolabe.rewards.base import Member, Scorer
from astrolabe.rewards.visiting import Guests
from astrolabe.types import Footage, Video


class Judge:
    """Notes where its weights are when it is asked."""

    def __init__(self, name: str, network: nn.Module, seen: list[tuple[str, set[str]]], everyone: list[nn.Module]):
        self.name, self.network, self.seen, self.everyone = name, network, seen, everyone

    @property
    def networks(self) -> Sequence[nn.Module]:
        return (self.network,)

    def __call__(self, video: Video, prompts: Sequence[str]) -> Tensor:
        here = {str(n) for n, one in enumerate(self.everyone) if next(one.parameters()).data_ptr() not in HOME}
        self.seen.append((self.name, here))
        return torch.zeros(len(video))


HOME: set[int] = set()


@pytest.fixture
def travels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that weights were carried to; the copies are elsewhere in the same memory."""
    found: list[str] = []

    def carried(tensor: Tensor, device: str) -> Tensor:
        found.append(device)
        return tensor.clone()

    monkeypatch.setattr(visiting, "carried", carried)
    return found


def footage() -> Footage:
    frames = torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8)
    return Footage(torch.tensor([0, 1]), frames, ("a", "b"), {"clip": 1.0, "video": 1.0, "mixed": 1.0})


def test_one_model_at_a_time_is_on_the_device_and_what_the_host_has_stays(travels: list[str]) -> None:
    networks: list[nn.Module] = [nn.Linear(2, 2), nn.BatchNorm1d(3)]
    HOME.clear()
    HOME.update(next(one.parameters()).data_ptr() for one in networks)
    before = [tensor.data_ptr() for one in networks for tensor in (*one.parameters(), *one.buffers())]
    seen: list[tuple[str, set[str]]] = []
    judges = [Judge(name, networks[at], seen, networks) for name, at in (("a", 0), ("b", 0), ("c", 1))]
    Scorer([Member(judge, device="cuda:7") for judge in judges], 2).see(footage())
    assert seen == [("a", {"0"}), ("b", {"0"}), ("c", {"1"})]
    assert travels == ["cuda:7"] * (2 + 5)  # a network that two rewards ask comes once
    assert [tensor.data_ptr() for one in networks for tensor in (*one.parameters(), *one.buffers())] == before


def test_models_leave_when_judging_fails(travels: list[str]) -> None:
    network = nn.Linear(2, 2)

    class Broken(Judge):
        def __call__(self, video: Video, prompts: Sequence[str]) -> Tensor:
            raise RuntimeError("broken")

    home = network.weight.data_ptr()
    scorer = Scorer([Member(Broken("a", network, [], []), device="cuda:7")], 2)
    with pytest.raises(RuntimeError, match="broken"):
        scorer.see(footage())
    assert network.weight.data_ptr() == home and travels


def test_what_has_no_device_stays(travels: list[str]) -> None:
    Scorer([Member(Judge("a", nn.Linear(2, 2), [], []))], 2).see(footage())
    assert not travels


def test_weights_are_the_same_numbers_while_they_visit() -> None:
    network, guests = nn.Linear(2, 2), Guests()
    expected = network.weight.clone()
    guests.bring([network], "cpu")
    assert torch.equal(network.weight, expected)
    guests.leave()
    assert torch.equal(network.weight, expected)
