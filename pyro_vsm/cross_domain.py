"""Which images trained models are evaluated on: those they were trained on, or another data set made to fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional

from pyro_vsm import data as data_sources
from pyro_vsm.config import Config
from pyro_vsm.data import DataConfig
from pyro_vsm.data.images import ClassImages
from pyro_vsm.data.matching import matched
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.run import differing


@dataclass
class DataChoice:
    """What to evaluate on, where that is not the data set of the training as it was.

    Args:
        name: another data set; its images are given the channels and the size of those the model was trained on.
        root: folder of the data set, if it has moved or is another.
        variant: see data.variant of pyro-vsm train.
        rotations: see data.rotations there.
        grouped: all classes of an episode from one group, an alphabet of omniglot for one.
        split: see data.split there.
        bad_files: stop or skip.
        all_classes: of another data set, take the classes of all its splits, none of which the model has seen.
    """

    name: Optional[str] = None  # noqa: UP045  jsonargparse reads this form on Python 3.10
    root: Optional[str] = None  # noqa: UP045
    variant: Optional[str] = None  # noqa: UP045
    rotations: Optional[Literal["none", "train", "all"]] = None  # noqa: UP045
    grouped: Optional[bool] = None  # noqa: UP045
    split: Optional[tuple[float, float, float]] = None  # noqa: UP045
    bad_files: Optional[Literal["stop", "skip"]] = None  # noqa: UP045
    all_classes: bool = False


def evaluation_images(
    paths: Sequence[str], metas: Sequence[dict[str, Any]], split: str, choice: DataChoice, log: Callable[[str], None]
) -> tuple[ClassImages, list[str]]:
    """Loads the images to evaluate on.

    Args:
        paths: the checkpoints.
        metas: what each says of itself; the first decides where there is a choice.
        split: test or validation.
        choice: the data set.
        log: receives what a user should read.

    Returns:
        The images of the split, and lines to print under the table.

    Raises:
        UserError: missing data, or a choice that does not go with the training.
    """
    trained = Config.from_dict(metas[0]["config"]).data
    given = {
        f.name: getattr(choice, f.name)
        for f in fields(DataConfig)
        if hasattr(choice, f.name) and getattr(choice, f.name) is not None
    }
    other = choice.name is not None and (choice.name != trained.name or choice.root not in (None, trained.root))
    if choice.all_classes and not other:
        raise UserError(
            f"all_classes would include the training classes of {trained.name!r}: give another data set with "
            "--data.name and --data.root"
        )
    if other:
        size = max(int(meta["images"]["size"]) for meta in metas)
        config = DataConfig(**{"image_size": size, "cache": trained.cache, "threads": trained.threads, **given})
    else:
        config = replace(trained, **given)
    data = data_sources.load(config, log)
    images = data.together() if choice.all_classes else getattr(data, split)
    notes = []
    if other:
        classes = "all classes" if choice.all_classes else f"the {split} classes"
        notes.append(f"Trained on {trained.name}, evaluated on {classes} of {data.name}.")
    identity = {s: i.to_dict() for s, i in data.identity.items()}
    for path, meta in zip(paths, metas):
        shape = (meta["images"]["channels"], meta["images"]["size"], meta["images"]["size"])
        if images.image_shape != shape:
            notes.append(f"{Path(path).name} is given the images as {'x'.join(map(str, shape))}.")
        if not other and meta["data"] != identity:
            log(
                f"Note: {path} was trained on other images than these "
                f"({', '.join(differing(meta['data'], identity, 'data')[:3])})."
            )
    return images, notes


def fitted(data: ClassImages, model: FewShotModel) -> ClassImages:
    """The images in the channels and the size that the model takes."""
    backbone = model.encoder.backbone
    return matched(data, backbone.channels, backbone.image_size)
