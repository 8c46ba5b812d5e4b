"""The ways in which a command may fail, each with its exit code.

=====  ==================  =========================================================
code   class               meaning
=====  ==================  =========================================================
2      :class:`UserError`  a user's mistake or a refused file: one sentence, no traceback
3      :class:`Diverged`   training met NaN or infinity and kept its last good checkpoint
75     :class:`Interrupted`  stopped from outside and resumable by the same command
=====  ==================  =========================================================
"""

import errno

from ctm_core.runtime import extras


class CtmError(Exception):
    """An expected failure of a command. ``exit_code`` is what the shell sees."""

    exit_code = 1


class Ended(CtmError):
    """Ends a process with the exit code of others; without a message if one of them gave it."""

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(CtmError):
    """Something the user can fix; the message names the file or key and the fix."""

    exit_code = 2


class Missing(UserError):
    """A file that is needed is not there."""


class Diverged(CtmError):
    """A loss term became NaN or infinite; the message names term and step."""

    exit_code = 3


class Interrupted(CtmError):
    """Work stopped before its end and continues when the same command is run again."""

    exit_code = 75


_WRITABLE = "choose a folder you can write to, or change its permissions"
_PLAIN = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the limit on file sizes is reached; raise it (ulimit -f) and run again",
    errno.EROFS: "the file system is read-only; choose a folder you can write to",
    errno.EACCES: f"permission denied; {_WRITABLE}",
    errno.EPERM: f"permission denied; {_WRITABLE}",
    errno.ENOENT: "no such file or folder; correct the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; correct the path",
    errno.EEXIST: "a file is where a folder is needed; correct the path",
    errno.EISDIR: "that is a folder, not a file; correct the path",
    errno.ENAMETOOLONG: "the name is too long; correct the path",
    errno.ELOOP: "a symbolic link leads to itself; correct the path or remove the link",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) and run again",
    errno.ENFILE: "too many open files on this machine; end other programs and run again",
    errno.ENOMEM: "out of memory; free some, or reduce the batch size, and run again",
    errno.ENXIO: "that is a pipe or device, not a file; correct the path",
}
#: How torch words it, on the CPU and on GPUs; it has no exception of its own for the first.
_NO_MEMORY = ("can't allocate memory", "out of memory")


def plain_sentence(error: BaseException) -> str | None:
    """An error of the operating system, or a missing package, as one sentence.

    None if the user can do nothing about it.
    """
    if isinstance(error, ImportError):
        return extras.sentence(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    ):
        return _PLAIN[errno.ENOMEM]
    if not isinstance(error, OSError):
        return None
    number = error.errno
    if number is None and "requested and" in str(error.args):
        number = errno.ENOSPC  # NumPy's words for a file that could not be written completely
    place = error.filename2 or error.filename
    if number in _PLAIN:
        return f"{place}: {_PLAIN[number]}" if place else _PLAIN[number]
    words = error.strerror
    return f"{place}: {words}; check the path and its file system" if place and words else None
