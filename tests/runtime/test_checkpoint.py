from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor, nn

from astrolabe.runtime import checkpoint
from astrolabe.runtime.checkpoint import (
    CheckpointStore,
    fingerprint,
    flatten_optimizer,
    load_tensors,
    restore_optimizer,
    save_tensors,
)
from astrolabe.runtime.errors import UserError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def some_tensors() -> dict[str, Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    shaped = {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 3), "turned": base.T, "row": base[1], "base": base}
    return shaped | {str(dtype): torch.ones(3).to(dtype) for dtype in DTYPES}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_tensors_come_back_bit_for_bit_with_their_metadata(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, some_tensors(), {"who": "æøå"})
    tensors, metadata = load_tensors(path)
    assert same(tensors, some_tensors()) and metadata == {"who": "æøå"}
    assert fingerprint(tensors) == fingerprint(some_tensors())
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_save_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {})

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_flush", fail)
    with pytest.raises(OSError, match="no space"):
        save_tensors(path, {"a": torch.zeros(2)}, {})
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


@settings(max_examples=30)
@given(cut=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    save_tensors(path, {"a": torch.ones(50)}, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_tensors(path)


def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"PK\x03\x04 a pickle in a zip, say" * 10)
    for wrong in (path, tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=str(wrong)):
            load_tensors(wrong)


def test_the_fingerprint_tells_names_types_shapes_and_values_apart():
    one = {"a": torch.zeros(2, 3)}
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3, dtype=torch.int32)}]
    others += [{"a": torch.zeros(2, 3) + 1e-30}, {"a": -torch.zeros(2, 3)}, one | {"b": torch.empty(0)}, {}]
    assert len({fingerprint(each) for each in [one, *others]}) == 8
    two = {"a": torch.ones(1), "b": torch.zeros(1)}
    assert fingerprint(two) == fingerprint(dict(reversed(two.items())))


def test_the_store_gives_back_the_latest_and_keeps_the_newest(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    for step in (5, 10, 15):
        store.save(step, {"a": torch.full((2,), step)}, {"best": step / 10})
    assert store.steps() == [10, 15] and store.latest() == 15
    tensors, state = store.load(15)
    assert tensors["a"].tolist() == [15, 15] and state == {"best": 1.5}
    assert sorted(p.name for p in (store.folder / "step_000015").iterdir()) == ["state.json", "state.safetensors"]


def test_saving_a_step_again_replaces_it_and_drops_the_future_it_gave_up(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=3)
    for step, value in ((1, 1), (2, 2), (3, 3), (2, 9)):
        store.save(step, {"a": torch.tensor(value)}, {})
    assert store.steps() == [1, 2] and store.load(2)[0]["a"].item() == 9


@pytest.mark.parametrize("moment", ["save_tensors", "_flush", "os.replace"])
def test_a_save_cut_short_leaves_the_checkpoint_before_as_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    store = CheckpointStore(tmp_path)
    store.save(1, {"a": torch.ones(1)}, {})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os if moment == "os.replace" else checkpoint, moment.removeprefix("os."), killed)
        store.save(2, {"a": torch.zeros(1)}, {})
    assert store.latest() == 1 and store.load(1)[0]["a"].item() == 1
    store.save(3, {"a": torch.zeros(1)}, {})
    assert store.steps() == [1, 3]
    assert sorted(entry.name for entry in store.folder.iterdir()) == ["step_000001", "step_000003"]


def test_deleting_cut_short_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"a": torch.ones(1)}, {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        store.save(2, {"a": torch.ones(1)}, {})
    assert store.steps() == [2]


def test_a_checkpoint_that_is_absent_or_altered_is_refused(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    folder = store.save(1, {"a": torch.ones(1)}, {})
    with pytest.raises(UserError, match="no checkpoint of step 7; there are: 1"):
        store.load(7)
    save_tensors(folder / "state.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(UserError, match="not the ones its record names"):
        store.load(1)
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match="not a whole checkpoint record; remove the folder"):
        store.load(1)


def trained(steps: int, amsgrad: bool = False) -> tuple[nn.Sequential, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)).to(torch.float64)
    # Two groups, in another order than the names: the state must follow the names, not the places.
    groups: Any = [{"params": [model[1].weight, model[0].bias]}, {"params": [model[0].weight, model[2].weight]}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, amsgrad=amsgrad)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model: nn.Sequential, optimizer: torch.optim.AdamW, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        # The third layer takes no part, so that one parameter stays without state.
        model[1](model[0](torch.full((1, 3), 1.0 + step, dtype=torch.float64))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_restored_optimizer_goes_on_exactly(tmp_path: Path, amsgrad: bool):
    model, optimizer = trained(3, amsgrad)
    save_tensors(tmp_path / "o", flatten_optimizer(optimizer, dict(model.named_parameters())), {})
    again, restored = trained(0, amsgrad)
    again.load_state_dict(model.state_dict())
    restore_optimizer(restored, dict(again.named_parameters()), load_tensors(tmp_path / "o")[0])
    for each in ((model, optimizer), (again, restored)):
        advance(*each, steps=2)
    assert same(model.state_dict(), again.state_dict())
    ours, theirs = (
        flatten_optimizer(o, dict(m.named_parameters())) for m, o in ((model, optimizer), (again, restored))
    )
    assert same(ours, theirs) and ours["0.weight/step"].item() == 5 and "2.weight/fresh" in ours


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda flat: flat.pop("2.weight/fresh"), "other parameters"),
        (lambda flat: flat.update({"extra/step": torch.tensor(1.0)}), "other parameters"),
        (lambda flat: flat.pop("0.weight/exp_avg"), "expected step, exp_avg and exp_avg_sq"),
        (lambda flat: flat.update({"0.weight/exp_avg": torch.zeros(1)}), "has shape"),
    ],
)
def test_optimizer_state_that_does_not_fit_is_refused(spoil: Any, said: str):
    model, optimizer = trained(1)
    names = dict(model.named_parameters())
    flat = flatten_optimizer(optimizer, names)
    spoil(flat)
    with pytest.raises(UserError, match=said):
        restore_optimizer(optimizer, names, flat)


def test_a_nameless_parameter_is_an_error_not_a_gap():
    model, optimizer = trained(1)
    with pytest.raises(ValueError, match="4 parameters are optimized, but 1 of them have a name"):
        flatten_optimizer(optimizer, {"0.weight": dict(model.named_parameters())["0.weight"]})


def test_a_record_of_another_shape_is_refused_and_names_the_way_out(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"a": torch.ones(1)}, {})
    folder = store.save(2, {"a": torch.ones(1)}, {})
    for text in ("{}", "[]", '{"fingerprint": 1}'):
        (folder / "state.json").write_text(text)
        with pytest.raises(UserError, match="step_000002 to go on from step 1"):
            store.load(2)


def test_a_hidden_file_of_somebody_else_is_no_leftover(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"a": torch.ones(1)}, {})
    (store.folder / ".DS_Store").write_text("x")
    store.save(2, {"a": torch.ones(1)}, {})
    assert (store.folder / ".DS_Store").exists() and store.steps() == [1, 2]


def test_a_disk_that_is_full_is_a_sentence_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"x": torch.ones(2)}, {})
    before = path.read_bytes()

    def no_room(*args: Any, **options: Any) -> None:
        raise SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", no_room)
    with pytest.raises(UserError, match=r"state\.safetensors: cannot be written \(I/O error: no space"):
        save_tensors(path, {"x": torch.zeros(2)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
