"""Images in archives, read without unpacking, and archives unpacked whole or not at all."""

from __future__ import annotations

import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from pyro_vsm.data.class_files import ENDINGS
from pyro_vsm.data.decode import foreign_content
from pyro_vsm.errors import UserError

_MOST_MEMBERS = 2_000_000
_MOST_BYTES = 512 << 20  # of one member

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError,
    RuntimeError, ValueError, OverflowError,
)  # fmt: skip


class ImageZip:
    """The image files in a zip file.

    Args:
        path: of the zip file.

    Raises:
        UserError: if it is missing, no zip file, or holds absurdly many files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, *_BROKEN) as error:
            raise _broken(path, error) from error
        if len(self._zip.namelist()) > _MOST_MEMBERS:
            raise UserError(f"{path} claims {len(self._zip.namelist())} files: get it from a source you trust")

    def names(self) -> list[str]:
        """The members that are images by their ending, hidden ones left out, sorted."""
        return sorted(
            name
            for name in self._zip.namelist()
            if Path(name).suffix.lower() in ENDINGS
            and not any(p.startswith((".", "__MACOSX")) for p in name.split("/"))
        )

    def read(self, name: str) -> bytes:
        """The bytes of one member; its checksum is verified.

        Raises:
            UserError: if it is damaged or absurdly large.
        """
        try:
            if self._zip.getinfo(name).file_size > _MOST_BYTES:
                raise UserError(f"{self.path}: {name} claims more than {_MOST_BYTES >> 20} MiB: refused")
            return self._zip.read(name)
        except (OSError, KeyError, *_BROKEN) as error:
            raise _broken(self.path, error) from error


def read_tar_members(path: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    """Some files of a tar file, in memory.

    Args:
        path: of the file, compressed or not.
        wanted: what to call a member -> its name in the archive.

    Raises:
        UserError: if one is missing, or the file is damaged.
    """
    found = {}
    try:
        with tarfile.open(path) as archive:
            for name, member in wanted.items():
                file = archive.extractfile(member)
                if file is None or archive.getmember(member).size > _MOST_BYTES:
                    raise UserError(f"{path}: {member} is no file, or too large: download it again")
                found[name] = file.read()
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}: is it another archive?") from error
    except (OSError, *_BROKEN) as error:
        raise _broken(path, error) from error
    return found


def unpack_tar(path: Path, folder: str) -> Path:
    """Unpacks the one folder of a tar file beside it; what an interrupted attempt left is replaced.

    Args:
        path: of the file, compressed or not.
        folder: the folder in the archive, which gets this name beside the archive, too.

    Returns:
        The folder.

    Raises:
        UserError: if the archive is damaged, lacks the folder, or would write elsewhere; or the disk is full.
    """
    target = path.parent / folder
    temporary = path.parent / f".{folder}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(path) as archive:
            archive.extractall(temporary, filter="data")  # refuses absolute paths, links out of it, devices
        if not (temporary / folder).is_dir():
            raise UserError(f"{path} lacks the folder {folder}: is it another archive?")
        (temporary / folder).replace(target)
    except (OSError, *_BROKEN) as error:
        raise _broken(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _broken(path: Path, error: BaseException) -> UserError:
    problem = None
    if path.is_file():
        with path.open("rb") as file:
            problem = foreign_content(file.read(256))
    if problem:
        return UserError(f"{path} {problem}")
    return UserError(f"{path} cannot be read as an archive ({type(error).__name__}: {error}): download it again")
