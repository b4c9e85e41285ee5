"""Tables of results: for the terminal, Markdown, CSV and JSON.

A row is a mapping from column names to strings, numbers, `Interval`s or None, such as those of
`results.compare`. Text and Markdown are for people: rounded, accuracies in percent, `mean ± half width` of the
95 % interval. CSV and JSON are for programs: every digit, fractions as they are, nothing in percent.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic
from pyro_vsm.metrics import Interval

Value = str | int | float | Interval | None
Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Column:
    """How people read a column: its heading, a factor, the digits after the point, whether to show a plus."""

    heading: str
    factor: float = 1.0
    digits: int = 4
    signed: bool = False


_COLUMNS = {
    "accuracy": _Column("accuracy %", 100, 2),
    "accuracy_difference": _Column("Δ accuracy %", 100, 2, signed=True),
    "nll": _Column("NLL (nats)"),
    "nll_difference": _Column("Δ NLL (nats)", signed=True),
    "ece": _Column("ECE %", 100, 2),
    "brier": _Column("Brier"),
    "auroc": _Column("AUROC %", 100, 2),
    "auroc_difference": _Column("Δ AUROC %", 100, 2, signed=True),
    "accuracy_seed_sd": _Column("sd of seeds %", 100, 2),
    "paper": _Column("paper %", 100, 2),
    "nll_tempered": _Column("NLL, tempered"),
    "ece_tempered": _Column("ECE %, tempered", 100, 2),
    "training_seconds": _Column("training (s)", 1, 0),
}


def _names(rows: Sequence[Row]) -> list[str]:
    """All column names in the order in which they first appear; refuses what cannot be shown."""
    if not rows:
        raise UserError("a table needs at least one row, but there is none")
    for i, row in enumerate(rows):
        for name, value in row.items():
            if not isinstance(value, (str, int, float, Interval, type(None))):
                raise UserError(
                    f"row {i}, column {name!r} holds a {type(value).__name__}: "
                    "a table takes strings, numbers, intervals and None"
                )
    return list(dict.fromkeys(name for row in rows for name in row))


def _column(name: str) -> _Column:
    return _COLUMNS.get(name, _Column(name.replace("_", " ")))


def _shown(name: str, value: Value) -> str:
    column = _column(name)
    number = f"{'+' if column.signed else ''}.{column.digits}f"
    if isinstance(value, Interval):
        half = f"{column.factor * value.half_width:.{column.digits}f}"
        return f"{column.factor * value.mean:{number}} ± {half if math.isfinite(value.half_width) else 'n/a'}"
    if isinstance(value, float):
        return f"{column.factor * value:{number if name in _COLUMNS else '.4g'}}"
    return "–" if value is None else " ".join(str(value).split())


def _table(rows: Sequence[Row], style: str, escape: bool = False) -> str:
    names = _names(rows)
    headings = [_column(name).heading for name in names]
    cells = [[_shown(name, row.get(name)) for name in names] for row in rows]
    if escape:
        headings, *cells = ([_escaped(cell) for cell in line] for line in [headings, *cells])
    text = [all(isinstance(row.get(name), (str, type(None))) for row in rows) for name in names]
    align = ["left" if t else "right" for t in text]
    return tabulate(cells, headings, tablefmt=style, disable_numparse=True, colalign=align)


def _escaped(cell: str) -> str:
    """Keeps a cell from breaking a Markdown table or turning into markup."""
    for sign in "\\|*_`<[":
        cell = cell.replace(sign, f"\\{sign}")
    return cell


def to_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    return _table(rows, "simple")


def to_markdown(rows: Sequence[Row], title: str = "", notes: Sequence[str] = ()) -> str:
    """The table as GitHub-flavoured Markdown, under a title and above a list of notes."""
    table = _table(rows, "pipe", escape=True)
    parts = [f"# {title}"] * bool(title) + [table] + ["\n".join(f"- {note}" for note in notes)] * bool(notes)
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV: an interval takes the columns `name` (mean) and `name_95` (half width); None is empty."""
    names = _names(rows)
    wide = {name for name in names if any(isinstance(row.get(name), Interval) for row in rows)}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([title for name in names for title in ([name, f"{name}_95"] if name in wide else [name])])
    for row in rows:
        cells: list[Value] = []
        for name in names:
            value = row.get(name)
            if isinstance(value, Interval):
                cells += [value.mean, value.half_width if math.isfinite(value.half_width) else None]
            else:
                cells += [value, None] if name in wide else [value]
        writer.writerow(cells)
    return out.getvalue()


def to_json(rows: Sequence[Row], title: str = "", notes: Sequence[str] = ()) -> str:
    """The table as JSON: `title`, `notes` and `rows`; an interval is an object of `mean`, `half_width` and `n`.

    What is not finite becomes null.
    """
    names = _names(rows)

    def plain(value: Value) -> Any:
        if isinstance(value, Interval):
            return {key: plain(number) for key, number in asdict(value).items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    content = {
        "title": title,
        "notes": list(notes),
        "rows": [{name: plain(row.get(name)) for name in names} for row in rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def narrowed(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with these columns only, without those that no row fills."""
    kept = [c for c in columns if any(row.get(c) is not None for row in rows)]
    return [{c: row.get(c) for c in kept} for row in rows]


def write_report(
    rows: Sequence[Row],
    folder: Path | str,
    stem: str,
    title: str = "",
    notes: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> list[Path]:
    """Writes `stem`.md, `stem`.csv and `stem`.json into a folder, which is made if missing.

    Args:
        rows: the table.
        folder: where to.
        stem: file name without ending.
        title: heading in Markdown and JSON.
        notes: remarks below the table: the command, the data, what is left out.
        columns: for people, in Markdown; all where none are named.

    Returns:
        The three paths.

    Raises:
        UserError: if there is no row, a value cannot be shown, `stem` is no file name or a file cannot be written.
    """
    if not stem or Path(stem).name != stem:
        raise UserError(f"the report's stem is {stem!r}: give a file name without folder and ending")
    contents = {
        ".md": to_markdown(narrowed(rows, columns) if columns else rows, title, notes),
        ".csv": to_csv(rows),
        ".json": to_json(rows, title, notes),
    }
    return [write_atomic(Path(folder) / f"{stem}{end}", text.encode()) for end, text in contents.items()]
