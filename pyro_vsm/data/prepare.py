"""Getting a data set ready: fetching it, checking it, showing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyro_vsm.data.archives import unpack_tar
from pyro_vsm.data.catalogue import Entry, entry
from pyro_vsm.data.contact_sheet import contact_sheet
from pyro_vsm.data.download import WrongChecksum, download, md5_of, verify
from pyro_vsm.data.images import Splits
from pyro_vsm.data.sources import DataConfig, load
from pyro_vsm.errors import UserError

Log = Callable[[str], None]


def prepare(config: DataConfig, *, fetch: bool = True, log: Log = print) -> Splits:
    """Makes a data set ready to be trained on: fetched where that is possible, and decoded into the cache.

    Args:
        config: the data set; its root is made if files are fetched into it.
        fetch: download what is missing and can be.
        log: receives what a user should read.

    Raises:
        UserError: if it is not there and cannot be fetched, or something is wrong with it.
    """
    known = entry(config.name, config.variant)
    if known is None:
        return load(config, log)  # says what data sets there are
    try:
        if not config.root or Path(config.root).expanduser().is_dir():
            _compare(known, Path(config.root or ".").expanduser(), log)
            return load(config, log)
        raise UserError(f"{config.root} does not exist: set root to where the images lie")
    except UserError as error:
        if not known.files:
            raise
        log(known.how)
        if not fetch or not known.downloadable or not config.root:
            for file in known.files:
                log(f"  {file.name}  md5 {file.md5}  {file.url or ''}".rstrip())
            raise
        log(f"Not ready yet: {error}")
    root = Path(config.root).expanduser()
    for file in known.files:
        assert file.url is not None
        path = download(file.url, root / file.name, file.md5, log)
        if known.unpack and not (root / known.unpack).is_dir():
            log(f"Unpacking {path}")
            unpack_tar(path, known.unpack)
    return load(config, log)


def _compare(known: Entry, root: Path, log: Log) -> None:
    """Says of each published file under the root whether it is that; another may be as good, packed anew say."""
    for file in known.files:
        path = root / file.name
        if path.is_file():
            found = md5_of(path)
            same = (
                "has the published checksum" if found == file.md5 else f"is another file than published (md5 {found})"
            )
            log(f"{file.name} {same}")


def check(config: DataConfig, log: Log = print) -> None:
    """Compares a data set with what is published of it, and reports every point.

    Points are the checksums of published files that lie under the root, that all images can be read, and the number
    of classes and images of each split. Images that cannot be read are errors whatever `bad_files` says.

    Raises:
        UserError: if a point is wrong; its message counts them.
    """
    known = entry(config.name, config.variant) or Entry("")
    wrong: list[str] = []

    def report(good: bool, line: str) -> None:
        log(f"{'ok   ' if good else 'WRONG'} {line}")
        if not good:
            wrong.append(line)

    root = Path(config.root or ".").expanduser()
    for file in known.files:
        if not (root / file.name).is_file():
            log(f"-     {file.name} is not there, so its checksum is not compared")
            continue
        try:
            verify(root / file.name, file.md5)
            report(True, f"{file.name} has the published checksum")
        except WrongChecksum as error:
            report(False, str(error))
    try:
        splits = load(config, log)
    except UserError as error:
        report(False, str(error))
    else:
        report(True, "all images can be read")
        for part, data in splits.parts.items():
            line = f"{part}: {data.n_classes} classes, {len(data.images)} images"
            if known.published is None or config.rotations is not None:
                log(f"-     {line}; nothing is published to compare with")
                continue
            classes, images = known.published[part]
            good = data.n_classes == classes and images in (None, len(data.images))
            report(good, f"{line} (published: {classes} classes, {images or 'unknown how many'} images)")
        if known.total is not None:
            total = sum(len(data.images) for data in splits.parts.values())
            report(total == known.total, f"{total} images in all (published: {known.total})")
    if wrong:
        raise UserError(f"{config.name}: {len(wrong)} of the points above are wrong, the first: {wrong[0]}")


def draw_sheets(splits: Splits, folder: Path, log: Log = print) -> None:
    """A contact sheet of each split, `NAME-SPLIT.png`."""
    for part, data in splits.parts.items():
        path = contact_sheet(data, folder / f"{splits.name}-{part}.png")
        log(f"Wrote {path}")
