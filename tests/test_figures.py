"""The plots of a run folder by the command line."""

import pytest
import torch
from PIL import Image

from pyro_vsm.cli import main
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.figures import confusions


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
