"""Ready weights that come with the package: a folder each with safetensors files and a model card.

    weights/NAME/README.md                       the model card
    weights/NAME/model.safetensors               or
    weights/NAME/model-1-of-2.safetensors, ...   each of at most 16 MiB

Matrices and larger tensors are kept in half precision where nothing overflows; models compute in single precision.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vsm import checkpoint
from pyro_vsm.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the weights."""

MOST_BYTES = 16 << 20
"""Of one file."""

_HEADER = 1 << 16  # room for the header of a file


def files(folder: Path) -> list[Path]:
    """The files of the weights in a model's folder, in order."""
    return sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []


def names(folder: Path = WEIGHTS) -> list[str]:
    """The pretrained models, in the order of their names."""
    return sorted(p.name for p in folder.iterdir() if files(p)) if folder.is_dir() else []


def is_name(path: Path | str, folder: Path = WEIGHTS) -> bool:
    """Whether a checkpoint is meant by the name of a pretrained model: it is one, and no such path exists."""
    return str(path) in names(folder) and not Path(path).exists()


def card(name: str, folder: Path = WEIGHTS) -> str:
    """The model card, Markdown.

    Raises:
        UserError: there is no such model, or its card is missing.
    """
    path = _folder(name, folder) / "README.md"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"the model card {path} cannot be read ({error}); install pyro-vsm again") from error


def read(name: str, folder: Path = WEIGHTS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a pretrained model, as :func:`checkpoint.read <pyro_vsm.checkpoint.read>` gives them.

    The content of every file is checked against its hash, and the files against each other.

    Raises:
        UserError: no such model, or damaged, missing or mixed files.
    """
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    parts = files(_folder(name, folder))
    for path in parts:
        part, about = checkpoint.read(path)
        if about.pop("files", 1) != len(parts) or (meta and about.get("whole") != meta.get("whole")):
            raise UserError(
                f"the files of {path.parent} are not all there or not of one model; install pyro-vsm again"
            )
        tensors |= part
        meta = about
    if meta.get("whole", whole := _digest(tensors)) != whole:
        raise UserError(f"the files of {_folder(name, folder)} are not of one model; install pyro-vsm again")
    return tensors, meta


def write(
    name: str, tensors: dict[str, Tensor], meta: dict[str, Any], folder: Path = WEIGHTS, *, half: bool = True
) -> list[Path]:
    """Write tensors as files of at most 16 MiB; :func:`read` reads them back.

    Args:
        name: of letters, digits, ``-``, ``_`` and ``.``.
        tensors: of the model.
        meta: of its checkpoint.
        folder: of all weights.
        half: keep what has two dimensions or more in half precision.

    Raises:
        UserError: a name that is none, a tensor too large for one file, or files that cannot be written.
    """
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise UserError(f"{name!r} is no name for a model; use letters, digits, '-', '_' and '.'")
    stored = {k: _half(v.detach().cpu()) if half else v.detach().cpu() for k, v in tensors.items()}
    parts: list[dict[str, Tensor]] = [{}]
    room = MOST_BYTES - _HEADER
    for key, value in stored.items():
        size = value.numel() * value.element_size() + 256
        if size > MOST_BYTES - _HEADER:
            raise UserError(f"{name}: the tensor {key} alone has {size >> 20} MiB, more than a file may have")
        if size > room:
            parts.append({})
            room = MOST_BYTES - _HEADER
        parts[-1][key] = value
        room -= size
    meta = {**meta, "files": len(parts), "whole": _digest(stored)}
    target = folder / name
    written = [target / _file_name(i, len(parts)) for i in range(len(parts))]
    for path, part in zip(written, parts):
        checkpoint.write(path, part, meta)
    for old in set(files(target)) - set(written):
        old.unlink()
    return written


def _folder(name: str, folder: Path) -> Path:
    if name not in names(folder):
        known = ", ".join(names(folder)) or "none"
        raise UserError(f"there is no pretrained model {name!r}; known are: {known}")
    return folder / name


def _file_name(i: int, n: int) -> str:
    return "model.safetensors" if n == 1 else f"model-{i + 1:0{len(str(n))}}-of-{n}.safetensors"


def _half(value: Tensor) -> Tensor:
    """In half precision, if it is a matrix or larger and its largest value fits."""
    if not value.is_floating_point() or value.dim() < 2 or value.abs().amax() > torch.finfo(torch.float16).max / 2:
        return value
    return value.half()


def _digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        total.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
