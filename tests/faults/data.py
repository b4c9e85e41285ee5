"""Faults of data sets: every kind of bad file under both policies, tables, pickles, splits."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from . import Ended, Scene, Tally
from .processes import NOBODY, _as_user

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def _show(scene: Scene, name: str, root: Path, *further: str, **faults) -> Ended:
    argv = ["data", "show", name, "--data.root", str(root), "--data.image_size", "16", "--data.cache", "false"]
    return scene.zygote.run([*argv, *further], **faults)


def _copy(scene: Scene) -> Path:
    root = scene.new("data")
    shutil.copytree(scene.data, root)
    return root


def _picture(root: Path) -> Path:
    return root / "train" / "train 1" / "2.png"


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that declare a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _text_bomb() -> bytes:
    """A PNG whose compressed text has a gigabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    packed = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1024)) + compressor.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"Comment\0\0" + packed)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 72))
    return b"\x89PNG\r\n\x1a\n" + head + text + pixels + chunk(b"IEND", b"")


def _jpeg(**how) -> bytes:
    import io

    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(how.pop("mode", "RGB")).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def _bad_files() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Faults of one image file that make it unreadable: put at a path."""
    whole = _jpeg()
    for share in (0.02, 0.3, 0.9):
        yield f"JPEG cut to {share:.0%}", lambda p, s=share: p.write_bytes(whole[: int(s * len(whole))])
    yield "HTML saved as an image", lambda p: p.write_bytes(HTML)
    yield "zero bytes", lambda p: p.write_bytes(b"")
    yield "noise", lambda p: p.write_bytes(np.random.default_rng(1).bytes(3000))
    yield "only zeros", lambda p: p.write_bytes(bytes(3000))
    yield "20 000 x 20 000 pixels", lambda p: p.write_bytes(png_that_claims(20_000, 20_000))
    yield "2^31 x 2^31 pixels", lambda p: p.write_bytes(png_that_claims(2**31 - 1, 2**31 - 1))
    yield "a gigabyte of compressed text", lambda p: p.write_bytes(_text_bomb())
    yield "PostScript", lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    yield "32-bit values", lambda p: Image.new("F", (16, 16), 0.5).save(p, "TIFF")
    yield "a dead link", lambda p: (p.unlink(), p.symlink_to("nowhere.png"))
    yield "a link to itself", lambda p: (p.unlink(), p.symlink_to(p.name))
    yield "Git LFS pointer", lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")


def _odd_files() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Odd image files that are fine."""
    grey = np.random.default_rng(2).integers(0, 65536, (20, 20)).astype(np.uint16)
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "1 x 1 pixel", lambda p: Image.new("RGB", (1, 1), "red").save(p, "PNG")
    yield "3000 x 1 pixels", lambda p: Image.new("RGB", (3000, 1), "red").save(p, "PNG")
    yield "CMYK", lambda p: p.write_bytes(_jpeg(mode="CMYK"))
    yield "16 bits", lambda p: Image.fromarray(grey).save(p, "PNG")
    yield "animated", lambda p: frames[0].save(p, "GIF", save_all=True, append_images=frames[1:])
    yield "turned by EXIF", lambda p: p.write_bytes(_jpeg(exif=exif))
    yield "transparent palette", lambda p: Image.new("P", (9, 9)).save(p, "PNG", transparency=0)
    yield "1 bit", lambda p: Image.new("1", (9, 9), 1).save(p, "PNG")
    yield "constant", lambda p: Image.new("RGB", (16, 16)).save(p, "PNG")
    yield "another ending", lambda p: Image.new("RGB", (16, 16)).save(p, "WEBP")


def bad_files_stop(scene: Scene, tries: int) -> Tally:
    """Policy "stop"."""
    tally = Tally("image file of each bad kind, `bad_files: stop`", "one sentence that names the file, status 2")
    for what, put in list(_bad_files())[:tries]:
        root = _copy(scene)
        put(_picture(root))
        ended = _show(scene, "folder", root)
        tally.add(ended, ended.status == 2 and str(_picture(root)) in ended.sentence, what)
    return tally


def bad_files_skip(scene: Scene, tries: int) -> Tally:
    """Policy "skip"."""
    tally = Tally("the same, `bad_files: skip`", "the others are loaded, the file is named in a warning")
    for what, put in list(_bad_files())[:tries]:
        root = _copy(scene)
        put(_picture(root))
        ended = _show(scene, "folder", root, "--data.bad_files", "skip")
        told = "skipped" in ended.err and str(_picture(root)) in ended.err
        tally.add(ended, ended.status == 0 and told and "29 images" in ended.out, what)
    return tally


def odd_files(scene: Scene, tries: int) -> Tally:
    """Unusual, but images."""
    tally = Tally("image file of each odd kind", "loaded without a word")
    for what, put in list(_odd_files())[:tries]:
        root = _copy(scene)
        put(_picture(root))
        ended = _show(scene, "folder", root)
        tally.add(ended, ended.status == 0 and not ended.err and "30 images" in ended.out, what)
    return tally


