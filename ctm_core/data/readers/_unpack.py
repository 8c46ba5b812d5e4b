"""The pictures of a zip or tar archive, unpacked into a folder.

Names are checked first: an archive that would write outside the folder, or holds links or devices,
is refused as a whole.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ctm_core.data.picture_files import LARGEST_FILE
from ctm_core.runtime.arrays import LARGEST_COMPRESSION, SMALL
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import identity, read_json, remove_tree, sha256_file, write_json
from ctm_core.runtime.untrusted import open_regular, printable

ZSTD = b"\x28\xb5\x2f\xfd"


def unpack(archive: Path, folder: Path) -> str:
    """Unpack every file of an archive below ``folder``, or keep what a killed call finished.

    Returns
    -------
    str
        The archive's SHA-256.

    Raises
    ------
    UserError
        If the archive is damaged, changes meanwhile, or a member's name leads outside.
    """
    before, done = identity(archive), folder.with_name(f"{folder.name}.json")
    record = {"sha256": sha256_file(archive)}
    if done.is_file() and folder.is_dir() and read_json(done) == record:
        return record["sha256"]
    remove_tree(folder)
    folder.mkdir(parents=True)
    limit = SMALL + LARGEST_COMPRESSION * before[2]
    try:
        with open_regular(archive) as file:
            for name, size, content in _members(file):
                place = _place(name)
                limit -= size
                if limit < 0 or size > LARGEST_FILE:
                    raise ValueError(f"{name} unpacks to more than a picture or its share")
                if place is None:
                    continue
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as unpacked:
                    while block := content.read(2**20):
                        unpacked.write(block)
                if target.stat().st_size != size:
                    raise ValueError(f"{name} is not as long as announced")
    except (UserError, MemoryError):
        raise
    except FileExistsError as error:
        name = str(Path(str(error.filename)).relative_to(folder))
        raise UserError(f"{archive} holds {printable(name)} twice; pack it again") from None
    except Exception as error:  # what zipfile, tarfile and their codecs raise has no end
        if isinstance(error, OSError) and error.errno:
            raise
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 160)
        raise UserError(
            f"{archive} cannot be unpacked as a zip or tar archive ({reason}); pack it again"
        ) from None
    if identity(archive) != before:
        raise UserError(f"{archive} changed while it was read; run again when it is complete")
    write_json(done, record)
    return record["sha256"]


def _members(file: Any) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every regular file."""
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"PK":
        with zipfile.ZipFile(file) as packed:
            for entry in packed.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ValueError(f"{entry.filename} is a link or a device")
                _place(entry.filename)
                if not entry.is_dir():
                    with packed.open(entry) as content:
                        yield entry.filename, entry.file_size, content
        return
    if start == ZSTD:
        raise ValueError("zstd is not read; unpack it with `tar --zstd -xf` and name the folder")
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            _place(member.name)
            if member.isdir():
                continue
            extracted = archive.extractfile(member) if member.isreg() else None
            if extracted is None:
                raise ValueError(f"{member.name} is a link or a device")
            yield member.name, member.size, extracted


def _place(name: str) -> PurePosixPath | None:
    """Where a member belongs below the folder; None for what macOS adds."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[:1]:
        raise ValueError(f"{name} leads outside the archive")
    if not name.isprintable() or name[1:2] == ":":
        raise ValueError(f"{name} is not a name")
    return None if path.parts[:1] == ("__MACOSX",) or not path.parts else path
