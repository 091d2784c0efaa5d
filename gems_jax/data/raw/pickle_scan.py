"""Looks through what a pickle file says it will build, before it is built, and refuses what would blow up."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from pathlib import Path

# Tuples that a file refers to again: by a few references no nested tuple has more parts than can be hashed.
MAX_SHARED = 16
# Bits of a whole number, 64 bytes: no id or time is longer.
MAX_BITS = 512
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
# The values that they put on the stack are no tuples: their hash is cheap, or they have none.
_SIMPLE = {
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "DICT", "LIST", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "GLOBAL",
    "STACK_GLOBAL", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
}  # fmt: skip
_LONG = {"INT", "LONG", "LONG1", "LONG4"}
# Runs of small whole numbers, floats, None and truth values, of which lists of ids consist: nothing is wrong with them,
# and one by one they take most of the time.
_RUN = re.compile(rb"(?:K.|M.{2}|J.{4}|G.{8}|[N\x88\x89])++", re.DOTALL)
_REFUSED = {"DUP": "it copies from its stack", "BYTEARRAY8": "it has an array of bytes", "EXT1": "it has extensions",
            "EXT2": "it has extensions", "EXT4": "it has extensions"}  # fmt: skip


def check_operations(path: Path) -> None:
    """Reads the operations of a pickle file without running them.

    A tuple may hold another several times, and that one a third: 40 of them have 2^40 parts when they are hashed. This
    takes references to earlier tuples, of which there may be `MAX_SHARED`.

    Raises:
      pickle.UnpicklingError: the file shares tuples, numbers its objects by leaps, or announces more than it has.
      ValueError: it is no pickle, or cut off.
    """
    data = path.read_bytes()
    if not data:
        raise pickle.UnpicklingError("it is empty")
    simple: set[int] = set()
    kept = shared = 0
    before = ""
    stream = io.BytesIO(data)
    for operation, argument, position in pickletools.genops(stream):
        name = operation.name
        run = _RUN.match(data, stream.tell())
        if run:
            stream.seek(run.end())
        if name in _GETS:
            shared += int(argument or 0) not in simple
            if shared > MAX_SHARED:
                raise pickle.UnpicklingError(f"it refers to earlier tuples or sets more than {MAX_SHARED} times")
        elif name in _PUTS:
            number = kept if name == "MEMOIZE" else int(argument or 0)
            kept += 1
            # Python numbers them one after the other, from 0 or 1.
            if not 0 <= number <= kept:
                raise pickle.UnpicklingError(f"it numbers its object {kept:,} as {number:,}")
            (simple.add if before in _SIMPLE else simple.discard)(number)
        elif name in _REFUSED:
            raise pickle.UnpicklingError(_REFUSED[name])
        elif name == "FRAME":
            if int(argument or 0) > len(data) - (position or 0):
                raise pickle.UnpicklingError("it is cut off")
            # It may stand between a long text and its number.
            continue
        elif name in _LONG and int(argument or 0).bit_length() > MAX_BITS:
            raise pickle.UnpicklingError(f"it has a whole number of {int(argument or 0).bit_length():,} bits")
        before = "BININT" if run else name
