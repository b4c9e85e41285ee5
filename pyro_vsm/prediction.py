"""``pyro-vsm predict``: class probabilities and uncertainty for images in files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vsm import report
from pyro_vsm.data.class_files import ENDINGS
from pyro_vsm.data.decode import read_image
from pyro_vsm.data.folder import read_class_folders
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.files import write_atomic
from pyro_vsm.loading import load_model


@dataclass(frozen=True)
class Prediction:
    """Of Q images among N classes.

    Attributes:
        files: Q names.
        classes: N names.
        probabilities: ``[Q, N]``.
    """

    files: list[str]
    classes: list[str]
    probabilities: Tensor

    @property
    def uncertainty(self) -> Tensor:
        """Entropy of the probabilities in units of log N, ``[Q]``: 0 is certain, 1 knows nothing."""
        n = self.probabilities.shape[1]
        entropy = -torch.xlogy(self.probabilities, self.probabilities).sum(-1)
        return entropy / torch.tensor(float(max(n, 2))).log()

    def rows(self) -> list[dict[str, Any]]:
        """One row an image, for a table: the file, the likeliest class, the uncertainty, and each probability."""
        best = self.probabilities.argmax(-1).tolist()
        return [
            {
                "image": file,
                "prediction": self.classes[best[i]],
                "uncertainty": round(self.uncertainty[i].item(), 4),
                **{f"p({c})": round(p, 4) for c, p in zip(self.classes, self.probabilities[i].tolist())},
            }
            for i, file in enumerate(self.files)
        ]


def find_images(paths: list[str]) -> list[Path]:
    """Image files among the paths, folders searched to any depth, sorted within each.

    Raises:
        UserError: a path that is not there, or no image in any of them.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no file or folder {path}; check --query")
    if not found:
        raise UserError(f"no image in {', '.join(paths)}; give files or folders with {', '.join(sorted(ENDINGS))}")
    return found


@torch.no_grad()
def predict(
    model: FewShotModel,
    support: list[Tensor],
    query: Tensor,
    *,
    samples: int = 200,
    seed: int = 0,
) -> Tensor:
    """Class probabilities ``[Q, N]``.

    Args:
        model: in evaluation mode.
        support: for each of N classes its examples, uint8 ``[K_n, C, H, W]``; K_n may differ.
        query: uint8 ``[Q, C, H, W]``.
        samples: posterior samples to average over.
        seed: of the samples; the global random state is left as it was.
    """
    device = next(model.parameters()).device
    features = [_encode(model, s.to(device)) for s in support]
    x = _encode(model, query.to(device)).unsqueeze(0)
    shots = min(len(f) for f in features)
    folded = torch.stack([fold(f, shots) for f in features])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return torch.cat([model.predict(folded.unsqueeze(0), q, samples)[0] for q in x.split(256, 1)]).cpu()


def fold(features: Tensor, shots: int) -> Tensor:
    """Fewer features ``[shots, D]`` of the same mean as ``[K, D]``: every example counts, and each as much.

    Feature j is the mean of the j-th part of the examples, one that lies across a border shared by both parts.
    The model then takes a class for one of ``shots`` examples: a little too unsure, never too sure.
    """
    K = len(features)
    borders = torch.arange(K + 1, device=features.device) / K
    edges = torch.arange(shots + 1, device=features.device) / shots
    low = torch.maximum(borders[:-1], edges[:-1, None])
    high = torch.minimum(borders[1:], edges[1:, None])
    return shots * (high - low).clamp_min(0) @ features


def check_support(folder: Path) -> None:
    """Refuse class folders without an image, which would otherwise be passed over in silence.

    Raises:
        UserError: a folder in ``folder`` holds no image at any depth.
    """
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not any(p.suffix.lower() in ENDINGS for p in path.rglob("*")):
            raise UserError(f"class folder {path} holds no image; add at least one example or remove the folder")


def _encode(model: FewShotModel, images: Tensor) -> Tensor:
    return torch.cat([model.encode(part) for part in images.split(256)])


def predict_files(
    checkpoint: str,
    support: str,
    query: list[str],
    *,
    form: Literal["table", "csv", "json"] = "table",
    out: str | None = None,
    samples: int = 200,
    seed: int = 0,
    device: str = "auto",
    bad_files: Literal["stop", "skip"] = "stop",
) -> Prediction:
    """Classify image files and print (or write) the result; see ``pyro-vsm predict --help``.

    Raises:
        UserError: damaged checkpoint, missing or unreadable images, fewer than two classes.
    """
    if samples < 1:
        raise UserError(f"--samples is {samples}; give at least 1")
    model, _ = load_model(checkpoint, device=device)
    backbone = model.encoder.backbone
    size, channels = backbone.image_size, backbone.channels
    if Path(support).is_dir():
        check_support(Path(support))
    examples = read_class_folders(support, size, channels, bad_files)
    if examples.n_classes < 2:
        raise UserError(f"{support} holds the class {examples.names[0]!r} alone; add a folder for each further class")
    files, images = [], []
    for path in find_images(query):
        try:
            images.append(read_image(path, size, channels))
            files.append(str(path))
        except UserError as error:
            if bad_files == "stop":
                raise
            print(f"Skipped: {error}", file=sys.stderr)
    if not images:
        raise UserError(f"no readable image in {', '.join(query)}; give files that open in an image viewer")
    classes = list(examples.images.split(examples.counts.tolist()))
    p = predict(model, classes, torch.stack(images), samples=samples, seed=seed)
    prediction = Prediction(files, list(examples.names), p)
    write = {"table": report.to_text, "csv": report.to_csv, "json": report.to_json}[form]
    text = write(prediction.rows())
    if out:
        write_atomic(out, (text.rstrip("\n") + "\n").encode())
    else:
        print(text)
    return prediction
