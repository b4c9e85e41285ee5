"""Faults of checkpoints and run folders: cut short, bits flipped, foreign, hostile, of an older version."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from . import Ended, Scene, Tally, write_images

OLD = Path(__file__).resolve().parent.parent / "checkpoints" / "format1"


def _stopped(scene: Scene) -> Path:
    """A copy of a run that was killed in the middle of its second system, with two states of it."""
    kept = scene.folder / "stopped"
    while not kept.exists():
        run = scene.new("stopped")
        scene.train(run, watch=str(run), die_at=90)
        if (run / "pn" / "state-previous.safetensors").exists():
            shutil.copytree(run, kept)
        else:
            raise RuntimeError("operation 90 lies elsewhere by now; choose another")
    copy = scene.new("copy")
    shutil.copytree(kept, copy)
    return copy


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def _flip(content: bytes, random: np.random.Generator) -> bytes:
    where = int(random.integers(0, len(content)))
    return content[:where] + bytes([content[where] ^ 1 << int(random.integers(8))]) + content[where + 1 :]


def _zeros(content: bytes, random: np.random.Generator) -> bytes:
    """A block that never reached the disk."""
    where = int(random.integers(0, len(content)))
    return content[:where] + bytes(len(content[where : where + 4096])) + content[where + 4096 :]


DAMAGE = (_cut, _flip, _zeros)


def damaged_state(scene: Scene, tries: int) -> Tally:
    """The newest state."""
    tally = Tally(
        "newest state cut short, a bit flipped, or a block of zeros, then resume",
        "the state before it is taken, which is said; ends bit for bit like the run without a fault",
    )
    random = np.random.default_rng(5)
    for n in range(tries):
        run = _stopped(scene)
        path = run / "pn" / "state.safetensors"
        content = path.read_bytes()
        bad = DAMAGE[n % len(DAMAGE)](content, random)
        path.write_bytes(bad)
        ended = scene.train(run)
        told = "going on from state-previous.safetensors" in ended.out
        harmless = bad == content or _same_content(content, bad)
        fine = ended.status == 0 and (told or harmless) and not scene.same(run)
        tally.add(ended, fine, f"{DAMAGE[n % len(DAMAGE)].__name__}: {scene.same(run)}")
        shutil.rmtree(run)
    return tally


def _same_content(one: bytes, other: bytes) -> bool:
    """Whether a flipped bit hit nothing but the name of the checksum, say."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        a, b = load(one), load(other)
    except SafetensorError:
        return False
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def both_states_damaged(scene: Scene, tries: int) -> Tally:
    """Nothing to go on from."""
    tally = Tally("both states damaged, then resume", "one sentence that names both, status 2, nothing changed")
    random = np.random.default_rng(6)
    for _ in range(tries):
        run = _stopped(scene)
        for name in ("state", "state-previous"):
            path = run / "pn" / f"{name}.safetensors"
            path.write_bytes(_cut(path.read_bytes(), random))
        before = {p: p.read_bytes() for p in run.rglob("*.safetensors")}
        ended = scene.train(run)
        same = before == {p: p.read_bytes() for p in run.rglob("*.safetensors")}
        named = "state.safetensors" in ended.sentence and "state-previous.safetensors" in ended.sentence
        tally.add(ended, same and ended.status == 2 and named, f"unchanged: {same}")
        shutil.rmtree(run)
    return tally


def damaged_model(scene: Scene, tries: int) -> Tally:
    """The best model, before the evaluation."""
    tally = Tally(
        "model cut short, a bit flipped, or a block of zeros, then evaluate", "one sentence, status 2; or no harm"
    )
    random = np.random.default_rng(7)
    good = scene.whole / "vsm" / "model.safetensors"
    wanted = _evaluate(scene, good).out
    for n in range(tries):
        path = scene.new("model").with_suffix(".safetensors")
        content = good.read_bytes()
        bad = DAMAGE[n % len(DAMAGE)](content, random)
        path.write_bytes(bad)
        ended = _evaluate(scene, path)
        harmless = ended.status == 0 and ended.out.split("Hardware")[0] == wanted.split("Hardware")[0]
        accepted = harmless and (bad == content or _same_content(content, bad))
        refused = ended.status == 2 and bool(ended.sentence) and bad != content
        tally.add(ended, accepted or refused, DAMAGE[n % len(DAMAGE)].__name__)
    return tally


