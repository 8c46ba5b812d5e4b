"""Ask a DVC remote for what `dvc push` and `dvc pull` need of it, and answer in one sentence.

    python workflow/scripts/check_remote.py [NAME] [--pull]

DVC's own answer to a remote that refuses is an "unexpected error" without the remote's name, or a
line for every file. NAME is by default the default remote; with --pull nothing is written to it.
Nothing stays on the remote, and nothing here changes. Ends with 0 if the remote serves, else 2.
"""

import argparse
import errno
import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dvc.config import ConfigError
from dvc.exceptions import DvcException
from dvc.repo import Repo

PROBE = ".check-remote"

_SILENT = "there is no answer; correct the address, or try again where it can be reached"
_REFUSED = "access is refused; correct the credentials, or ask its owner for access"
_BUCKET = "the bucket does not exist; create it or correct the URL"
# By what the libraries of clouds write, whatever class they raise.
_WRITTEN = {
    "NoSuchBucket": _BUCKET,
    "bucket does not exist": _BUCKET,
    "Unable to locate credentials": "there are no credentials; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or name a profile by `dvc remote modify --local`",
    "Forbidden": _REFUSED,
    "AccessDenied": _REFUSED,
    "Unauthorized": _REFUSED,
    "Cannot connect to host": _SILENT,
    "Could not connect to": _SILENT,
    "ConnectTimeout": _SILENT,
    "ServerTimeout": _SILENT,
    "ReadTimeout": _SILENT,
}
_WRITABLE = "it may not be written to; ask its owner for access, or choose another folder"
_SYSTEM = {
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EROFS: "it is on a read-only file system; choose a folder you can write to",
    errno.ENOTDIR: "a part of the path is a file, not a folder; correct the URL",
    errno.ENOENT: "there is no such folder and none can be made; correct the URL",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
}


def refuse(sentence: str) -> NoReturn:
    """End as `ctm` does on a user's mistake."""
    print(f"check_remote: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(2)


def known_reason(error: BaseException | None) -> str | None:
    """Why a remote refuses and what to do, from an error or those it came from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    for text in (f"{type(e).__name__} {e}" for e in seen):
        for written, sentence in _WRITTEN.items():
            if written in text:
                return sentence
    numbers = (e.errno for e in seen if isinstance(e, OSError))
    return next((_SYSTEM[number] for number in numbers if number in _SYSTEM), None)


def try_to_read(remote: Any) -> None:
    """Ask for a file that is not there: that it is not is the right answer."""
    try:
        remote.fs.info(remote.fs.join(remote.path, PROBE))
    except FileNotFoundError as error:
        if known_reason(error) in (_SILENT, _BUCKET, _REFUSED):
            raise


def try_to_write(remote: Any) -> None:
    """Write a byte and take it away again; in a folder without making one."""
    folder = remote.path
    if remote.fs.protocol == "local":
        folder = next(str(p) for p in (Path(folder), *Path(folder).parents) if p.exists())
    probe = remote.fs.join(folder, PROBE)
    remote.fs.pipe_file(probe, b".")
    with suppress(Exception):  # some may write but not remove; the next probe replaces it
        remote.fs.rm_file(probe)


def check(repo: Repo, name: str, writing: bool) -> str:
    """What the remote serves for, as a sentence."""
    remote = repo.cloud.get_remote(name)
    try_to_read(remote)
    # A web server takes files but removes none.
    writing = writing and remote.fs.protocol not in ("http", "https")
    if writing:
        try_to_write(remote)
    state = repo.status(cloud=True, remote=name)
    if lost := [path for path, found in state.items() if found == "missing"]:
        refuse(
            f"{len(lost)} files of this version, {min(lost)} among them, are neither here nor on "
            f"{name}: run `dvc push` where they were made, or `dvc repro` here"
        )
    here, there = ([p for p, found in state.items() if found == s] for s in ("new", "deleted"))
    parts = [
        f"{name} can be read{' and written' if writing else ', writing was not tried'}",
        *([f"{len(here)} files are only here, and `dvc push` adds them"] if here else []),
        *([f"{len(there)} files are only there, and `dvc pull` brings them"] if there else []),
    ]
    return "; ".join(parts if here or there else [*parts, "it holds this version"])


def main() -> None:
    """Parse the command line, ask, and end with a sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", help="one of `dvc remote list`")
    parser.add_argument("--pull", action="store_true", help="do not try to write")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # DVC's lines, one a file
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
    try:
        with Repo() as repo:
            name = options.name or repo.config["core"].get("remote")
            if not name:
                refuse("there is no remote; add one by `dvc remote add --default NAME URL`")
            settings = repo.config["remote"].get(name, {})
            if "url" not in settings:
                refuse(f"there is no remote {name}; `dvc remote list` shows those that are")
            where = f"{name} ({re.sub('//[^/@]*@', '//', settings['url'])})"
            # Minutes by default, in which nothing is said.
            if settings["url"].startswith(("s3:", "http:", "https:")):
                settings.setdefault("connect_timeout", 10)
            try:
                print(check(repo, name, writing=not options.pull))
            except (ConfigError, DvcException) as error:
                refuse(f"{where}: {error}")
            except Exception as error:
                refuse(f"{where}: {known_reason(error) or error}")
    except (ConfigError, DvcException) as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