def unreadable(scene: Scene, tries: int) -> Tally:
    """Permissions, for a process that they bind."""
    tally = Tally(
        "file or folder without read permission", "one sentence that names it, status 2; a file is skipped on request"
    )
    if not _as_user(scene):
        tally.remarks.append("not tried: the temporary folder is closed to other users")
        return tally
    user = {"user": NOBODY} if os.geteuid() == 0 else {}
    root = _copy(scene)
    for path in (_picture(root), _picture(root).parent):
        path.chmod(0)
        ended = _show(scene, "folder", root, **user)
        tally.add(ended, ended.status == 2 and str(path) in ended.sentence, str(path))
        if path == _picture(root):
            ended = _show(scene, "folder", root, "--data.bad_files", "skip", **user)
            tally.add(ended, ended.status == 0 and "29 images" in ended.out, f"{path}, skip")
        path.chmod(0o755)
    return tally


def trees(scene: Scene, tries: int) -> Tally:
    """Layouts of folders: what is wrong is refused or reported, what is odd is read."""
    tally = Tally("odd and wrong trees of folders", "read, reported or refused with status 2, as each deserves")

    def run(
        what: str, change: Callable[[Path], object], status: int, said: str, *argv: str, train: bool = False
    ) -> None:
        if tally.tried == tries:
            return
        root = _copy(scene)
        change(root)
        if train:
            ended = scene.train(scene.new("run"), "--data.root", str(root), *argv)
        else:
            ended = _show(scene, "folder", root, *argv)
        tally.add(ended, ended.status == status and said in ended.out + ended.err, what)

    names = ("größe 图 ナ", "emoji 🦉", "quote'\" \\", "new\nline", "rtl \u202e")
    for name in names:
        run(repr(name), lambda r, n=name: (r / "train" / "train 0").rename(r / "train" / n), 0, "6 classes")
    run(
        "name in no UTF-8",
        lambda r: (r / "train" / "train 0").rename(r / "train" / os.fsdecode(b"\xff\xfe")),
        0,
        "6 classes",
    )
    run("links in a loop", lambda r: (r / "train" / "train 0" / "loop").symlink_to(r / "train"), 0, "6 classes")
    run("a link to the whole", lambda r: (r / "train" / "up").symlink_to(".."), 0, "6 classes")
    run(
        "a link into the test classes",
        lambda r: (r / "train" / "x").symlink_to("../test"),
        0,
        "20 image(s) of one split",
    )
    run("a pipe", lambda r: os.mkfifo(r / "train" / "train 0" / "pipe.png"), 0, "30 images")
    run(
        "shared class",
        lambda r: shutil.copytree(r / "train" / "train 0", r / "test" / "train 0"),
        2,
        "in both train and test",
    )
    run(
        "image in two splits",
        lambda r: shutil.copy(r / "train" / "train 0" / "0.png", r / "test" / "test 0" / "again.png"),
        0, "1 image(s) of one split stand in another one, too",
    )  # fmt: skip
    run("empty split", lambda r: [shutil.rmtree(p) for p in (r / "val").iterdir()], 2, "none for validation")

    def one_class(root: Path) -> None:
        for c in range(1, 6):
            shutil.rmtree(root / "train" / f"train {c}")

    run("split with one class", one_class, 2, "3-way episodes need 3 classes", train=True)

    def few_images(root: Path) -> None:
        for path in sorted((root / "train" / "train 0").iterdir())[1:]:
            path.unlink()

    run("class with one image, enough others", few_images, 0, "Run folder", train=True)
    run("classes with too few images", lambda r: None, 2, "lower shot or queries", "--episodes.shot", "5", train=True)

    def all_bad(root: Path) -> None:
        for path in (root / "train" / "train 0").iterdir():
            path.write_bytes(HTML)

    run("class of bad files only, skipped", all_bad, 0, "left out: class 'train 0'", "--data.bad_files", "skip")
    return tally


def _tables(scene: Scene) -> Path:
    root = scene.new("tables")
    (root / "images").mkdir(parents=True)
    for part in ("train", "val", "test"):
        lines = ["filename,label"]
        for path in sorted((scene.data / part).glob("*/*.png")):
            name = f"{path.parent.name}_{path.name}"
            shutil.copy(path, root / "images" / name)
            lines.append(f"{name},{path.parent.name}")
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


