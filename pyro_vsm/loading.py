"""Reading trained models and their configurations back."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from pyro_vsm import checkpoint, pretrained
from pyro_vsm.config import Config
from pyro_vsm.data import Splits
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.systems import SYSTEMS, ImageSpec, build_model
from pyro_vsm.training import pick_device


def checkpoint_meta(name: str, config: Config, images: ImageSpec, data: Splits) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    identity = {split: i.to_dict() for split, i in data.identity.items()}
    return {"system": name, "config": config.to_dict(), "images": images.to_dict(), "data": identity}


def load_model(path: Path | str, *, device: str = "cpu") -> tuple[FewShotModel, dict[str, Any]]:
    """The model in a checkpoint, in evaluation mode, and what the checkpoint says of itself.

    Args:
        path: ``model.safetensors``, the folder of a system, a run folder (its first system), or the name of a
            pretrained model (:mod:`pyro_vsm.pretrained`).
        device: where to put it.

    Raises:
        UserError: damaged or foreign file, or a part from a module that the caller has not imported.
    """
    if pretrained.is_name(path):
        path = pretrained.WEIGHTS / path
    path = Path(path)
    if path.is_dir() and any(path.glob("model-*-of-*.safetensors")):
        tensors, meta = pretrained.read(path.name, path.parent)
    else:
        path = find_model(path)
        tensors, meta = checkpoint.read(path)
    try:
        config, name = Config.from_dict(meta["config"]), str(meta["system"])
        images = ImageSpec(**meta["images"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}; it is no model of pyro-vsm train") from error
    if any(k.startswith("optimizer.") for k in tensors) or "random.cpu" in tensors:
        raise UserError(f"{path} is a state to resume from; give the model.safetensors beside it")
    model = build_model(name, config, images, amp=False, trusted=False)
    checkpoint.load_into(model, tensors, str(path))
    return model.to(pick_device(device)).eval(), meta


def load(path: Path | str, *, device: str = "auto") -> FewShotModel:
    """The trained model of a run folder or checkpoint, ready to predict; see :func:`load_model`."""
    return load_model(path, device=device)[0]


def load_pretrained(name: str, *, device: str = "auto") -> FewShotModel:
    """A model that comes with the package, ready to predict; its files are checked against their hashes.

    Args:
        name: one of :func:`pyro_vsm.pretrained.names`, e.g. ``glyphs-conv4-vsm-1shot``.
        device: auto, cpu or cuda.

    Raises:
        UserError: there is no such model, or its files are damaged.
    """
    if name not in pretrained.names():
        close = difflib.get_close_matches(name, pretrained.names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(pretrained.names()) or 'none'}"
        raise UserError(f"there is no pretrained model {name!r}; {hint}")
    return load_model(pretrained.WEIGHTS / name, device=device)[0]


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, by which a few lines can stand for more than any memory holds; no run has them."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias, which no run writes")
        return super().compose_node(parent, index)


def read_config(folder: Path | str) -> Config:
    """The configuration of a run folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"there is no config.yaml in {folder}; give the folder of a run")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # a SafeLoader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}); restore it") from error
    try:
        config = Config.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(config.systems, list) or not config.systems or not all(s in SYSTEMS for s in config.systems):
        raise UserError(f"{path} names no known systems ({config.systems}); restore it")
    return config


def find_model(path: Path) -> Path:
    """The ``model.safetensors`` that a path means."""
    if path.is_dir():
        if (path / "model.safetensors").exists():
            return path / "model.safetensors"
        config = path / "config.yaml"
        if config.exists():
            return path / read_config(path).systems[0] / "model.safetensors"
        raise UserError(f"{path} is no run folder: it holds neither model.safetensors nor config.yaml")
    return path
