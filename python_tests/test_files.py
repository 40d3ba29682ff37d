"""Private files: made, changed and read without following links, by their owner only, whole or not at all."""

import os
import stat
from functools import partial
from pathlib import Path

import pytest

from lmcleaner_ext import files
from lmcleaner_ext.errors import FileInTheWayError, InsecurePermissionsError, LMCleanerError, UnsafeFileError

READ = [files.read_private, files.open_private]
CHANGE = [partial(files.append_private, data=b"more"), partial(files.truncate_private, size=1), files.sync_private]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "private"
    with files.create_private(path) as file:
        file.write(b"secret")
    return path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_what_is_created_is_its_owners_alone(tmp_path, mask):
    previous = os.umask(mask)
    try:
        files.create_private(tmp_path / "created").close()
        files.replace_private(tmp_path / "replaced", lambda file: file.write(b"a"))
        files.append_private(tmp_path / "appended", b"a")
    finally:
        os.umask(previous)
    assert {entry.name: mode(entry) for entry in tmp_path.iterdir()} == dict.fromkeys(
        ["created", "replaced", "appended"], 0o600
    )


def test_creating_never_opens_what_is_there(path, tmp_path):
    os.symlink(tmp_path / "elsewhere", tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for taken in (path, tmp_path / "dangling", tmp_path / "pipe", tmp_path):
        with pytest.raises(FileInTheWayError, match="exists already") as caught:
            files.create_private(taken)
        assert isinstance(caught.value, FileExistsError)
        assert isinstance(caught.value, LMCleanerError)
    assert not (tmp_path / "elsewhere").exists()
    assert path.read_bytes() == b"secret"


@pytest.mark.parametrize("use", [*READ, *CHANGE])
def test_a_link_is_not_followed(path, tmp_path, use):
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(UnsafeFileError, match="symbolic link") as caught:
        use(link)
    assert isinstance(caught.value, OSError)
    assert path.read_bytes() == b"secret"
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        files.check_private(link)


@pytest.mark.parametrize("use", [*READ, *CHANGE])
def test_a_pipe_does_not_make_anyone_wait(tmp_path, use):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        use(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that somebody reads could be written to
    try:
        with pytest.raises(UnsafeFileError, match="not a regular file"):
            use(pipe)
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)


def test_a_folder_or_a_device_is_not_a_file(tmp_path):
    for other in (tmp_path, Path("/dev/null")):
        with pytest.raises(UnsafeFileError, match="not a regular file"):
            files.read_private(other)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o601])
@pytest.mark.parametrize("use", [*READ, *CHANGE, files.check_private])
def test_what_others_can_open_is_refused(path, use, bits):
    path.chmod(bits)
    with pytest.raises(InsecurePermissionsError) as caught:
        use(path)
    assert (caught.value.path, stat.S_IMODE(caught.value.mode)) == (str(path), bits)
    assert path.read_bytes() == b"secret"


def test_what_another_user_owns_is_refused(path, monkeypatch):
    owner = path.stat().st_uid
    if owner == 0:  # what root owns is as good as one's own
        os.chown(path, 4321, -1)
        owner = 4321
        assert files.read_private(path) == b"secret"  # root may
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InsecurePermissionsError, match=f"belongs to user {owner}") as caught:
        files.read_private(path)
    assert caught.value.owner == owner
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert files.read_private(path) == b"secret"


def test_reading_takes_as_much_as_asked_for(path):
    assert files.read_private(path) == b"secret"
    assert files.read_private(path, 3) == b"sec"
    with pytest.raises(FileNotFoundError):
        files.read_private(path.with_name("nothing"))


@pytest.mark.parametrize("durable", [True, False])
def test_appending_and_cutting(tmp_path, durable):
    path = tmp_path / "log"
    for part in (b"one", b"two", b""):
        files.append_private(path, part, durable)
    assert path.read_bytes() == b"onetwo"
    files.truncate_private(path, 4)
    files.sync_private(path)
    files.append_private(path, b"!", durable)
    assert path.read_bytes() == b"onet!"


class Killed(BaseException):
    """As a kill: nothing but a clean-up that runs for every exception sees it."""


def killed(*arguments, **options):
    raise Killed


def contents(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_replacing_is_all_or_nothing(path, tmp_path, monkeypatch):
    def half(file):
        file.write(b"ha")
        file.flush()
        raise Killed

    with pytest.raises(Killed):
        files.replace_private(path, half)
    assert contents(tmp_path) == {"private": b"secret"}
    for step in ("fsync", "replace"):  # written, but not durable yet; durable, but not renamed
        with monkeypatch.context() as patch:
            patch.setattr(os, step, killed)
            with pytest.raises(Killed):
                files.replace_private(path, lambda file: file.write(b"new"))
        assert contents(tmp_path) == {"private": b"secret"}
    files.replace_private(path, lambda file: file.write(b"new"))
    assert contents(tmp_path) == {"private": b"new"}


def test_what_a_killed_process_left_is_not_used(path, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"target")
    aside = tmp_path / "private.partial"
    for leave in (lambda: aside.write_bytes(b"longer than what comes"), lambda: aside.symlink_to(target)):
        leave()
        files.replace_private(path, lambda file: file.write(b"new"))
        assert contents(tmp_path) == {"private": b"new", "target": b"target"}
        assert mode(path) == 0o600


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_durable_before_it_has_its_name(path, tmp_path, monkeypatch, durable):
    calls = []

    def watched(name, call):
        def wrapper(*arguments):
            calls.append((name, os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])))
            return call(*arguments)

        return wrapper

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    files.replace_private(path, lambda file: file.write(b"new"), durable)
    aside, renamed = ("fsync", f"{path}.partial"), ("replace", str(path))
    assert calls == ([aside, renamed, ("fsync", str(tmp_path))] if durable else [renamed])


def test_a_library_may_put_a_file_of_its_own_there(path, tmp_path):
    def library(file):
        (tmp_path / "its own").write_bytes(b"new")
        (tmp_path / "its own").chmod(0o644)
        os.replace(tmp_path / "its own", file.name)

    files.replace_private(path, library)
    assert contents(tmp_path) == {"private": b"new"}
    assert mode(path) == 0o600


def test_a_disk_that_takes_less_is_an_error(path, monkeypatch):
    class Short:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def fileno(self):
            return 0

        def write(self, data):
            return len(data) - 1

    monkeypatch.setattr(files, "_open", lambda path, flags: Short())
    with pytest.raises(OSError, match="3 of 4 bytes"):
        files.append_private(path, b"more")
