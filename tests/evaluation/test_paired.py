"""Base against aligned: what would be refused when all has been measured is refused before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from astrolabe.evaluation import paired
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.runs.folder import ADAPTER, RunFolder
from astrolabe.runs.history import Origin
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import claimed


def test_a_run_that_somebody_works_in_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(shapes_tiny(), Origin())
    save_tensors(run.path / ADAPTER, {"w": torch.zeros(1)}, {})
    monkeypatch.setattr(paired, "compared", lambda *_: pytest.fail("it was measured"))
    with claimed(run.path), pytest.raises(UserError, match="another process is working"):
        paired.evaluate(run)
