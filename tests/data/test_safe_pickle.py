"""Pickles are read without running what they name."""

import collections
import functools
import os
import pathlib
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyro_vsm.data import safe_pickle
from pyro_vsm.data.safe_pickle import numeric_array, read_pickle
from pyro_vsm.errors import UserError


@pytest.fixture
def read(tmp_path):
    def through_a_file(content: bytes):
        (tmp_path / "file.pkl").write_bytes(content)
        return read_pickle(tmp_path / "file.pkl")

    return through_a_file


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker: pathlib.Path):
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch {marker}"),
        "exec": Calls(exec, touch),
        "eval": Calls(eval, touch),
        "open": Calls(open, str(marker), "w"),
        "mkdir": Calls(os.mkdir, str(marker)),
        "subprocess": Calls(subprocess.check_call, ["touch", str(marker)]),
        "partial": Calls(functools.partial(os.mkdir, str(marker))),
        "getattr": Calls(getattr, "text", "upper"),
        "load": Calls(torch.load, str(marker)),
        "numpy": Calls(np.save, str(marker), np.zeros(1)),
    }


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", attacks(pathlib.Path()))
@pytest.mark.parametrize("place", ["alone", "in a list", "in an array", "after an array"])
def test_a_program_is_refused_and_not_run(read, tmp_path, name, protocol, place):
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    if place == "in an array":
        array = np.empty(1, dtype=object)
        array[0] = attack
        content = pickle.dumps({"image_data": array}, protocol)
    else:
        value = {"alone": attack, "in a list": [1, attack], "after an array": [np.zeros(3), attack]}[place]
        content = pickle.dumps(value, protocol)
    with pytest.raises(UserError) as caught:
        read(content)
    assert not marker.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.pkl"]
    if place != "in an array":
        assert "asks to run" in str(caught.value)
        assert "file.pkl" in str(caught.value)


def test_the_attack_would_have_worked(tmp_path):
    """The check above can fail: the plain unpickler runs the same bytes."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(attacks(marker)["mkdir"]))
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0 by hand
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",  # a dotted name
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"\x80\x02cpyro_vsm.data.safe_pickle\nread_pickle\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # a persistent id
    ],
)
def test_other_ways_to_name_things_are_refused(read, content):
    with pytest.raises(UserError):
        read(content)


@pytest.mark.parametrize("name", ["numpy\nndarray", "numpy\ndtype", "_codecs\nencode", "builtins\nlist"])
@pytest.mark.parametrize(
    "state",
    [b"}X\x09\x00\x00\x00_functionK\x01s", b"N}X\x09\x00\x00\x00_functionK\x01s\x86"],
    ids=["dict", "slots"],
)
def test_stand_ins_cannot_be_changed(read, name, state):
    before = {key: value._function for key, value in safe_pickle._STAND_INS.items()}
    with pytest.raises(UserError):
        read(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    assert {key: value._function for key, value in safe_pickle._STAND_INS.items()} == before


NESTED = b"N" + b"\x85" * 150_000  # a tuple nested so often that hashing it would crash
BOMBS = [
    b"\x80\x04Nr\xff\xff\xff\xff.",  # the object number 4294967295
    b"Np99999999999\n.",
    b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",  # 2^63 bytes follow, it says
    b"\x80\x04B\xff\xff\xff\x7fabc.",
    b"\x80\x04\x96" + struct.pack("<Q", 1 << 50) + b"abc.",
    b"\x80\x04\x96" + struct.pack("<Q", 1 << 32) + b"abc.",
    b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"abc.",
    b"\x80\x02}" + NESTED + b"Ns.",
    b"\x80\x02}(" + NESTED + b"Nu.",
    b"(" + NESTED + b"Nd.",
    b"\x80\x04\x8f(" + NESTED + b"\x90.",
    b"\x80\x04(" + NESTED + b"\x91.",
    b"ccollections\nOrderedDict\n](" + NESTED + b"N\x86e\x85R.",
]
LIMITED = """
import pathlib, resource, sys, types
for name, folder in zip(("pyro_vsm", "pyro_vsm.data"), sys.argv[1:3]):  # without what their __init__ loads
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from pyro_vsm.data.safe_pickle import read_pickle
from pyro_vsm.errors import UserError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
for path in sys.argv[3:]:
    try:
        read_pickle(pathlib.Path(path))
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory as Linux does")
def test_a_few_bytes_cannot_exhaust_memory_or_crash(tmp_path):
    paths = [tmp_path / f"bomb{i:02}.pkl" for i in range(len(BOMBS))]
    for path, content in zip(paths, BOMBS):
        path.write_bytes(content)
    folder = pathlib.Path(safe_pickle.__file__).parent
    command = [sys.executable, "-c", LIMITED, *map(str, [folder.parent, folder, *paths])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    answered = [path.name in done.stdout for path in paths]
    # a sparse object number is harmless here; everything else is refused
    assert answered == [False, False] + [True] * (len(BOMBS) - 2)


def test_the_bombs_would_have_worked(tmp_path):
    """The plain unpickler crashes on a nested key."""
    command = [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"]
    assert subprocess.run(command, input=BOMBS[7], capture_output=True).returncode < 0


ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    np.arange(5, dtype=">i4"),
    np.linspace(0, 1, 7, dtype=np.float32),
    np.array([True, False]),
    np.arange(24, dtype=np.uint8).reshape(4, 6)[:, ::2],
    np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 2, 0),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: str(a.dtype))
