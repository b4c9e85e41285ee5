"""TABLE.yaml: which systems, under which settings and training seeds, make up a table of results::

    title: 5-way 1-shot on miniImageNet
    base: ../conv4_1shot.yaml              # settings of every row: a file, from this one's folder, or written out
    set: {training.lr: 5e-4}               # laid over base, not over a base of a row's own
    seeds: [0, 1, 2]
    reference: pn                          # paired differences are to this row
    protocols: [{way: 5, shot: 1}]         # by default the way and shot of the base
    unknown: true                          # also: are queries of other classes told from those of the task
    temperature_episodes: 2000             # validation episodes that each temperature is fitted to; 0 for none
    uses: pretrained.yaml                  # that table's rows which are not shown stand before these
    folds: 4                               # cross-validate over the training classes: seed s leaves fold s mod 4 out
    notes: [what a reader must know]
    rows:
      - {name: pretrained, system: classifier, base: ../pretrain.yaml, shown: false}
      - {name: pn, system: pn, label: PN, paper: 47.40, set: {training.init: run:pretrained}}
      - {name: vsm, system: vsm, label: VSM, paper: {1: 54.73}, set: {model: {memory_use: latent}}, note: attention}

A setting ``run:NAME`` stands for what an earlier row trained with the same seed; a row that is not ``shown`` is
trained for that alone. ``file:PATH`` is a file, from this one's folder; ``{seed}`` in it is that of the training.
``paper`` is a percentage, or one a number of shots; ``protocols`` in a row restricts it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vsm.errors import UserError
from pyro_vsm.reading import bool_of, count_of, list_of, mapping, only, text_of, whole
from pyro_vsm.settings import load_yaml, put, read_settings
from pyro_vsm.systems import SYSTEMS
from pyro_vsm.tables.rows import Protocol, Row, Table

_TABLE = {
    "title",
    "base",
    "set",
    "seeds",
    "reference",
    "protocols",
    "unknown",
    "temperature_episodes",
    "folds",
    "uses",
    "notes",
    "rows",
}
_ROW = {"name", "system", "label", "paper", "set", "note", "base", "protocols", "shown"}
_SHORT = "; see the head of pyro_vsm/tables/definition.py for an example"


def read_table(
    path: Path | str,
    *,
    seeds: Sequence[int] | None = None,
    override: Mapping[str, Any] | None = None,
    users: Sequence[Path] = (),
) -> Table:
    """Read a table's definition and build every configuration once, so that no mistake is found late.

    Args:
        path: TABLE.yaml.
        seeds: instead of those in the file.
        override: dotted settings laid over those of every row.
        users: the tables that use this one.

    Raises:
        UserError: what is wrong in it, and where.
    """
    path = Path(path)
    text = mapping(load_yaml(path), str(path))
    only(text, _TABLE, str(path))
    rows_text = text.get("rows")
    if not isinstance(rows_text, list) or not rows_text:
        raise UserError(f"{path}: rows must be a list with at least one row{_SHORT}")
    if "base" not in text:
        raise UserError(f"{path}: base is missing; give the settings of all rows, or the file that holds them")
    base = _base(text["base"], path)
    for name, value in mapping(text.get("set", {}), f"{path}: set").items():
        put(base, name, value, str(path))
    for name, value in (override or {}).items():
        put(base, name, value, "override")
    shared = read_settings(base, f"{path}: base")
    e = shared.evaluation
    default = Protocol(e.way or shared.episodes.way, e.shot or shared.episodes.shot)
    protocols = _protocols(text.get("protocols"), (default,), str(path))
    seeds = _seeds(text.get("seeds", [0]) if seeds is None else list(seeds), path)
    folds = count_of(text.get("folds", 0), "folds", path)
    rows = _used(text["uses"], path, seeds, override, users) if "uses" in text else []
    for row in rows:
        if row.settings["data"] != shared.to_dict()["data"] or row.folds != folds:
            raise UserError(f"{path}: row {row.name!r} has other data than base; a table has one data set")
    for number, values in enumerate(rows_text):
        where = f"{path}: row {number + 1}"
        row = _row(mapping(values, where), base, path, where, protocols, override or {}, folds)
        if any(row.name == r.name for r in rows):
            raise UserError(f"{path}: there are two rows {row.name!r}; give each a name of its own")
        for needed in row.needs:
            if needed not in [r.name for r in rows]:
                raise UserError(f"{path}: row {row.name!r} needs run:{needed}, but no row above it has that name")
        for seed in seeds:  # each, as files are named by seed
            row.config(seed, Path)
        rows.append(row)
    table = Table(
        path,
        title=text_of(text.get("title", path.stem), "title", path),
        seeds=seeds,
        reference=text_of(text.get("reference", ""), "reference", path) or _first_shown(rows, path),
        protocols=protocols,
        unknown=bool_of(text.get("unknown", False), "unknown", path),
        temperature_episodes=count_of(text.get("temperature_episodes", 1000), "temperature_episodes", path),
        folds=folds,
        rows=tuple(rows),
        notes=tuple(text_of(n, "notes", path) for n in list_of(text.get("notes", []), "notes", path)),
    )
    if not table.row(table.reference).shown:
        raise UserError(f"{path}: the reference {table.reference!r} is not shown; choose a row that is")
    return table


def _row(
    values: dict[str, Any],
    base: dict[str, Any],
    path: Path,
    where: str,
    protocols: tuple[Protocol, ...],
    override: Mapping[str, Any],
    folds: int,
) -> Row:
    name = values.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise UserError(f"{where}: its name is {name!r}; give letters, digits, '-', '_' and '.', for a folder")
    where = f"{path}: row {name!r}"
    only(values, _ROW, where)
    system = values.get("system")
    if system not in SYSTEMS:
        raise UserError(f"{where}: there is no system {system!r}; known are {', '.join(sorted(SYSTEMS))}")
    shown = bool_of(values.get("shown", True), "shown", where)
    settings = copy.deepcopy(base) if "base" not in values else _base(values["base"], path)
    for key, value in mapping(values.get("set", {}), f"{where}: set").items():
        if str(key).partition(".")[0] in ("evaluation", "data", "systems"):
            raise UserError(f"{where}: set changes {key}, which the rows of a table share; set it in base")
        put(settings, str(key), value, where)
    if "base" in values:
        settings["data"] = copy.deepcopy(base.get("data", {}))
        if shown:
            settings["evaluation"] = copy.deepcopy(base.get("evaluation", {}))
    for key, value in override.items():
        put(settings, key, value, "override")
    settings["systems"] = [system]
    settings = read_settings(settings, where).to_dict()
    chosen = _protocols(values.get("protocols"), protocols, where)
    if not set(chosen) <= set(protocols):
        raise UserError(f"{where}: protocols must be some of the table's: {', '.join(map(str, protocols))}")
    return Row(
        name,
        system,
        label=text_of(values.get("label", name), "label", where),
        settings=settings,
        paper=_paper(values.get("paper"), chosen, where),
        note=text_of(values.get("note", ""), "note", where),
        protocols=chosen,
        shown=shown,
        folder=path.parent,
        folds=folds,
    )


def _paper(value: Any, protocols: tuple[Protocol, ...], where: str) -> dict[int, float]:
    if value is None:
        return {}
    shots = {p.shot for p in protocols}
    by_shot = {min(shots): value} if isinstance(value, (int, float)) and len(shots) == 1 else value
    if not isinstance(by_shot, dict) or not all(
        k in shots and isinstance(v, (int, float)) and 0 < v < 100 for k, v in by_shot.items()
    ):
        raise UserError(f"{where}: paper is {value!r}; give a percentage, or one by number of shots, {{1: 47.4}}")
    return {k: float(v) for k, v in by_shot.items()}


def _protocols(value: Any, default: tuple[Protocol, ...], where: str) -> tuple[Protocol, ...]:
    if value is None:
        return default
    found: list[Protocol] = []
    for entry in list_of(value, "protocols", where):
        if not isinstance(entry, dict) or set(entry) != {"way", "shot"}:
            raise UserError(f"{where}: a protocol is {entry!r}; give {{way: 5, shot: 1}}")
        way, shot = (count_of(entry[k], f"protocols.{k}", where) for k in ("way", "shot"))
        if way < 2 or shot < 1:
            raise UserError(f"{where}: a protocol is {entry!r}; give at least 2 ways and 1 shot")
        found.append(Protocol(way, shot))
    if not found or len(set(found)) < len(found):
        raise UserError(f"{where}: protocols must name at least one, each once")
    return tuple(found)


def _seeds(value: Any, where: Path) -> tuple[int, ...]:
    seeds = list_of(value, "seeds", where)
    if not seeds or len(set(map(str, seeds))) < len(seeds) or not all(whole(s) and 0 <= s < 2**32 for s in seeds):
        raise UserError(f"{where}: seeds are {seeds}; give at least one, each once, from 0 to 2^32 - 1")
    return tuple(seeds)


def _base(value: Any, path: Path) -> dict[str, Any]:
    """Settings written out, or those of a file named from the table's folder."""
    if isinstance(value, str):
        file = path.parent / value
        if not file.is_file():
            raise UserError(f"{path}: there is no base {file}; name a configuration file from the table's folder")
        value, path = load_yaml(file), file
    return mapping(copy.deepcopy(value), f"{path}: base")


def _used(
    value: Any, path: Path, seeds: Sequence[int], override: Mapping[str, Any] | None, users: Sequence[Path]
) -> list[Row]:
    """The rows of another table that are trained for others alone."""
    file = path.parent / text_of(value, "uses", path)
    if not file.is_file():
        raise UserError(f"{path}: uses names {file}, which is not there; name a table from this one's folder")
    users = [*users, path.resolve()]
    if file.resolve() in users:
        raise UserError(f"{path}: it uses {file}, which uses it in turn; take one of the two out")
    return [row for row in read_table(file, seeds=seeds, override=override, users=users).rows if not row.shown]


def _first_shown(rows: list[Row], path: Path) -> str:
    for row in rows:
        if row.shown:
            return row.name
    raise UserError(f"{path}: no row is shown; leave shown out of those that the table is about")
