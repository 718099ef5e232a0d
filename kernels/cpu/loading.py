"""Loading machine code: from an object file into memory, without Numba and, on Linux, without LLVM.

LLVM's library alone takes 45 MB of a process. What is to do is little: Numba writes code of the large model, in
which every reference is an absolute address of 64 bits.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_KEPT: list[Any] = []
"""The memory of all code that was loaded: it may be called as long as the process lives."""


class UnsupportedObjectError(Exception):
    """An object file with something in it that this loader does not know."""


def load(code: bytes, symbol: str) -> int:
    """Return the address of a function of an object file, which stays in memory from now on.

    Args:
        code: the object file, for this processor and system.
        symbol: name of the function.

    Raises:
        OSError: the system gives no memory for machine code.
    """
    if code[:4] == b"\x7fELF" and sys.platform == "linux" and platform.machine() == "x86_64":
        try:
            return _load_elf(code, symbol)
        except UnsupportedObjectError:  # another Numba may write what is not expected here
            pass
    return _load_with_llvm(code, symbol)


# ELF for x86-64: the structures and numbers are those of elf.h, and of the System V ABI, AMD64 supplement, chapter 4.

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
SYMTAB, RELA, NOBITS = 2, 4, 8
WRITE, ALLOC, EXECINSTR = 1, 2, 4
UNDEFINED, ABSOLUTE, COMMON = 0, 0xFFF1, 0xFFF2
R_64, R_PC32, R_PLT32, R_PC64 = 1, 2, 4, 24
PAGE = mmap.PAGESIZE
PROT_READ_EXEC = 0x1 | 0x4


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def _aligned(n: int, to: int) -> int:
    return -(-n // to) * to


def _text(code: bytes, offset: int) -> str:
    return code[offset : code.index(b"\0", offset)].decode()


def _load_elf(code: bytes, symbol: str) -> int:
    header = _HEADER.unpack_from(code)
    sections = [_Section(*_SECTION.unpack_from(code, header[6] + i * header[11])) for i in range(header[12])]
    names = sections[header[13]].offset
    wanted = [
        i
        for i, s in enumerate(sections)
        if s.flags & ALLOC and s.size and not _text(code, names + s.name).startswith(".eh_frame")
    ]
    # what may be written lies behind, on pages of its own
    wanted.sort(key=lambda i: bool(sections[i].flags & WRITE))
    places: dict[int, int] = {}
    end, fixed = 0, None
    for i in wanted:
        if sections[i].flags & WRITE and fixed is None:
            fixed = end = _aligned(end, PAGE)
        places[i] = _aligned(end, max(sections[i].alignment, 1))
        end = places[i] + sections[i].size
    symbols = _symbols(code, sections)
    common = _aligned(end, PAGE) if fixed is None else _aligned(end, 64)
    fixed = common if fixed is None else fixed
    used = {where >> 32 for _, where, _ in _relocations(code, sections, places)}
    shared = {i: k for k, i in enumerate(i for i in sorted(used) if symbols[i][1] == COMMON)}
    memory = mmap.mmap(
        -1, _aligned(common + 64 * len(shared) + 1, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for i in wanted:
        section = sections[i]
        if section.kind != NOBITS:
            memory[places[i] : places[i] + section.size] = code[
                section.offset : section.offset + section.size
            ]

    def address_of(index: int) -> int:
        name, section, value, size = symbols[index]
        if section in places:
            return base + places[section] + value
        if section == COMMON and size <= 64:
            return base + common + 64 * shared[index]
        if section == UNDEFINED:
            return external(name)
        raise UnsupportedObjectError(f"symbol {name} in section {section}")

    for place, info, addend in _relocations(code, sections, places):
        _relocate(memory, base, place, info & 0xFFFFFFFF, address_of(info >> 32) + addend)
    entry = next((i for i, s in enumerate(symbols) if s[0] == symbol), None)
    if entry is None:
        raise UnsupportedObjectError(f"no symbol {symbol}")
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(base), ctypes.c_size_t(fixed), PROT_READ_EXEC):
        raise OSError(
            ctypes.get_errno(), "the system lets no memory be executed, which compiled kernels need"
        )
    _KEPT.append(memory)
    return address_of(entry)


def _symbols(code: bytes, sections: list[_Section]) -> list[tuple[str, int, int, int]]:
    """Name, section, value and size of each symbol."""
    (table,) = (s for s in sections if s.kind == SYMTAB)
    strings = sections[table.link].offset
    found = []
    for offset in range(table.offset, table.offset + table.size, _SYMBOL.size):
        name, _, _, section, value, size = _SYMBOL.unpack_from(code, offset)
        found.append((_text(code, strings + name), section, value, size))
    return found


def _relocations(code: bytes, sections: list[_Section], places: dict[int, int]) -> list[tuple[int, int, int]]:
    """Place in memory, symbol and kind, and addend of each reference from a section that is loaded."""
    found = []
    for table in sections:
        if table.kind == RELA and table.info in places:
            for offset in range(table.offset, table.offset + table.size, _RELOCATION.size):
                where, info, addend = _RELOCATION.unpack_from(code, offset)
                found.append((places[table.info] + where, info, addend))
    return found


def _relocate(memory: mmap.mmap, base: int, place: int, kind: int, target: int) -> None:
    relative = target - (base + place)
    if kind == R_64:
        struct.pack_into("<Q", memory, place, target)
    elif kind == R_PC64:
        struct.pack_into("<q", memory, place, relative)
    elif kind in (R_PC32, R_PLT32) and -(2**31) <= relative < 2**31:
        struct.pack_into("<i", memory, place, relative)
    else:
        raise UnsupportedObjectError(f"relocation of kind {kind}")


def external(name: str) -> int:
    """Return the address of a function of the C library or its mathematics.

    Numba's own reference counting is among what kernels name: arrays made from addresses own nothing, and so it is
    never called. It is `abort` here.

    Raises:
        UnsupportedObjectError: the process has no function of that name.
    """
    if name.startswith("NRT_"):
        name = "abort"
    for library in (None, "libm.so.6"):
        try:
            function = getattr(ctypes.CDLL(library), name)
        except (OSError, AttributeError):
            continue
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        return address
    raise UnsupportedObjectError(f"unknown function {name}")


def _load_with_llvm(code: bytes, symbol: str) -> int:
    """The same for any system that LLVM knows."""
    from llvmlite import binding
    from numba.core.registry import cpu_target

    cpu_target.target_context.codegen()  # makes LLVM ready, and tells it of Numba's own functions
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _KEPT.append(engine)
    return int(engine.get_function_address(symbol))


Function = Callable[[int, int, int], None]

_signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def function_at(address: int) -> Function:
    """Return a compiled function as one of Python: three integers in, and the interpreter's lock let go meanwhile."""
    return _signature(address)
