"""Reads a pickled list of arrays piece by piece, in memory that does not grow with the file.

The interpreter of the standard library keeps every object that a pickle numbers until the end, which for
tieredImageNet is the whole file. This one forgets arrays as soon as they are handed on. It runs nothing that the file
names, as in `safe_pickle`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from pyro_vsm.data.decode import foreign_content
from pyro_vsm.data.safe_pickle import StoredArray, Unpickler, reading
from pyro_vsm.errors import UserError

_SMALL = 256  # bytes; shorter strings may be referred to later (names of types, say) and are kept

Take = Callable[[list[Any]], None]
"""Receives the next elements: `StoredArray`s, or bytes."""


def stream_list(path: Path, take: Take) -> None:
    """Hands on the elements of a pickled list, some at a time (those pickled together, 1000 at most as a rule).

    Args:
        path: a pickle, protocol 1 to 5, whose outermost object is a list.
        take: called with the elements in their order.

    Raises:
        UserError: if the file is missing, truncated, no pickled list, or asks for anything but arrays and strings.
    """
    with reading(path), path.open("rb", buffering=1 << 20) as file:
        problem = foreign_content(file.read(256))
        if problem:
            raise UserError(f"{path} {problem}")
        file.seek(0)
        unpickler = _Streaming(file, path, take)
        if unpickler.load() is not unpickler.sink:
            raise UserError(f"{path} holds no list of images, but something else: download it again")


class _Forgotten:
    """Stands where an array was numbered."""


class _Sink:
    """The outermost list, which keeps nothing."""

    def __init__(self, take: Take, path: Path) -> None:
        self._take, self._path = take, path

    def extend(self, items: list[Any]) -> None:
        for item in items:
            if not isinstance(item, StoredArray | bytes | bytearray):
                what = "the same array twice" if isinstance(item, _Forgotten) else f"a {type(item).__name__}"
                raise UserError(f"{self._path} lists {what} where an encoded image belongs: download it again")
        self._take(items)

    def append(self, item: Any) -> None:
        self.extend([item])

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state is given to a list")


class _Streaming(Unpickler):
    """The safe unpickler with a memory of its own."""

    dispatch: ClassVar[dict[int, Any]] = dict(Unpickler.dispatch)

    def __init__(self, file: BinaryIO, path: Path, take: Take) -> None:
        super().__init__(file, path, encoding="bytes")
        self._take = take
        self.sink: _Sink | None = None

    def load_empty_list(self) -> None:
        if self.sink is None:
            self.sink = _Sink(self._take, self._path)
            self.append(self.sink)
        else:
            self.append([])

    def _number(self, i: int) -> None:
        value = self.stack[-1]
        if _large(value) or (isinstance(value, tuple) and any(_large(part) for part in value)):
            value = _Forgotten()
        self.memo[i] = value

    def load_binput(self) -> None:
        self._number(self.read(1)[0])

    def load_long_binput(self) -> None:
        self._number(int.from_bytes(self.read(4), "little"))

    def load_memoize(self) -> None:
        self._number(len(self.memo))

    dispatch[pickle.EMPTY_LIST[0]] = load_empty_list
    dispatch[pickle.BINPUT[0]] = load_binput
    dispatch[pickle.LONG_BINPUT[0]] = load_long_binput
    dispatch[pickle.MEMOIZE[0]] = load_memoize


def _large(value: Any) -> bool:
    return isinstance(value, StoredArray | bytearray) or (isinstance(value, bytes) and len(value) > _SMALL)
