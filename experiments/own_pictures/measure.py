"""What ``pyro-vsm predict`` makes of somebody's pictures, against the nearest mean of raw pixels.

python experiments/own_pictures/measure.py FOLDER ... [--checkpoint NAME], folders made by pictures.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from pyro_vsm import report
from pyro_vsm.data.decode import read_image
from pyro_vsm.metrics import mean_interval
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--checkpoint", default="auto")
    args = parser.parse_args()
    rows = []
    for folder in map(Path, args.folders):
        with tempfile.NamedTemporaryFile() as scratch:
            done = predict_files(
                args.checkpoint, str(folder / "examples"), [str(folder / "new")], form="csv", out=scratch.name
            )
        right = torch.tensor([label == true_class(f) for label, f in zip(done.labels, done.files)])
        raw = nearest_mean(folder)
        rows.append(
            {
                "pictures": folder.name,
                "classes": len(done.classes),
                "model": done.model,
                "accuracy": mean_interval(right.double()),
                "raw pixels, nearest mean (accuracy %)": f"{100 * raw.double().mean():.1f}",
            }
        )
    print(report.to_markdown(rows))


if __name__ == "__main__":
    main()
