"""Files that only their owner may read, the one way to make, change and read them: what is in a log leaks its training data.

No function here follows a link in a path's last part, waits at a pipe, or reads and writes a file that group or others can open.
A whole file is written aside as `<name>.partial`, made durable and renamed: a reader sees the old file or the new one, after a
power cut too.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import FileInTheWayError, InsecurePermissionsError, UnsafeFileError

SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def create_private(path: str | Path) -> BinaryIO:
    """A new file of mode 0600, open for writing. Raises FileInTheWayError where anything, a dangling link too, has that name."""
    try:
        return open(
            path, "wb", opener=lambda name, _: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, 0o600)
        )
    except FileExistsError as error:
        raise FileInTheWayError(f"{path} exists already: choose another name, or remove it first") from error


def replace_private(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Put what `write` writes in the place of `path`, all of it or nothing. `durable`: it survives a power cut.

    `write` gets the open file; a library that wants a name takes `file.name`, and may put a file of its own there.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a process that was killed
    try:
        with create_private(partial) as file:
            write(file)
        partial.chmod(0o600)  # a library's own file
        if durable:
            sync_private(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def append_private(path: Path, data: bytes, durable: bool = True) -> None:
    """Add to the end of the file in one write, creating it. Raises OSError where the disk took less."""
    with _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        created = os.fstat(file.fileno()).st_size == 0
        written = file.write(data)
        if written != len(data):
            raise OSError(f"{path}: {written} of {len(data)} bytes were written")
        if durable:
            os.fsync(file.fileno())
    if durable and created:
        sync_folder(path.parent)


def truncate_private(path: Path, size: int) -> None:
    """Cut the file to so many bytes, durably."""
    with _open(path, os.O_WRONLY) as file:
        os.ftruncate(file.fileno(), size)
        os.fsync(file.fileno())


def sync_private(path: Path) -> None:
    """Make what was written to the file durable."""
    with _open(path, os.O_WRONLY) as file:
        os.fsync(file.fileno())


def open_private(path: str | Path) -> BinaryIO:
    """An existing file, open for reading from its beginning."""
    return io.BufferedReader(_open(path, os.O_RDONLY))


def read_private(path: str | Path, limit: int | None = None) -> bytes:
    """The whole file, or its first `limit` bytes."""
    with open_private(path) as file:
        return file.read(-1 if limit is None else limit)


def check_private(path: Path, status: os.stat_result | None = None) -> os.stat_result:
    """The status (`lstat`, or the one given) of a regular file that only its owner can open, this user or root.

    Raises UnsafeFileError, InsecurePermissionsError. Root may read what belongs to others.
    """
    status = path.lstat() if status is None else status
    if not stat.S_ISREG(status.st_mode):
        found = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise UnsafeFileError(f"{path} is {found}: give the path of the file itself")
    user = os.geteuid()
    foreign = user != 0 and status.st_uid not in (0, user)
    if status.st_mode & 0o077 or foreign:
        raise InsecurePermissionsError(str(path), status.st_mode, status.st_uid if foreign else None)
    return status


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was created in it, renamed or removed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: str | Path, flags: int) -> io.FileIO:
    """The file without a buffer, checked as `check_private` does once it is open: what is checked is what is used."""
    try:
        descriptor = os.open(path, flags | SAFE, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFileError(f"{path} is a symbolic link: give the path of the file itself") from error
        if error.errno == errno.ENXIO:  # the writing end of a pipe that nobody reads
            raise UnsafeFileError(f"{path} is not a regular file: give the path of the file itself") from error
        raise
    try:
        check_private(Path(path), os.fstat(descriptor))
        return io.FileIO(descriptor, "r" if flags & os.O_ACCMODE == os.O_RDONLY else "w")
    except BaseException:
        os.close(descriptor)
        raise