def _evaluate(scene: Scene, path: Path) -> Ended:
    few = ["--evaluation.episodes", "2", "--evaluation.queries", "2", "--evaluation.samples", "2"]
    return scene.zygote.run(["evaluate", str(path), *few, "--out", str(scene.new("evaluation"))])


class _Attack:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _hostile(scene: Scene, marker: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that are no checkpoints, or those of somebody who means harm."""
    picture, zipped, script = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x", "x")
    torch.save({"model": _Attack(marker)}, script)
    yield "zero bytes", b""
    yield "HTML", b"<!doctype html><html><body>404 Not Found</body></html>"
    yield "a PNG file", picture.getvalue()
    yield "a zip file", zipped.getvalue()
    yield "noise", np.random.default_rng(8).bytes(5000)
    yield "a pickle that runs a program", pickle.dumps(_Attack(marker))
    yield "torch.save of a program", script.getvalue()
    yield "safetensors of another program", save({"a": torch.ones(2)})
    yield "a header of 2^60 bytes", (1 << 60).to_bytes(8, "little") + b"{}"
    yield "nested JSON", save({"a": torch.ones(1)}, {"pyro_vsm": "[" * 100_000})
    yield "a state in place of a model", (scene.whole / "vsm" / "state.safetensors").read_bytes()
    with safe_open(scene.whole / "vsm" / "model.safetensors", framework="pt") as file:
        meta = json.loads(file.metadata()["pyro_vsm"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for what, path, value in (
        ("a prior that calls os.system", ("config", "model", "prior_z"), {"class_path": "os.system"}),
        ("a prior that calls eval", ("config", "model", "prior_z"), {"class_path": "builtins.eval"}),
        ("a module that is not imported", ("config", "model", "prior_m"), {"class_path": "antigravity.fly"}),
        ("a memory of 10^15 entries", ("config", "model", "capacity"), 10**15),
        ("a backbone of width 10^9", ("config", "model", "backbone", "init_args", "width"), 10**9),
        ("an image size of 10^9", ("images", "size"), 10**9),
        ("a negative number of classes", ("images", "classes"), -1),
        ("another system", ("system",), "pn"),
        ("settings that are a list", ("config",), []),
        ("text for numbers", ("config", "training", "steps"), "many"),
        ("another format", ("format",), 99),
    ):  # fmt: skip
        changed = json.loads(json.dumps(meta))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        yield what, save(tensors, {"pyro_vsm": json.dumps(changed)})
    for what, name, value in (
        ("NaN in the weights", "encoder.backbone.blocks.0.0.weight", torch.full((4, 3, 3, 3), float("nan"))),
        ("weights of another shape", "encoder.backbone.blocks.0.0.weight", torch.ones(2, 3, 3, 3)),
        ("integers for weights", "encoder.backbone.blocks.0.0.weight", torch.ones(4, 3, 3, 3, dtype=torch.int32)),
        ("a tensor too many", "more", torch.ones(1)),
    ):
        yield what, save({**tensors, name: value}, {"pyro_vsm": json.dumps(meta)})


def foreign_model(scene: Scene, tries: int) -> Tally:
    """Files of other programs and of enemies in place of a model."""
    marker = scene.folder / "executed"
    tally = Tally("foreign or hostile file as model, then evaluate", "one sentence, status 2, nothing is run")
    for what, content in list(_hostile(scene, marker))[:tries]:
        path = scene.new("foreign").with_suffix(".safetensors")
        path.write_bytes(content)
        ended = _evaluate(scene, path)
        accepted = what == "integers for weights" and ended.status == 0  # they are numbers, and are converted
        fine = not marker.exists() and (accepted or (ended.status == 2 and bool(ended.sentence)))
        tally.add(ended, fine, what)
    return tally


def foreign_state(scene: Scene, tries: int) -> Tally:
    """The same files in place of both states."""
    marker = scene.folder / "executed"
    tally = Tally("foreign or hostile file as both states, then resume", "one sentence, status 2, nothing is run")
    for what, content in list(_hostile(scene, marker))[:tries]:
        if what == "a state in place of a model":
            content = (scene.whole / "vsm" / "model.safetensors").read_bytes()
        run = _stopped(scene)
        for name in ("state", "state-previous"):
            (run / "pn" / f"{name}.safetensors").write_bytes(content)
        ended = scene.train(run)
        tally.add(ended, not marker.exists() and ended.status == 2 and bool(ended.sentence), what)
        shutil.rmtree(run)
    return tally


# twelve lines that stand for 9^11 letters
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


PRIOR = "systems: [vsm]\nmodel:\n  prior_m:\n    class_path: mixture\n"
LAUGHED = "".join(f"      {line}\n" for line in LAUGHS.splitlines())


def damaged_run_folder(scene: Scene, tries: int) -> Tally:
    """Configuration and log."""
    tally = Tally(
        "config.yaml or metrics.jsonl damaged or hostile, then resume", "one sentence, status 2; the states stay"
    )
    contents = [
        ("config.yaml", b""), ("config.yaml", b"systems: ["), ("config.yaml", b"\xff\xfe"), ("config.yaml", b"- 1"),
        ("config.yaml", b"[" * 100_000), ("config.yaml", LAUGHS.encode()),
        ("config.yaml", f"{PRIOR}    init_args:\n{LAUGHED}".encode()),
        ("config.yaml", b"systems: [vsm]\nmodel: !!python/object/apply:os.mkdir [executed]\n"),
        ("config.yaml", yaml.safe_dump({"systems": ["vsm", "pn"], "modle": {}}).encode()),
        ("pn/metrics.jsonl", b"\x00" * 50 + b"\n"), ("pn/metrics.jsonl", b"[1]\n"),
        ("pn/metrics.jsonl", b"[" * 100_000 + b"\n"), ("pn/metrics.jsonl", b'{"step": "one"}\n'),
        ("pn/metrics.jsonl", b"\xff\xfe\n"),
    ]  # fmt: skip
    for name, content in contents[:tries]:
        run = _stopped(scene)
        states = {p: p.read_bytes() for p in run.rglob("state*.safetensors")}
        (run / name).write_bytes(content)
        ended = scene.train(run)
        same = states == {p: p.read_bytes() for p in run.rglob("state*.safetensors")}
        fine = same and ended.status == 2 and bool(ended.sentence) and not (run / "executed").exists()
        tally.add(ended, fine, f"{name} {content[:20]!r}")
        shutil.rmtree(run)
    return tally


def lost_files(scene: Scene, tries: int) -> Tally:
    """One file of a stopped run is missing."""
    tally = Tally(
        "one file of a stopped run missing, then resume",
        "ends like the run without a fault, or (configuration, log) one sentence with status 2",
    )
    names = ["pn/state.safetensors", "pn/state-previous.safetensors", "vsm/state.safetensors", "config.yaml"]
    for name in names[:tries]:
        run = _stopped(scene)
        (run / name).unlink()
        if name == "config.yaml":
            ended = scene.zygote.run(["train", "--resume", str(run)])
            tally.add(ended, ended.status == 2 and bool(ended.sentence), name)
        else:
            ended = scene.train(run)
            tally.add(ended, ended.status == 0 and not scene.same(run), f"{name}: {scene.same(run)}")
        shutil.rmtree(run)
    return tally


def older_version(scene: Scene, tries: int) -> Tally:
    """A run folder that an older version wrote."""
    tally = Tally(
        "run folder of an older version, then evaluate and resume",
        "goes on to its last step; refused on other images",
    )
    run = scene.new("old")
    shutil.copytree(OLD, run)
    other = ["--data.root", str(scene.data)]
    model = str(run / "vsm" / "model.safetensors")
    few = ["--evaluation.episodes", "2", "--evaluation.queries", "2", "--evaluation.way", "3"]
    ended = scene.zygote.run(["evaluate", model, *few, *other, "--out", str(scene.new("evaluation"))])
    tally.add(ended, ended.status == 0, "evaluate")
    for force in ([], ["--force"]):
        ended = scene.zygote.run(["train", "--resume", str(run), *other, *force])
        tally.add(ended, ended.status == 2 and bool(ended.sentence), "resume on other classes")
    other = ["--data.root", str(write_images(scene.new("images"), classes=(12, 6, 6))), "--force"]
    ended = scene.zygote.run(["train", "--resume", str(run), *other])
    steps = [json.loads(line)["step"] for line in (run / "vsm" / "metrics.jsonl").read_text().splitlines()]
    tally.add(ended, ended.status == 0 and max(steps) == 8, "resume, forced")
    return tally


FAULTS = {
    damaged_state: (60, 2),
    both_states_damaged: (10, 1),
    damaged_model: (60, 2),
    foreign_model: (99, 8),
    foreign_state: (99, 2),
    damaged_run_folder: (99, 6),
    lost_files: (99, 1),
    older_version: (1, 1),
}
