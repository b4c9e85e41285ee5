"""Reads a pickle of arrays without running anything that it names.

A pickle is a program: loading one from the net with `pickle.load` may run any code. Here no global is ever
looked up. The few names that NumPy's arrays need are replaced by the stand-ins below, which check and keep
what they are given; any other name is refused. Not even NumPy's own `__setstate__` sees the file's bytes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyro_vsm.data.decode import foreign_content
from pyro_vsm.errors import UserError

_SMALL = 1 << 20  # bytes that are asked for without a look at what is left


def read_pickle(path: Path) -> Any:
    """Loads builtin containers, strings, numbers and plain numeric arrays, of Python 2 and 3.

    Args:
        path: the file, pickled with any protocol.

    Returns:
        The object; its arrays are `StoredArray`s, to be read with `numeric_array`.

    Raises:
        UserError: if the file is missing, empty, truncated, no pickle, or asks for anything else.
    """
    with reading(path), path.open("rb") as file:
        return _load(file, path)


def read_pickle_bytes(content: bytes, place: Path) -> Any:
    """As `read_pickle`, from bytes; `place` names where they come from, for messages."""
    with reading(place):
        return _load(io.BytesIO(content), place)


def _load(file: BinaryIO, place: Path) -> Any:
    problem = foreign_content(file.read(256))
    if problem:
        raise UserError(f"{place} {problem}")
    file.seek(0)
    return Unpickler(file, place).load()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a UserError that names `path`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): check its permissions and the disk") from error
    except Exception as error:  # a broken pickle can raise almost anything
        raise UserError(
            f"{path} is no pickle of arrays, or is cut short ({type(error).__name__}: {error}): download it again"
        ) from error


def numeric_array(value: Any) -> NDArray[Any] | None:
    """The array that `value` holds (a stored array, or a list of whole numbers); None if it holds none."""
    if isinstance(value, StoredArray):
        return value.array
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value):
        return np.array(value, dtype=np.int64)
    return None


class _StoredType:
    """Stands in for `numpy.dtype`: a plain number of fixed size, or refused."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else str(code)
        plain = code.lstrip("<>=|")
        if plain not in {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}:
            raise UserError(f"an array of type {code!r} is refused: only plain numbers are read")
        self.dtype = np.dtype(plain)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"unknown byte order {order!r}")
        if any(part is not None for part in state[2:5]):
            raise UserError("an array of records is refused: only plain numbers are read")
        self.dtype = self.dtype.newbyteorder(order)


class StoredArray:
    """Stands in for `numpy.ndarray`; `array` holds its content."""

    def __init__(self) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, stored_type, column_major, data = state
        self.array = _from_bytes(data, stored_type, shape, "F" if column_major else "C")


def _from_bytes(data: Any, stored_type: Any, shape: Any, order: str) -> NDArray[Any]:
    if not isinstance(stored_type, _StoredType):
        raise UserError("an array without a plain number type is refused")
    if isinstance(data, str):  # Python 2
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise UserError("an array of Python objects is refused: only plain numbers are read")
    shape = tuple(shape)
    if order not in ("C", "F") or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"array of shape {shape} and order {order!r}")
    flat = np.frombuffer(data, dtype=stored_type.dtype)
    return flat.reshape(shape, order="C" if order == "C" else "F")


def _reconstruct(*_: Any) -> StoredArray:
    return StoredArray()


def _frombuffer(data: Any, stored_type: Any, shape: Any, order: str, axes: Any = None) -> StoredArray:
    """Protocol 5; order "K" is an array whose axes were permuted in memory."""
    stored = StoredArray()
    stored.array = _from_bytes(data, stored_type, shape, "C" if order == "K" else order)
    if order == "K" and axes is not None:
        stored.array = stored.array.transpose(tuple(axes))
    return stored


def _scalar(stored_type: Any, data: Any) -> int | float | bool:
    value: int | float | bool = _from_bytes(data, stored_type, (), "C").item()
    return value


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise ValueError(f"unknown encoding {encoding!r}")
    return str.encode(text, encoding)


