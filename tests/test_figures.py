"""The plots of a run folder by the command line."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pyro_vsm import report
from pyro_vsm.cli import main
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.sources import SOURCES
from pyro_vsm.figures import confusions, draw_pretrained


def test_a_run_is_drawn_from_logs_models_and_data(tiny_run, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "a"), "--shots", "1", "2", "--episodes", "4", "--device", "cpu"]
    assert main(["plot", str(tiny_run), *arguments]) == 0
    names = {p.name for p in (tmp_path / "a").iterdir()}
    wanted = {"reliability", "rejection", "accuracy", "accuracy-by-shot"}
    wanted |= {f"{s}-{what}" for s in ("vsm", "vpn", "pn") for what in ("learning", "confusion")}
    wanted |= {f"{s}-{what}" for s in ("vsm", "vpn") for what in ("objective", "prototypes")}
    wanted |= {"vsm-recall", "vsm-recalled"}  # the VPN has no memory to read
    assert names == {f"{name}.png" for name in wanted}
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("Wrote")]) == len(names)
    for name in names:
        with Image.open(tmp_path / "a" / name) as image:
            assert min(image.size) > 100


def test_logs_alone_need_no_data(tiny_run, tmp_path):
    arguments = ["--out", str(tmp_path), "--logs", "true", "--format", "svg", "--data.root", str(tmp_path / "gone")]
    assert main(["plot", str(tiny_run), *arguments]) == 0
    assert (tmp_path / "vsm-objective.svg").read_bytes().startswith(b"<?xml")
    assert not list(tmp_path.glob("*confusion*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "holds no run"), (["RUN", "--shots", "99"], "99 shot"), (["RUN", "--episodes", "1"], "below 2")],
)
def test_what_cannot_be_drawn_is_said(tiny_run, tmp_path, arguments, message, capsys):
    arguments = [str(tiny_run) if a == "RUN" else a for a in arguments]
    assert main(["plot", *arguments, "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


class Nearest:
    """Takes the class whose only support feature is nearest, without doubt."""

    def eval(self):
        return self

    def predict(self, support, query, samples=1):
        return torch.nn.functional.one_hot(torch.cdist(query, support.mean(2)).argmin(-1), support.shape[1]).float()


def test_confusions_count_pairs_of_classes_of_the_split(tiny_data):
    split = tiny_data.test
    features = split.labels.float().unsqueeze(1)  # a feature that tells all classes apart ...
    episodes = fixed_episodes(split, way=4, shot=1, queries=2, episodes=50, seed=0)
    model = torch.nn.Module()
    model.predict = Nearest().predict
    counts = confusions(model, features, episodes, split.n_classes)
    assert counts.sum() == 50 * 4 * 2
    assert torch.equal(counts, torch.diag(counts.diagonal()))
    features[split.labels == 3] = 2.0  # ... but two
    counts = confusions(model, features, episodes, split.n_classes)
    off = counts - torch.diag(counts.diagonal())
    assert {tuple(i) for i in off.nonzero().tolist()} <= {(2, 3), (3, 2)}
    assert off.sum() > 0


def test_a_pretrained_model_is_drawn_on_its_classes_and_on_pictures(tiny_root, tmp_path, capsys):
    name = "glyphs-conv4-vpn-1shot"
    assert main(["plot", name, "--out", str(tmp_path / "a"), "--device", "cpu"]) == 0
    assert f"{name} on test classes of glyphs" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "a").iterdir()} == {f"{name}-prototypes.png"}  # a VPN has no memory to read
    name, pictures = "glyphs-conv4-vsm-5shot", str(tiny_root / "test")
    assert main(["plot", name, "--pictures", pictures, "--out", str(tmp_path / "b"), "--device", "cpu"]) == 0
    assert f"{name} on {pictures}" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "b").iterdir()} == {f"{name}-prototypes.png", f"{name}-recall.png"}


def test_a_model_whose_data_is_not_there_is_drawn_on_embedded_pictures(tiny_run, tmp_path, monkeypatch, capsys):
    images = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8)
    some = [ClassImages(images, torch.full((6,), 10), tuple(f"{s} {i}" for i in range(6))) for s in "abc"]
    monkeypatch.setitem(SOURCES, "colour-glyphs", lambda config: Splits("colour-glyphs", *some))
    written = draw_pretrained(str(tiny_run / "vsm"), tmp_path / "out", device="cpu")
    assert [p.name for p in written] == ["vsm-prototypes.png", "vsm-recall.png"]
    assert "colour-glyphs (folder needs its folder: --data.root)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("system", "message"), [("pn", "no posterior to draw"), ("vsm", "two classes of two images")]
)
def test_what_makes_no_figure_is_said(tiny_run, tiny_root, tmp_path, system, message, capsys):
    for i in range(2):
        (tmp_path / "few" / f"{i}").mkdir(parents=True)
        shutil.copy(tiny_root / "test" / f"test {i}" / "0.png", tmp_path / "few" / f"{i}")
    arguments = ["--pictures", str(tmp_path / "few"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["plot", str(tiny_run / system), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_without_a_run_are_drawn(tmp_path):
    results = Path(__file__).parents[1] / "experiments/mini_imagenet/results/conv4_1shot"
    assert main(["plot", str(results), "--out", str(tmp_path)]) == 0
    wanted = (
        {"accuracy"} | {f"{s}-learning" for s in ("vsm", "vpn", "pn")} | {f"{s}-objective" for s in ("vsm", "vpn")}
    )
    assert {p.stem for p in tmp_path.iterdir()} == wanted


def test_measurements_are_drawn_again(tmp_path):
    folder = tmp_path / "measured"
    words = ["--entries", "[64,640]", "--dim", "32", "--seconds", "0.001", "--device", "cpu", "--out", str(folder)]
    assert main(["bench", "memory", *words]) == 0
    steps = [{"step": name, "ms": ms, "ratio": ms / 2} for name, ms in (("backbone", 2.0), ("vsm", 3.0))]
    report.write_report(steps, folder, "step")
    report.write_report([{"part, ms": "recall", "backbone": None, "vsm": 1.0}], folder, "parts")
    assert main(["plot", str(folder), "--out", str(tmp_path / "plots")]) == 0
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"memory.png", "step.png"}


@pytest.mark.parametrize("name", ["table", "memory"])
@pytest.mark.parametrize("text", ["{", '{"rows": 3}', '{"rows": [{"system": "x"}]}'])
def test_damaged_tables_are_named(tmp_path, name, text, capsys):
    (tmp_path / f"{name}.json").write_text(text)
    assert main(["plot", str(tmp_path)]) == 2
    assert re.search(rf"{name}\.json|measurement of pyro-vsm bench", capsys.readouterr().err)
    assert not (tmp_path / "plots").exists()
