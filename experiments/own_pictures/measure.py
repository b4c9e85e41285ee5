"""What ``pyro-vsm predict`` makes of somebody's pictures, against the nearest mean of raw pixels.

python experiments/own_pictures/measure.py FOLDER ... [--checkpoint NAME], folders made by pictures.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from pyro_vsm import report
from pyro_vsm.data.decode import read_image
from pyro_vsm.metrics import Interval, mean_interval, paired
from pyro_vsm.prediction import predict_files

SIDE = 32


def true_class(path: str) -> str:
    """The class in the name of a new picture."""
    return Path(path).stem.rpartition("-")[0]


def nearest_mean(folder: Path) -> torch.Tensor:
    """Whether each new picture lies nearest to the mean of its own class in RGB pixels, ``[Q]``."""
    classes = sorted(p for p in (folder / "examples").iterdir())
    means = torch.stack(
        [torch.stack([read_image(f, SIDE).float() for f in sorted(c.iterdir())]).mean(0).flatten() for c in classes]
    )
    files = sorted((folder / "new").iterdir())
    pixels = torch.stack([read_image(f, SIDE).float().flatten() for f in files])
    names = [c.name for c in classes]
    best = torch.cdist(pixels, means).argmin(1).tolist()
    return torch.tensor([names[b] == true_class(f.name) for b, f in zip(best, files)])


def measure(folder: Path, checkpoint: str = "auto") -> dict[str, Any]:
    """A row of the table; intervals are over pictures, the difference is paired on them."""
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch) / "predictions.csv")
        done = predict_files(checkpoint, str(folder / "examples"), [str(folder / "new")], form="csv", out=out)
    right = torch.tensor([label == true_class(f) for label, f in zip(done.labels, done.files)]).double()
    raw = nearest_mean(folder).double()
    return {
        "pictures": folder.name,
        "classes": len(done.classes),
        "model": Path(done.model).name,
        "accuracy": mean_interval(right),
        "raw pixels, nearest mean (%)": str_percent(mean_interval(raw)),
        "difference (points)": str_percent(paired(right, raw), sign="+"),
    }


def str_percent(interval: Interval, sign: str = "") -> str:
    """In percent."""
    return f"{100 * interval.mean:{sign}.1f} ± {100 * interval.half_width:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--checkpoint", default="auto")
    args = parser.parse_args()
    print(report.to_markdown([measure(Path(folder), args.checkpoint) for folder in args.folders]))


if __name__ == "__main__":
    main()
