"""``pyro-vsm predict``: class probabilities and uncertainty for images in files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vsm import report
from pyro_vsm.choosing import AUTO, choose
from pyro_vsm.data.class_files import ENDINGS
from pyro_vsm.data.decode import read_image
from pyro_vsm.data.folder import read_class_folders
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel, fold
from pyro_vsm.files import write_atomic
from pyro_vsm.loading import load_model

__all__ = ["NONE", "Prediction", "believe", "find_images", "fold", "predict", "predict_files"]

NONE = "(none of these)"
"""Said of an image whose best class is less probable than the threshold."""

Form = Literal["table", "csv", "json", "html"]


@dataclass(frozen=True)
class Prediction:
    """Of Q images among N classes.

    Attributes:
        files: Q names.
        classes: N names.
        probabilities: ``[Q, N]``.
        mutual_information: nats ``[Q]``, what more examples would remove; zero for a model without a posterior.
        unknown: images whose best class is less probable belong to none of the classes, in [0, 1].
        model: what the model is called.
        examples: files of the examples of each class.
    """

    files: list[str]
    classes: list[str]
    probabilities: Tensor
    mutual_information: Tensor
    unknown: float = 0.0
    model: str = ""
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def uncertainty(self) -> Tensor:
        """Entropy of the probabilities in units of log N, ``[Q]``: 0 is certain, 1 knows nothing."""
        return -torch.xlogy(self.probabilities, self.probabilities).sum(-1) / self._scale

    @property
    def removable(self) -> Tensor:
        """The part of the uncertainty that more examples would remove, in the same units, ``[Q]``."""
        return (self.mutual_information / self._scale).minimum(self.uncertainty)

    @property
    def _scale(self) -> Tensor:
        return torch.tensor(float(max(self.probabilities.shape[1], 2))).log()

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each image, or :data:`NONE`."""
        p, best = self.probabilities.max(-1)
        return [NONE if q < self.unknown else self.classes[i] for q, i in zip(p.tolist(), best.tolist())]

    def rows(self) -> list[dict[str, Any]]:
        """One row an image, for a table: the file, the likeliest class, the uncertainty, and each probability."""
        uncertainty, removable = self.uncertainty.tolist(), self.removable.tolist()
        return [
            {
                "image": file,
                "prediction": label,
                "uncertainty": round(uncertainty[i], 4),
                "removable": round(removable[i], 4),
                **{f"p({c})": round(p, 4) for c, p in zip(self.classes, self.probabilities[i].tolist())},
            }
            for i, (file, label) in enumerate(zip(self.files, self.labels))
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
def believe(
    model: FewShotModel, support: Sequence[Tensor], query: Tensor, *, samples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Class probabilities ``[Q, N]`` and mutual information ``[Q]`` in nats, on the CPU.

    The mutual information of label and prototypes is what more examples would remove of the uncertainty; the rest,
    the expected entropy, would stay (Depeweg et al. 2018).

    Args:
        model: in evaluation mode.
        support: features ``[K_n, D]`` of each class; K_n may differ.
        query: features ``[Q, D]``.
        samples: posterior samples to average over.
        seed: of the samples; the global random state is left as it was.
    """
    device = query.device
    means, information = [], []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for part in query.split(256):
            torch.manual_seed(seed)  # the same prototypes for every part
            p = model.predict_samples(support, part, samples)
            exact = model.predict_exactly(support, part, samples)
            mean = p.mean(0) if exact is None else exact
            inside = -torch.xlogy(p, p).sum(-1).mean(0)
            means.append(mean)
            information.append((-torch.xlogy(mean, mean).sum(-1) - inside).clamp_min(0))
    return torch.cat(means).cpu(), torch.cat(information).cpu()


@torch.no_grad()
def predict(
    model: FewShotModel, support: list[Tensor], query: Tensor, *, samples: int = 200, seed: int = 0
) -> Tensor:
    """Class probabilities ``[Q, N]``.

    Args:
        model: in evaluation mode.
        support: for each of N classes its examples, uint8 ``[K_n, C, H, W]``; K_n may differ.
        query: uint8 ``[Q, C, H, W]``.
        samples: posterior samples to average over.
        seed: of the samples; the global random state is left as it was.
    """
    return believe(model, [encode(model, s) for s in support], encode(model, query), samples=samples, seed=seed)[0]


@torch.no_grad()
def encode(model: FewShotModel, images: Tensor) -> Tensor:
    """Features ``[B, D]`` of images ``[B, C, H, W]`` on any device, a part at a time."""
    device = next(model.parameters()).device
    return torch.cat([model.encode(part.to(device)) for part in images.split(256)])


def check_support(folder: Path) -> None:
    """Refuse class folders without an image, which would otherwise be passed over in silence.

    Raises:
        UserError: a folder in ``folder`` holds no image at any depth.
    """
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not any(p.suffix.lower() in ENDINGS for p in path.rglob("*")):
            raise UserError(f"class folder {path} holds no image; add at least one example or remove the folder")


def predict_files(
    checkpoint: str,
    support: str,
    query: list[str],
    *,
    form: Form = "table",
    out: str | None = None,
    samples: int = 200,
    seed: int = 0,
    device: str = "auto",
    bad_files: Literal["stop", "skip"] = "stop",
    unknown: float = 0.0,
) -> Prediction:
    """Classify image files and print (or write) the result; see ``pyro-vsm predict --help``.

    Raises:
        UserError: damaged checkpoint, missing or unreadable images, fewer than two classes.
    """
    if samples < 1:
        raise UserError(f"--samples is {samples}; give at least 1")
    if not 0 <= unknown <= 1:
        raise UserError(f"--unknown is {unknown}; give a probability from 0 to 1")
    if Path(support).is_dir():
        check_support(Path(support))

    def examples_for(size: int, channels: int) -> ClassImages:
        return read_class_folders(support, size, channels, bad_files)

    if checkpoint == AUTO:
        checkpoint, why = choose(examples_for, device=device)
        print(why, file=sys.stderr)
    model, _ = load_model(checkpoint, device=device)
    size, channels = model.encoder.backbone.image_size, model.encoder.backbone.channels
    examples = examples_for(size, channels)
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
    known = list(encode(model, examples.images).split(examples.counts.tolist()))
    p, information = believe(model, known, encode(model, torch.stack(images)), samples=samples, seed=seed)
    shown = {
        name: [str(f) for f in sorted((Path(support) / name).iterdir()) if f.suffix.lower() in ENDINGS]
        for name in examples.names
    }
    prediction = Prediction(files, list(examples.names), p, information, unknown, checkpoint, shown)
    if form == "html":
        from pyro_vsm.webpage import render

        path = write_atomic(out or "predictions.html", render(prediction).encode("utf-8", "replace"))
        print(f"Wrote {path}")
        return prediction
    write = {"table": report.to_text, "csv": report.to_csv, "json": report.to_json}[form]
    text = write(prediction.rows())
    if out:
        write_atomic(out, (text.rstrip("\n") + "\n").encode("utf-8", "replace"))
    else:
        print(text)
    return prediction
