"""Predictions as one page for a browser: thumbnails, probabilities, uncertainty; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pyro_vsm.data.decode import read_image
from pyro_vsm.errors import UserError

if TYPE_CHECKING:
    from pyro_vsm.prediction import Prediction

_SIDE = 112  # pixels of a thumbnail
_SHOWN = 5  # classes listed under an image
_EXAMPLES = 8  # shown of a class


def render(prediction: Prediction) -> str:
    """The page as HTML, self-contained; every name is escaped.

    Raises:
        UserError: an image that was read before cannot be read any more.
    """
    env = Environment(loader=PackageLoader("pyro_vsm"), autoescape=True, undefined=StrictUndefined)
    return env.get_template("predictions.html").render(
        model=prediction.model or "model",
        classes=[_example_row(name, prediction) for name in prediction.classes],
        images=[_card(i, prediction) for i in range(len(prediction.files))],
        unknown=prediction.unknown,
        counts=_counts(prediction),
        side=_SIDE,
    )


def _example_row(name: str, prediction: Prediction) -> dict[str, Any]:
    files = prediction.examples.get(name, [])
    shown = [url for url in (_thumbnail(f) for f in files[:_EXAMPLES]) if url]
    return {"name": _printable(name), "thumbnails": shown, "number": len(files), "rest": len(files) - len(shown)}


def _card(i: int, prediction: Prediction) -> dict[str, Any]:
    p = prediction.probabilities[i]
    top = p.topk(min(_SHOWN, len(p)))
    uncertainty, removable = prediction.uncertainty[i].item(), prediction.removable[i].item()
    return {
        "file": _printable(prediction.files[i]),
        "name": _printable(Path(prediction.files[i]).name),
        "thumbnail": _thumbnail(prediction.files[i]),
        "label": _printable(prediction.labels[i]),
        "known": bool(p.max() >= prediction.unknown),
        "top": [
            (_printable(prediction.classes[c]), 100 * q) for q, c in zip(top.values.tolist(), top.indices.tolist())
        ],
        "uncertainty": 100 * uncertainty,
        "removable": 100 * removable,
        "staying": 100 * (uncertainty - removable),
    }


def _counts(prediction: Prediction) -> list[tuple[str, int]]:
    labels = prediction.labels
    return [(_printable(name), labels.count(name)) for name in sorted(set(labels))]


def _printable(name: str) -> str:
    """A name whose bytes are no UTF-8, with question marks for them."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _thumbnail(file: str) -> str:
    """The image as the model sees it (its central square), as a data URL; empty if it cannot be read any more."""
    try:
        pixels = read_image(file, _SIDE)
    except UserError:
        return ""
    out = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
