"""Checkpoints: tensors in safetensors with a JSON header, written atomically. Nothing in them is ever executed."""

from __future__ import annotations

import hashlib
import json
import random
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic

FORMAT = 1


def versions() -> dict[str, str]:
    """Of this package and the libraries that decide the numbers."""
    return {
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "pyro_vsm": _own_version(),
    }


@cache
def _own_version() -> str:
    try:
        return metadata.version("pyro-vsm")
    except metadata.PackageNotFoundError:  # run from the sources
        return "unknown"


def write(
    path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any], *, previous: Path | None = None
) -> None:
    """Write ``tensors`` and the JSON-able ``meta`` to ``path``, whole or not at all.

    ``previous`` is a name in the same folder under which an older file at ``path`` is kept.

    Raises:
        UserError: the file cannot be written.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps({"format": FORMAT, "versions": versions(), **meta})
    header = {"pyro_vsm": text, "sha256": _digest(text, plain)}
    write_atomic(Path(path), save(plain, metadata=header), previous=previous)


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a file that :func:`write` made.

    Raises:
        UserError: missing, truncated or foreign file, or a format of the future.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give a run folder or a .safetensors file of pyro-vsm train")
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "pyro_vsm" not in header:
            raise UserError(f"{path} is a safetensors file of another program; give one of pyro-vsm train")
        if header.get("sha256", digest := _digest(header["pyro_vsm"], tensors)) != digest:
            raise UserError(
                f"{path} is damaged (its content has changed since it was written); restore it or train again"
            )
        meta = json.loads(header["pyro_vsm"])
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({error}); restore it or train again") from error
    if not isinstance(meta, dict) or meta.get("format") not in range(1, FORMAT + 1):
        raise UserError(f"{path} has a format that this version does not read; upgrade pyro-vsm")
    return tensors, meta


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the meta and the tensors: safetensors itself would not notice a flipped bit."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_into(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy ``tensors`` into the module, all or none.

    Raises:
        UserError: names or shapes differ, or a value is not finite.
    """
    own = module.state_dict()
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))
        raise UserError(f"{where} does not fit the model: {len(odd)} tensors differ, the first is {odd[0]}")
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{where} does not fit the model: {name} is {list(value.shape)}, not {list(own[name].shape)}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{where}: {name} holds NaN or infinity; use an earlier checkpoint")
    module.load_state_dict(tensors)


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the generators of torch (CPU and ``device``), NumPy and Python: tensors and JSON."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the state users seed
    tensors["random.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, internal, gauss = random.getstate()
    tensors["random.python"] = torch.tensor(internal, dtype=torch.int64)
    return tensors, {"numpy": [name, *rest], "python": [version, gauss]}


def restore_random_state(tensors: dict[str, Tensor], meta: dict[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    name, *rest = meta["numpy"]
    np.random.set_state((name, tensors["random.numpy"].numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, gauss = meta["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))
