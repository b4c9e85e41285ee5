"""Making a pretrained model of a trained one: small files and a card of what they were measured to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_vsm import pretrained
from pyro_vsm.cards import measured, model_card
from pyro_vsm.files import write_atomic
from pyro_vsm.loading import load_model


def export(
    source: Path | str,
    name: str,
    *,
    folder: Path = pretrained.WEIGHTS,
    shots: list[int] | None = None,
    root: str | None = None,
    device: str = "auto",
    note: str = "",
    half: bool = True,
    log: Callable[[str], None] = print,
) -> Path:
    """Make a pretrained model of a trained one, with a model card of what the written files were measured to do.

    Args:
        source: run folder, system folder or model file.
        name: of the pretrained model.
        folder: of all weights.
        shots: to measure at, on the test protocol of the run; by default that of its training.
        root: where the data set lies now.
        device: to measure on.
        note: a remark for the card: limitations, origin, licence of the data.
        half: keep matrices in half precision.
        log: receives what a user should read.

    Returns:
        The folder of the model.

    Raises:
        UserError: a damaged or foreign checkpoint, missing data, files that cannot be written.
    """
    model, meta = load_model(source)
    pretrained.write(name, dict(model.state_dict()), _without_paths(meta), folder, half=half)
    root = root or meta["config"]["data"]["root"]
    rows, notes = measured(folder / name, meta, shots, root=root, device=device, log=log)
    files = pretrained.files(folder / name)
    text = model_card(name, meta, rows, [*notes, *([note] if note else [])], files)
    write_atomic(folder / name / "README.md", text.encode())
    log(f"Wrote {folder / name}: {sum(p.stat().st_size for p in files) / 2**20:.2f} MiB in {len(files)} file(s)")
    return folder / name


def _without_paths(meta: dict[str, Any]) -> dict[str, Any]:
    """Of a checkpoint, without where things lay on the machine of its training."""
    config = copy.deepcopy(meta["config"])
    config["data"]["root"] = None
    for section, name in (("training", "init"), ("classifier", "teacher")):
        if given := config[section][name]:
            short = ["/".join(Path(path).parts[-2:]) for path in ([given] if isinstance(given, str) else given)]
            config[section][name] = short[0] if isinstance(given, str) else short
    return {**meta, "config": config}
