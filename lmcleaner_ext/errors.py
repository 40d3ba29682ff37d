"""Every error this package raises on purpose. Each message says what was found, what was expected and what to do.

Whatever raises one of these has left weights, optimizer and log exactly as they were.
"""

from __future__ import annotations

from collections.abc import Sequence


class LMCleanerError(Exception):
    """Base class of all errors raised by this package."""


class ConfigurationError(LMCleanerError):
    """An argument, or a combination of arguments, that cannot be served."""


class BackendUnavailableError(LMCleanerError):
    """A backend was asked for that cannot run here; the message says why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"backend {name!r} is not available here: {reason}")
        self.name, self.reason = name, reason


class UnsupportedOptimizerError(LMCleanerError):
    """The optimizer (or one of its options) has no replay rule."""


class MissingDataError(LMCleanerError):
    """A mode needs training data, a model or a logged vector that is not there."""


class NumericalError(LMCleanerError):
    """A NaN or an infinity appeared; nothing was changed."""


class WrongModelError(LMCleanerError):
    """The log belongs to another model or another run."""

    def __init__(self, difference: str):
        super().__init__(f"this log belongs to another model or run: {difference}")
        self.difference = difference


class UnknownSampleError(LMCleanerError):
    """Ids that no logged step has used."""

    def __init__(self, ids: Sequence[object]):
        shown = ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")
        super().__init__(
            f"{len(ids)} id(s) were never logged: {shown}. "
            "Ids are compared with their type: 7 and '7' differ. Pass exactly what log.batch(sample_ids=...) was given"
        )
        self.ids = list(ids)


class ExpiredStepError(LMCleanerError):
    """A step that was logged but has left the window."""

    def __init__(self, step: int, lo: int, hi: int):
        super().__init__(
            f"step {step} has left the log, which retains steps {lo}..{hi - 1}: a deletion that needs it cannot be exact. "
            "Retrain, or record with a larger `capacity` next time"
        )
        self.step, self.lo, self.hi = step, lo, hi


class MissingStepError(LMCleanerError):
    """A step that was never logged."""

    def __init__(self, step: int, message: str = ""):
        super().__init__(message or f"step {step} was never logged")
        self.step = step


class ScrubbedStepError(LMCleanerError):
    """A step whose vectors were overwritten on purpose, after a deletion was served."""

    def __init__(self, step: int):
        super().__init__(
            f"step {step} was scrubbed: its vectors were overwritten after a deletion request. Requests that need it cannot be "
            "served from this log any more; later steps can"
        )
        self.step = step


class LogFormatError(LMCleanerError):
    """Not a log, or one whose structure contradicts itself."""

    def __init__(self, message: str):
        super().__init__(message)


class LogVersionError(LMCleanerError):
    """A log written by a newer version of the format."""

    def __init__(self, found: str, supported: str):
        super().__init__(f"log format {found} is newer than this package reads ({supported}): upgrade lmcleaner_ext")
        self.found, self.supported = found, supported


class LogCorruptError(LMCleanerError):
    """A checksum does not match: torn write or bit rot. Other steps still read."""

    def __init__(self, step: int, chunk: int, message: str = ""):
        super().__init__(
            message or f"step {step}, chunk {chunk}: the checksum does not match; this step cannot be used"
        )
        self.step, self.chunk = step, chunk


class SlotOverwrittenError(LMCleanerError):
    """The trainer overwrote a step while it was being read."""

    def __init__(self, step: int):
        super().__init__(f"step {step} was overwritten by the trainer while it was being read: it has left the window")
        self.step = step


class LogNoSpaceError(LMCleanerError):
    """The disk cannot hold the log; raised when it is created, never in mid-training."""

    def __init__(self, need: int, free: int):
        super().__init__(
            f"the log needs {need:,} bytes and the disk has {free:,} free: choose another directory, "
            "a smaller `capacity` or a smaller `dtype`"
        )
        self.need, self.free = need, free


class LogWriteError(LMCleanerError):
    """A write or a sync failed; this writer takes no further steps, committed ones stand."""

    def __init__(self, message: str):
        super().__init__(message)


class LogTruncatedError(LMCleanerError):
    """The file is shorter than its superblock says."""

    def __init__(self, message: str):
        super().__init__(message)


class LogLockedError(LMCleanerError):
    """Another writer holds the log."""

    def __init__(self, pid: int):
        super().__init__(
            f"the log is being written by process {pid}: one writer at a time (readers may open it beside)"
        )
        self.pid = pid


class InsecurePermissionsError(LMCleanerError):
    """Group or others can read the log, or it is another user's: an update vector leaks its training data."""

    def __init__(self, path: str, mode: int, owner: int | None = None):
        super().__init__(
            f"{path} has mode {mode & 0o7777:04o}; a log must not be readable by others: chmod 600 {path}"
            if owner is None
            else f"{path} belongs to user {owner}; a log must belong to who uses it, or to root: copy it, or chown {path}"
        )
        self.path, self.mode, self.owner = path, mode, owner


class UnsafeFileError(LMCleanerError, OSError):
    """A link, a pipe, a device or a folder stands where a private file of this package should."""


class FileInTheWayError(ConfigurationError, FileExistsError):
    """A file that is to be created has the name of one that is there."""


class LineageError(LMCleanerError):
    """A checkpoint and a log that do not continue each other."""
