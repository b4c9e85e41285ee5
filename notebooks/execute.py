"""Runs the notebooks: python notebooks/execute.py [NAME.ipynb ...] writes their outputs into them.

Needs ``pip install -e '.[test]'``. The tests run the notebooks by the same function, and keep nothing.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
LIMIT = 300  # seconds a cell


def execute(path: Path, limit: int = LIMIT) -> nbformat.NotebookNode:
    """The notebook with its outputs, as a reader should see them.

    Args:
        path: of the notebook.
        limit: seconds a cell.

    Raises:
        CellExecutionError: a cell fails.
        CellTimeoutError: a cell takes longer.
    """
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=limit, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    notebook.metadata.language_info = {"name": "python"}  # not the version that happened to be there
    return notebook


def _tidy(outputs: list) -> list:
    """Streams joined, progress bars in their last state only."""
    kept: list = []
    for out in outputs:
        if out.output_type == "stream" and kept and kept[-1].get("name") == out.name:
            kept[-1].text += out.text
        else:
            kept.append(out)
    for out in kept:
        if out.output_type == "stream":
            out.text = re.sub(r"[^\n]*\r(?=[^\n])", "", out.text)  # as a terminal shows it
        elif "image/png" in out.get("data", {}):
            out.data["image/png"] = _light(out.data["image/png"])
    return [out for out in kept if out.get("text", "x").strip()]


def _light(png: str) -> str:
    """The figure in 128 colours, which makes files a third of the size."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    out = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    """Run and write."""
    paths = [HERE / Path(name).name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        start = time.perf_counter()
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
