"""What an interrupted part leaves behind: the state of its training, from which the next run of the part goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import load_tensors, save_tensors
from ..run import Checkpoints, Opening

if TYPE_CHECKING:
    from ..experiment import Experiment


class Keeper:
    """Keeps trainings that go one after the other, and the time that their part took.

    A training writes its state every half minute and when it is interrupted; one with the same config and data
    goes on there.

    Args:
        folder: for the states; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._earlier = (0.0, 0.0)
        self._start = (time.perf_counter(), time.process_time())

    def spent(self) -> tuple[float, float]:
        """Return the seconds and CPU seconds since this object was made, and of the runs that it goes on from."""
        now = (time.perf_counter(), time.process_time())
        seconds, cpu_seconds = (e + n - s for e, n, s in zip(self._earlier, now, self._start, strict=True))
        return seconds, cpu_seconds

    def attach(self, experiment: Experiment) -> None:
        """Let a training go on where one like it was interrupted, and keep its state from here on."""
        trainer = experiment.trainer
        mark = f"{_hash(experiment)}-{experiment.fingerprint()}"
        path = self.folder / f"{hashlib.sha256(mark.encode()).hexdigest()[:16]}.safetensors"

        def save() -> None:
            arrays, values = trainer.state_dict()
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors(path, arrays, {"kind": "checkpoint", "state": values, "spent": self.spent()})

        trainer.callbacks = [Opening(lambda: None, save), *trainer.callbacks, Checkpoints(save)]
        with suppress(ValueError):  # none, or a damaged one: the training begins anew
            arrays, metadata = load_tensors(path)
            trainer.load_state_dict(arrays, metadata["state"])
            seconds, cpu_seconds = metadata["spent"]
            self._earlier = (self._earlier[0] + seconds, self._earlier[1] + cpu_seconds)

    def clear(self) -> None:
        """Remove all that was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other parts keep something beside it
            self.folder.parent.rmdir()


def _hash(experiment: Experiment) -> str:
    said = json.dumps(experiment.config, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()
