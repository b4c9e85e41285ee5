"""Model cards: what a pretrained model is, how it was made, and what it was measured to do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pyro_vsm import report
from pyro_vsm.config import Config

_DATA = {
    "glyphs": "Letters rendered from the DejaVu fonts that matplotlib ships (free licence); grey, white on black.",
    "colour-glyphs": "Letters rendered from the DejaVu fonts that matplotlib ships (free licence), in colours and "
    "textures.",
    "mini-imagenet": "miniImageNet (Vinyals et al. 2016, split of Ravi and Larochelle 2017), photographs of "
    "ImageNet; its terms allow research that is not commercial.",
}


def measured(
    folder: Path,
    meta: dict[str, Any],
    shots: list[int] | None,
    *,
    root: str | None = None,
    device: str = "auto",
    log: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and notes of a table: the model in ``folder`` on the test protocol of its run, at each number of shots."""
    from pyro_vsm import jobs
    from pyro_vsm.cross_domain import DataChoice

    config = Config.from_dict(meta["config"])
    rows = []
    for shot in shots or [config.evaluation.shot or config.episodes.shot]:
        protocol = config.evaluation
        protocol.shot = shot
        protocol.way = protocol.way or config.episodes.way
        with tempfile.TemporaryDirectory() as scratch:
            choice = DataChoice(root=root)
            results = jobs.evaluate([str(folder)], protocol, choice=choice, out=scratch, device=device, log=log)
        (result,) = results.values()
        rows.append(
            {
                "way": result.way,
                "shot": result.shot,
                **{metric: result.interval(metric) for metric in ("accuracy", "nll", "brier")},
                "ece": result.ece,
            }
        )
    e = config.evaluation
    return rows, [
        f"{e.episodes} {e.split} episodes of {e.queries} queries a class, seed {e.seed}, {e.samples} posterior "
        "samples; ± is the 95 % interval over episodes. Measured with these files, after rounding to half precision.",
        f"One training seed ({config.training.seed}).",
    ]


def model_card(
    name: str, meta: dict[str, Any], rows: list[dict[str, Any]], notes: list[str], files: list[Path]
) -> str:
    """The card as Markdown.

    Args:
        name: of the pretrained model.
        meta: of its checkpoint: system, configuration, image spec, data identity, versions.
        rows: of the table of measurements.
        notes: below the table.
        files: of the weights.
    """
    config = Config.from_dict(meta["config"])
    images, data = meta["images"], config.data.name
    recipe = changed(meta["config"], Config().to_dict())
    recipe["systems"] = [meta["system"]]
    colour = "grey" if images["channels"] == 1 else "colour"
    identity = "\n".join(
        f"- {split}: {i['classes']} classes, {i['images']} images, sha256 {i['sha256'][:12]}"
        for split, i in meta["data"].items()
    )
    size = sum(p.stat().st_size for p in files) / 2**20
    versions = ", ".join(f"{k} {v}" for k, v in meta.get("versions", {}).items())
    return f"""# {name}

System `{meta["system"]}` for {colour} images of {images["size"]}×{images["size"]} pixels (others are scaled and
cropped), trained on {images["classes"]} classes of `{data}`. {len(files)} file(s), {size:.2f} MiB.

```python
model = pyro_vsm.load_pretrained("{name}")
```

## Data

{_DATA.get(data, "")}

{identity}

## Recipe

```yaml
{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()}
```

Save it as `recipe.yaml` and run `pyro-vsm train --config recipe.yaml`{_root(data)};
`pyro-vsm export RUN/{meta["system"]} {name}` then writes these files. Trained with {versions}.

## Measured

{report.to_markdown(rows, notes=notes).strip()}

Classes were never seen in training. The model knows no more of the world than its training data: expect less where
pictures differ from them, and look at the probabilities before relying on a prediction.
"""


def _root(data: str) -> str:
    return "" if data in ("glyphs", "colour-glyphs") else " with `--data.root` set to the data"


def changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults, without those that only say where things lie."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key == "init" and value:
            value = str(Path(*Path(value).parts[-2:]))  # of a path only what tells what it is
        if key in ("root", "cache", "threads", "device") and not isinstance(value, dict):
            continue
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            inner = changed(value, default)
            if inner:
                result[key] = inner
        elif (list(value) if isinstance(value, tuple) else value) != (
            list(default) if isinstance(default, tuple) else default
        ):
            result[key] = list(value) if isinstance(value, tuple) else value
    return result
