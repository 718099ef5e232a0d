"""Which errors are messages to the user."""

from __future__ import annotations

import opcode
from collections.abc import Sequence


def is_meant(error: BaseException, packages: Sequence[str] = ("gpumlp", "kernels")) -> bool:
    """Whether a ``raise`` in the code of these packages made an error: a message to the user, and not a bug."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    raised = frame.f_code.co_code[trace.tb_lasti] == opcode.opmap["RAISE_VARARGS"]
    return raised and str(frame.f_globals.get("__name__", "")).split(".")[0] in packages
