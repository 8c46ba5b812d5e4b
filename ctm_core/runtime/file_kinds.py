"""What a file is that somebody gave for another: told by its first bytes, with what helps.

A file that cannot be read is not always corrupt: it may be a download of another project, a web
page or a pointer of Git LFS, and to advise its removal would cost the user a file.
"""

from __future__ import annotations

import zipfile

from ctm_core.runtime.untrusted import PathLike, open_regular

#: Bytes at the start of a file that are looked at.
HEAD = 512

_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
_CONVERT = "`ctm convert` makes a weight file of a network of another project"
_REFERENCE = "`ctm features reference` makes the reference file of a protocol"


def describe_unusable(head: bytes) -> str | None:
    """What a file with these first bytes is, if it holds neither a network nor statistics.

    Returns
    -------
    The end of a sentence ("is …; what to do"), or None if it may hold them.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head and not head.strip(b"\0"):
        return "begins with zeros, as an interrupted download does; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if text.startswith(_PAGES):
        return "is a web page, not the file itself; download the file that the page links to"
    if text.startswith((b"{", b"%yaml", b"---")):
        return "is a text file (JSON or YAML), not a network"
    if head.startswith(_COMPRESSED):
        return "is compressed; unpack it first"
    if head.startswith((b"\x89HDF", b"CDF")):
        return "is an HDF5 or NetCDF file, not a network of a known kind"
    if head[257:262] == b"ustar":
        return "is a tar archive, also used by torch before 0.4; unpack it or save it again"
    if head.startswith(b"\x93NUMPY"):
        return "is a NumPy array, not a network"
    return None


def describe_other(path: PathLike) -> str | None:
    """What a file is that should have been a safetensors file; None if its first bytes do not say.

    Returns
    -------
    The end of a sentence, as of :func:`describe_unusable`.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
    if len(head) <= 8 or head[8:9] == b"{":
        return None
    if problem := describe_unusable(head):
        return problem
    if head.startswith(b"PK"):
        return _describe_zip(path)
    if head[:1] == b"\x80" or head.startswith((b"ccopy_reg", b"(dp")):
        return f"is a pickle, which is not loaded; {_CONVERT}"
    if head.startswith(_PICTURES):
        return "is a picture; correct the path"
    # A tag of a character may be cut off at the end.
    if all(byte in b"\t\n\r\x1b" or 32 <= byte < 127 or byte >= 0xC2 for byte in head[:64]):
        return "is a text file; correct the path"
    return None


def _describe_zip(path: PathLike) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist()[:100]]
    except Exception:  # what a damaged table of contents raises has no end
        return f"is a zip archive without a readable table of contents (torch.save?); {_CONVERT}"
    if any(name.endswith("data.pkl") for name in names):
        return f"is a PyTorch file (torch.save), which is not loaded as it is; {_CONVERT}"
    if names and all(name.endswith(".npy") for name in names):
        return f"is a NumPy .npz archive; {_REFERENCE}, from published statistics too"
    return "is a zip archive; unpack it first"
