"""What a check is, what it is given, and what is written down of it."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpumlp.backend import Backend, get_backend, register_backend
from gpumlp.executors import Executor

Array = Any
Values = dict[str, Any]

PRODUCT_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}
"""Relative error of one product, ||found - true|| / ||true||, by what it is computed in."""

PRECISIONS = ("float32", "tf32", "bf16")


class Failed(Exception):
    """A check whose numbers are not what they must be; `values` are what was found."""

    def __init__(self, message: str, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.values = dict(values or {})


class Skipped(Exception):
    """A check that cannot be made here; the message says why."""


@dataclass(frozen=True)
class Check:
    """One thing to find out.

    Attributes:
        name: of it, in its section.
        run: returns what was found; raises `Failed` or `Skipped`, and whatever else is an error.
        limit: seconds after which it hangs.
        measures: whether it measures, rather than tells right from wrong.
    """

    name: str
    run: Callable[[], Values]
    limit: float = 90.0
    measures: bool = False


@dataclass
class Context:
    """Where a section runs.

    Attributes:
        device: "gpu", or "host" for its stand-in.
        end: when it must have ended, by `time.monotonic`.
        left_out: names of checks that were made before.
        folder: for files, which whoever started this process removes; None for the usual one.
        called: set when what gets ready beside other sections must come to rest.
    """

    device: str
    end: float
    left_out: Collection[str] = ()
    folder: str | None = None
    called: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.is_host:
            from gpumlp.kernels.cuda.host_device import HostDevice

            register_backend(Backend("host", np, HostDevice()))
        self.backend = get_backend(self.device)
        assert self.backend.device is not None
        self.gpu = self.backend.device
        self.cpu = get_backend("cpu")

    @property
    def is_host(self) -> bool:
        """Whether this is the stand-in, on which sizes are small."""
        return self.device == "host"

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def either(self, gpu: Any, host: Any) -> Any:
        """Return the first on a GPU, the second on the stand-in."""
        return host if self.is_host else gpu

    def is_alive(self) -> bool:
        """Whether the device still works; after an illegal access nothing does, until the process ends."""
        try:
            x = self.backend.asarray(np.arange(4, dtype=np.float32))
            self.backend.synchronize()
            return bool((self.backend.to_host(x) == np.arange(4)).all())
        except Exception:
            return False


def perform(check: Check) -> dict[str, Any]:
    """Run a check; return what is written down of it, whatever happens."""
    start = time.perf_counter()
    record: dict[str, Any] = {"check": check.name, "status": "measured" if check.measures else "passed"}
    try:
        record["values"] = check.run()
    except Failed as failed:
        record |= {"status": "failed", "message": str(failed), "values": failed.values}
    except Skipped as skipped:
        record |= {"status": "skipped", "message": str(skipped)}
    except (Exception, KeyboardInterrupt) as error:
        record |= {
            "status": "error",
            "message": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    return record | {"seconds": round(time.perf_counter() - start, 3)}


def relative_error(found: Array, true: Array, floor: float = 1e-3) -> float:
    """Return ||found - true|| / ||true|| in float64, with a floor where the true value is 0; NaN stays NaN."""
    found, true = np.asarray(found, np.float64), np.asarray(true, np.float64)
    if found.shape != true.shape:
        raise Failed(f"found {found.shape}, expected {true.shape}")
    return float(np.linalg.norm(found - true) / max(float(np.linalg.norm(true)), floor))


@contextlib.contextmanager
def executor(kind: type[Executor]) -> Iterator[None]:
    """Let every network run on this executor, whatever its size, within the block."""
    import gpumlp.executors as executors

    usual = executors.choose_executor
    # what make_executor and the trainer ask
    executors.choose_executor = lambda *_, **__: (kind, f"{kind.name}, as asked")
    try:
        yield
    finally:
        executors.choose_executor = usual
