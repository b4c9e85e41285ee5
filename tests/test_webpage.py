"""The page of predictions: every image on it, every name escaped, nothing loaded from elsewhere; the threshold."""

import re
import shutil
from html.parser import HTMLParser

import pytest
import torch

from pyro_vsm.cli import main
from pyro_vsm.prediction import NONE, Prediction
from pyro_vsm.webpage import render

EVIL = "<img src=x onerror=alert(1)>\"&'.png"


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well nested

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folders(tiny_root, tmp_path):
    support, query = tmp_path / "support", tmp_path / "query"
    query.mkdir()
    for name, source, number in (("<b>bold</b>", "test 0", 3), ("plain & simple", "test 1", 1)):
        (support / name).mkdir(parents=True)
        for i in range(number):
            shutil.copy(tiny_root / "test" / source / f"{i}.png", support / name)
    shutil.copy(tiny_root / "test" / "test 0" / "4.png", query / EVIL)
    shutil.copy(tiny_root / "test" / "test 1" / "5.png", query / "b.png")
    return support, query


def test_the_page_shows_every_image_and_escapes_every_name(tiny_run, folders, tmp_path, capsys):
    support, query = folders
    out = tmp_path / "page.html"
    arguments = ["--checkpoint", str(tiny_run), "--support", str(support), "--query", str(query), "--samples", "5"]
    assert main(["predict", *arguments, "--format", "html", "--out", str(out), "--device", "cpu"]) == 0
    assert f"Wrote {out}" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 2 + 4  # queries and examples
    assert all(re.match(r"data:image/jpeg;base64,[\w+/=]{200,}$", i["src"]) for i in images)
    assert not any(tag in ("script", "link", "b", "iframe") and attrs for tag, attrs in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert EVIL in page.text
    assert "<b>bold</b>" in page.text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_names_that_are_no_text_do_not_stop_the_page():
    p = torch.tensor([[0.7, 0.3]])
    text = render(Prediction(["no \udcff picture.png"], ["a\udcfe", "b"], p, torch.zeros(1)))
    assert "no ? picture.png" in text
    text.encode("utf-8")


@pytest.mark.parametrize(("threshold", "labels"), [(0.0, ["a", "b"]), (0.65, ["a", NONE]), (1.0, [NONE, NONE])])
def test_images_below_the_threshold_belong_to_no_class(threshold, labels):
    p = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    done = Prediction(["x.png", "y.png"], ["a", "b"], p, torch.tensor([0.1, 0.0]), threshold)
    assert done.labels == labels
    assert [row["prediction"] for row in done.rows()] == labels
    assert render(done).count('class="card unknown"') == labels.count(NONE)
    assert 0 < done.removable[0] < done.uncertainty[0]
    assert done.removable[1] == 0


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_thresholds_that_are_no_probabilities_are_refused(tiny_run, folders, value, capsys):
    support, query = folders
    arguments = ["--checkpoint", str(tiny_run), "--support", str(support), "--query", str(query)]
    assert main(["predict", *arguments, f"--unknown={value}"]) == 2
    assert "give a probability from 0 to 1" in capsys.readouterr().err
