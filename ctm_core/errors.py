"""The ways a command may end other than success, each with its exit code.

=====  ==================  =========================================================
code   class               meaning
=====  ==================  =========================================================
2      :class:`UserError`  a user's mistake or a refused file: one sentence, no traceback
3      :class:`Diverged`   training met NaN or infinity and kept its last good checkpoint
75     :class:`Interrupted`  stopped from outside and resumable by the same command
=====  ==================  =========================================================
"""

__all__ = ["CtmError", "Diverged", "Interrupted", "UserError"]


class CtmError(Exception):
    """An expected end of a command. ``exit_code`` is what the shell sees."""

    exit_code = 1


class UserError(CtmError):
    """Something the user can fix; the message names the file or key and the fix."""

    exit_code = 2


class Diverged(CtmError):
    """A loss term became NaN or infinite; the message names term and step."""

    exit_code = 3


class Interrupted(CtmError):
    """Work stopped before its end and continues when the same command is run again."""

    exit_code = 75