def test_plain_arrays_are_read(read, array, protocol):
    result = numeric_array(read(pickle.dumps({"a": array}, protocol))["a"])
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_and_scalars_are_read(read, protocol):
    default = collections.defaultdict(list, a=[1, 2])
    value = {
        "default": default,
        "ordered": collections.OrderedDict(b=2, a=1),
        "list": [1, 2.5, "ü", b"\xff", b"", None, True],
        "scalar": np.int64(7),
        7: (1, {2}),
    }
    if protocol < 4:
        value[7] = (1, 2)  # older protocols name the type set
    result = read(pickle.dumps(value, protocol))
    assert result["default"] == {"a": [1, 2]}
    assert result["ordered"] == {"b": 2, "a": 1}
    assert result["list"] == value["list"]
    assert result["scalar"] == 7
    assert result[7] == value[7]


def python_2_pickle(array, name):
    """`{name: array}` as Python 2 writes it with protocol 2: byte strings, NumPy's old module."""

    def text(value):
        return b"U" + struct.pack("<B", len(value)) + value

    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    content = array.tobytes()
    data = b"T" + struct.pack("<i", len(content)) + content
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    return b"\x80\x02}" + text(name) + start + b"(K\x01" + shape + dtype + b"\x89" + data + b"tbs."


def test_a_pickle_of_python_2_is_read(read):
    array = np.arange(256, dtype=np.uint8).reshape(4, 64)
    content = python_2_pickle(array, b"image_data")
    # the bytes are sound: the plain unpickler reads them too
    np.testing.assert_array_equal(pickle.loads(content, encoding="latin1")["image_data"], array)
    np.testing.assert_array_equal(numeric_array(read(content)["image_data"]), array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([None]),
        np.array(["a"]),
        np.zeros(2, dtype=[("a", "u1")]),
        np.array([1j]),
        np.array(["2020"], "M8[Y]"),
    ],
    ids=lambda a: str(a.dtype),
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_anything_else_are_refused(read, array, protocol):
    with pytest.raises(UserError):
        read(pickle.dumps(array, protocol))


def test_an_array_that_does_not_fill_its_shape_is_refused(read):
    content = pickle.dumps(np.arange(10, dtype=np.uint8), 2)
    assert b"K\n\x85" in content
    with pytest.raises(UserError, match="cut short"):
        read(content.replace(b"K\n\x85", b"K\x7f\x85"))


@pytest.mark.parametrize("value", [None, "text", [1.5], [True], ["a"], {"a": 1}, [2**70], 3])
def test_what_is_no_array(value):
    assert numeric_array(value) is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pkl does not exist"):
        read_pickle(tmp_path / "gone.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        read_pickle(tmp_path)


@pytest.mark.parametrize("cut", [1, 50, 500])
def test_truncation_at_any_place_is_a_user_error(read, cut):
    content = pickle.dumps({"image_data": np.zeros((9, 9), dtype=np.uint8), "class_dict": {"a": [1]}})
    for length in range(0, len(content) - 1, cut):
        with pytest.raises(UserError):
            read(content[:length])