def _plain_dict(*arguments: Any) -> dict[Any, Any]:
    """Stands in for an ordered or default dictionary; its entries follow."""
    entries = arguments[-1] if arguments and isinstance(arguments[-1], list) else []
    return {check_key(key): value for key, value in entries}


def _plain_bytes(*arguments: Any) -> bytes:
    """Stands in for Python 2's string type, called with nothing or with text and its encoding."""
    return _encode(*arguments) if arguments else b""


def _never_called(*_: Any) -> Any:
    """Stands in for a name that pickles only pass along, such as `numpy.ndarray`."""
    raise ValueError("a type is called that only needs to be named")


class _StandIn:
    """A function to call and nothing else: a pickle cannot set its attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state is given to a function")


_STAND_INS = {
    ("numpy", "ndarray"): _StandIn(_never_called),
    ("numpy", "dtype"): _StandIn(_StoredType),
    ("_codecs", "encode"): _StandIn(_encode),
    ("collections", "OrderedDict"): _StandIn(_plain_dict),
    ("collections", "defaultdict"): _StandIn(_plain_dict),
    **{
        (module, name): _StandIn(stand_in)
        for module in ("builtins", "__builtin__")
        for name, stand_in in (("list", _never_called), ("bytes", _plain_bytes))
    },
    **{
        (f"numpy.{core}.{module}", name): _StandIn(stand_in)
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


def stand_in(place: Path, module: str, name: str) -> Any:
    """What takes the place of the global that a pickle at `place` names.

    Raises:
        UserError: if it is none of the few that arrays need.
    """
    found = _STAND_INS.get((module, name))
    if found is None:
        raise UserError(
            f"{place} asks to run {module}.{name}, which a pickle of images never needs; it was "
            "refused and nothing was run: get the file from a source you trust"
        )
    return found


class _Bounded:
    """A file that is never asked for more bytes than it has left, as room would be made for all of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        if size > _SMALL:
            here = self._file.tell()
            left = self._file.seek(0, 2) - here
            self._file.seek(here)
            if size > left:
                raise EOFError(f"{size} bytes should follow, but {left} do")
        return self._file.read(size)


class Unpickler(pickle._Unpickler):  # type: ignore[misc,name-defined,unused-ignore]
    """The standard library's unpickler in Python, which knows the stand-ins and nothing else.

    The one in C can be crashed by a few bytes, as it makes room for every object number that a file claims. And
    hashing a tuple nested a million times would crash any: only plain values may be keys.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined,unused-ignore]

    stack: list[Any]  # this and the following are the parent's
    metastack: list[list[Any]]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, file: BinaryIO, path: Path, encoding: str = "latin1") -> None:
        super().__init__(_Bounded(file), encoding=encoding)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        return stand_in(self._path, module, name)

    def get_extension(self, code: int) -> None:
        raise ValueError("an extension code is used, which no data set needs")

    def load_bytearray8(self) -> None:
        """The parent's makes room before it reads."""
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def check_key(key: Any) -> Any:
    """The key itself.

    Raises:
        ValueError: it is no plain value.
    """
    if key is not None and not isinstance(key, str | bytes | int | float):
        raise ValueError(f"a {type(key).__name__} is a key")
    return key


def _checking(opcode: bytes, keys: Callable[[list[Any]], list[Any]]) -> None:
    parent = pickle._Unpickler.dispatch[opcode[0]]  # type: ignore[attr-defined,unused-ignore]

    def load(self: Unpickler) -> None:
        for key in keys(self.stack):
            check_key(key)
        parent(self)  # type: ignore[arg-type,unused-ignore]

    Unpickler.dispatch[opcode[0]] = load


_checking(pickle.SETITEM, lambda stack: stack[-2:-1])
for _opcode in (pickle.SETITEMS, pickle.DICT):  # the stack begins at the mark
    _checking(_opcode, lambda stack: stack[::2])
for _opcode in (pickle.ADDITEMS, pickle.FROZENSET):
    _checking(_opcode, lambda stack: stack)
