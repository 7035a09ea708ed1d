"""What a run says of itself: one JSON line a step, and TensorBoard if asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import naming, write_whole

if TYPE_CHECKING:
    from torch import Tensor

# JSON has no word for these; as text they survive strict readers, a browser's included.
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsLog:
    """``metrics.jsonl``: one line per step, ``{"step": 3, "reward": 0.5}``, on the disk as soon as it is written."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(read_metrics(self.path))  # a killed run left half a line: the next must not be glued to it

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **metrics}))

    def truncate_after(self, step: int) -> None:
        """Drop the lines of steps later than ``step``, which the checkpoint to resume from knows nothing of."""
        if self.path.exists():
            self._rewrite([record for record in read_metrics(self.path) if record["step"] <= step])

    def _rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        write_whole(self.path, "".join(map(_line, records)))


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, in order. A last line that is half written, as a live or killed run leaves
    it, is left out; UserError for a missing file and for any other line that is no record."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number}: not a line of JSON ({error}); repair or delete the line") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f'{path}:{number}: expected {{"step": <whole number>, ...}}; repair or delete the line')
        records.append({name: _from_json(value) for name, value in record.items()})
    return records


def summary_writer() -> Any:
    """TensorBoard's writer, a class; UserError telling how to install it when it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed: pip install 'astrolabe-rl[tensorboard]'") from error
    return SummaryWriter


class TensorBoardLog:
    """The same metrics for TensorBoard, and videos; UserError as in ``summary_writer``."""

    def __init__(self, folder: Path | str, start: int = 0) -> None:
        """``start`` is the first step to come: events of it and later, of a run that was cut off, are purged."""
        self._writer: Any = summary_writer()(str(folder), purge_step=start)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers only: TensorBoard's scalars hold nothing else."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, name: str, videos: Tensor, fps: int, said: str = "") -> None:
        """Videos [n, t, 3, y, x] (uint8) side by side, with a text. TensorBoard plays a GIF where an image is meant;
        its own ``add_video`` makes one too, with a library that is not needed otherwise."""
        from torch.utils.tensorboard.summary import Summary

        from astrolabe.runtime.video import gif_bytes, side_by_side

        sheet = side_by_side(videos)
        picture = Summary.Image(
            height=sheet.shape[2], width=sheet.shape[3], colorspace=3, encoded_image_string=gif_bytes(sheet, fps)
        )
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), step)
        if said:
            self._writer.add_text(name, said, step)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def _line(record: Mapping[str, Any]) -> str:
    plain = {name: _to_json(value) for name, value in record.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value
