"""One session of a run: what it continues, and how it ends, for the user and for the history."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

from astrolabe.experiment import TrainConfig
from astrolabe.rl.update import learning_rate
from astrolabe.runs.folder import ADAPTER, RunFolder
from astrolabe.runs.history import record
from astrolabe.runtime.checkpoint import own_metadata
from astrolabe.runtime.config import Change
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.interrupts import Interrupted

MEANS = {"rounding": "the same results, to rounding", "nothing": "the same results"}


def announce(folder: RunFolder, found: Sequence[Change], cfg: TrainConfig) -> None:
    """Say on the standard error what changes when a run goes on."""
    for change in found:
        if change.name != "steps":
            print(f"astrolabe: {folder.path} goes on with {change} ({MEANS[change.affects]})", file=sys.stderr)
        elif cfg.optimizer.schedule != "constant":
            done, (before, now) = folder.done, (int(change.old), int(change.new))
            rates = [learning_rate(cfg.optimizer, min(done, steps), steps) for steps in (before, now)]
            print(
                f"astrolabe: with optimizer.schedule={cfg.optimizer.schedule} the rate depends on the number of steps: "
                f"from step {done + 1} on it is that of a run of {now} ({rates[0]:.3g} -> {rates[1]:.3g}), and the "
                f"result is not that of {now} steps from the start",
                file=sys.stderr,
            )


@contextmanager
def chronicled(folder: RunFolder) -> Iterator[None]:
    """Write into the history how the session ends, if it does not come to the run's end.

    KeyboardInterrupt, which loses the step at work, leaves with a note of what is on the disk.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        record_quietly(folder, "interrupted", "")
        done = folder.done
        stop.add_note(f"the same command goes on after step {done}" if done else "the same command begins again")
        raise
    except Interrupted:
        record_quietly(folder, "interrupted", "")
        raise
    except UserError as error:
        record_quietly(folder, "failed", str(error))
        raise
    except Exception as error:  # it is raised again
        record_quietly(folder, "failed", f"{type(error).__name__}: {error}")
        raise


def record_quietly(folder: RunFolder, what: Literal["interrupted", "failed"], why: str) -> None:
    """The reason of the end must not be hidden by a disk that is full."""
    with suppress(OSError, UserError):
        record(folder.path, what, folder.done, why=why)


def ending(folder: RunFolder, already: bool = False) -> str:
    """The last line of a training that came to its end."""
    steps, begun = folder.written().steps, folder.begun.get("steps")
    if guard := folder.stopped_by():
        step = own_metadata(folder.path / ADAPTER).get("step", "")
        whose = f"; its adapter is that of step {step}" if step and step != str(folder.done) else ""
        what = f"stopped by the guard of {guard} at step {folder.done} of {steps}{whose}"
    else:
        what = f"finished, {steps} step{'s' * (steps > 1)}"
        what += f" (extended from {begun})" if begun is not None and begun < steps else ""
    return f"already done: {folder.path} ({what})" if already else f"{what}: {folder.path}"
