"""A picture of a data set: some images of some classes, a row a class, to look at before training."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError

_SIDE = 84  # smaller images are enlarged by a whole factor up to about this


def contact_sheet(data: ClassImages, path: str | os.PathLike[str], rows: int = 8, columns: int = 12) -> Path:
    """Writes a picture with `rows` classes, spread evenly over all, and the first `columns` images of each.

    Args:
        data: the images, one or three channels.
        path: of the picture; its ending chooses the format.
        rows: classes shown, at most.
        columns: images of a class shown, at most.

    Returns:
        The path.

    Raises:
        UserError: if the picture cannot be written.
    """
    if rows < 1 or columns < 1:
        raise UserError(f"a contact sheet of {rows} rows and {columns} columns is empty: ask for one or more of each")
    channels, height, width = data.image_shape
    if channels not in (1, 3):
        raise UserError(f"images of {channels} channels cannot be shown: a contact sheet needs one or three")
    factor = max(1, _SIDE // max(height, width))
    cell_h, cell_w, gap, label = height * factor, width * factor, 4, 18
    counts, offsets = data.counts.tolist(), data.offsets.tolist()
    shown = np.unique(np.linspace(0, data.n_classes - 1, min(rows, data.n_classes)).round().astype(int)).tolist()
    columns = min(columns, max(counts[c] for c in shown))
    row_h = cell_h + label + gap
    sheet = Image.new("RGB", (columns * (cell_w + gap) + gap, len(shown) * row_h + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 12)
    for row, c in enumerate(shown):
        top = gap + row * row_h
        draw.text((gap, top + 1), f"{c}: {data.names[c]} ({counts[c]})", font=font, fill="black")
        images = data.images[offsets[c] : offsets[c] + min(columns, counts[c])]
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        for column, image in enumerate(pixels):
            cell = Image.fromarray(np.ascontiguousarray(image)).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(cell, (gap + column * (cell_w + gap), top + label))
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(temporary)
        os.replace(temporary, target)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)
        raise UserError(f"the contact sheet cannot be written to {target}: {error}") from error
    return target