def tables(scene: Scene, tries: int) -> Tally:
    """Csv files of miniImageNet."""
    tally = Tally(
        "csv file damaged, with missing or further columns, ...",
        "one sentence, status 2; what does not matter is read",
    )
    edits = [
        ("further column", 0, lambda t: "\n".join(line + ",x" for line in t.splitlines())),
        ("ragged lines", 0, lambda t: "\n".join(line + ",x" * (i % 3) for i, line in enumerate(t.splitlines()))),
        ("other order", 0, lambda t: "\n".join(",".join(line.split(",")[::-1]) for line in t.splitlines())),
        ("byte order mark", 0, lambda t: "\ufeff" + t),
        ("Windows line ends", 0, lambda t: t.replace("\n", "\r\n")),
        ("missing column", 2, lambda t: "\n".join(line.split(",")[0] for line in t.splitlines())),
        ("other header", 2, lambda t: t.replace("filename,label", "file,class")),
        ("no header", 2, lambda t: t.partition("\n")[2]),
        ("empty", 2, lambda t: ""),
        ("HTML", 2, lambda t: HTML.decode()),
        ("zero bytes inside", 2, lambda t: t[:50] + "\0" * 20 + t[50:]),
        ("cut in a line", 2, lambda t: t[: len(t) // 2]),
        ("a field of a megabyte", 2, lambda t: t + "x" * (1 << 20) + ",n"),
        ("an unclosed quote", 2, lambda t: t + '"a.png,n'),
        ("missing image", 2, lambda t: t + "nothing.png,train 0\n"),
        ("line twice", 2, lambda t: t + t.splitlines()[1] + "\n"),
        ("one class", 2, lambda t: "\n".join(t.splitlines()[:5])),
        ("path out of images/", 2, lambda t: t + "../../secret.png,n\n"),
        ("absolute path", 2, lambda t: t + "/etc/passwd,n\n"),
        ("label missing", 2, lambda t: t + "a.png,\n"),
    ]
    for what, status, edit in edits[:tries]:
        root = _tables(scene)
        path = root / "train.csv"
        path.write_text(edit(path.read_text()), newline="")
        ended = _show(scene, "mini-imagenet", root)
        fine = ended.status == status and (status == 0 or bool(ended.sentence))
        tally.add(ended, fine and (status == 2 or "30 images" in ended.out), what)
    return tally


class _Attack:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickles(scene: Scene, tries: int) -> Tally:
    """Pickles of miniImageNet."""
    tally = Tally("pickle damaged, hostile or something else", "one sentence, status 2, nothing is run")
    marker = scene.folder / "executed by a pickle"
    images = np.random.default_rng(3).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    good = pickle.dumps({"image_data": images, "class_dict": {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7]}})
    other = {
        part: pickle.dumps({"image_data": images + k, "class_dict": {f"{part} a": [0, 1], f"{part} b": [2, 3]}})
        for k, part in ((1, "val"), (2, "test"))
    }
    nested = b"N" + b"\x85" * 200_000
    contents = [
        ("as it should be", good), ("zero bytes", b""), ("HTML", HTML), ("cut in half", good[: len(good) // 2]),
        ("a program", pickle.dumps(_Attack(marker))),
        ("a program inside", pickle.dumps({"image_data": _Attack(marker)})),
        ("a program, protocol 0", pickle.dumps(_Attack(marker), 0)),
        ("an array of programs", pickle.dumps({"image_data": np.array([_Attack(marker)], dtype=object)})),
        ("object number 2^32", b"\x80\x04Nr\xff\xff\xff\xff."),
        ("a string of 2^62 bytes", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3fa."),
        ("a nested key", b"\x80\x02}" + nested + b"Ns."), ("a list", pickle.dumps([1, 2])),
        ("text for images", pickle.dumps({"image_data": "a", "class_dict": {}})),
        ("numbers beyond the images", pickle.dumps({"image_data": images, "class_dict": {"a": [0, 99], "b": [1]}})),
        ("floats for images", pickle.dumps({"image_data": images.astype(float), "class_dict": {"a": [0], "b": [1]}})),
        ("no images", pickle.dumps({"image_data": images[:0], "class_dict": {"a": [], "b": []}})),
    ]  # fmt: skip
    for what, content in contents[:tries]:
        root = scene.new("pickles")
        root.mkdir()
        (root / "mini-imagenet-cache-train.pkl").write_bytes(content)
        for part, bytes_ in other.items():
            (root / f"mini-imagenet-cache-{part}.pkl").write_bytes(bytes_)
        ended = _show(scene, "mini-imagenet", root)
        fine = ended.status == 0 if content is good else ended.status == 2 and bool(ended.sentence)
        tally.add(ended, fine and not marker.exists(), what)
    return tally


def bad_pictures_to_classify(scene: Scene, tries: int) -> Tally:
    """The same bad files as examples and as pictures to classify."""
    tally = Tally(
        "image file of each bad kind, then predict",
        "one sentence, status 2; with `bad_files: skip` the others are answered",
    )
    model = str(scene.whole / "vsm")
    for what, put in list(_bad_files())[:tries]:
        root = scene.new("predict")
        shutil.copytree(scene.data / "test", root)
        bad = root / "test 0" / "1.png"
        put(bad)
        argv = ["predict", "--checkpoint", model, "--support", str(root), "--query", str(bad), "--samples", "3"]
        ended = scene.zygote.run(argv)
        tally.add(ended, ended.status == 2 and bool(ended.sentence), what)
        argv[6] = str(root / "test 1")
        ended = scene.zygote.run([*argv, "--bad_files", "skip"])
        tally.add(ended, ended.status == 0 and "test 1" in ended.out, f"{what}, skip")
    return tally


FAULTS = {
    bad_files_stop: (99, 3),
    bad_files_skip: (99, 2),
    odd_files: (99, 3),
    unreadable: (99, 1),
    trees: (99, 8),
    tables: (99, 4),
    pickles: (99, 5),
    bad_pictures_to_classify: (99, 1),
}
