"""Several processes: one writer at a time, forks that let go, writers killed at any moment."""

import os
import random
import signal
import threading
import time

import pytest

from lmcleaner_ext._native import Ring
from lmcleaner_ext.errors import LogLockedError, SlotOverwrittenError
from support.ring_tools import append, create, read_all, run_python, running_python

WRITER = """
path, sizes, go_on = Path(sys.argv[1]), [int(s) for s in sys.argv[2].split(",")], sys.argv[3] == "on"
ring = Ring.open_write(str(path)) if go_on else create(path, section_bytes=sizes, durability=sys.argv[4])
for step in range(ring.last_step + 1, 10**9):
    append(ring, step, sizes=sizes)
    print(step, flush=True)
"""


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "ring"
    writer = create(path)
    with pytest.raises(LogLockedError) as caught:
        Ring.open_write(str(path))
    assert caught.value.pid == os.getpid()
    _, error = run_python("Ring.open_write(sys.argv[1])", path)
    assert f"LogLockedError: the log is being written by process {os.getpid()}" in error
    append(writer, 0)
    writer.close()
    assert Ring.open_write(str(path)).last_step == 0


def test_a_lease_holds_the_writer(tmp_path):
    """Until it is released, dropped or overdue; the step is readable as long."""
    path = tmp_path / "ring"
    writer, reader = create(path), Ring.open_read(str(path))
    for step in range(6):
        append(writer, step)
    for last, let_go in ((6, "released"), (7, "dropped"), (8, "left"), (9, "overdue")):
        slot, generation = (last - 6) % 6, last - 5
        lease = reader.lease([slot], [generation])
        if let_go == "overdue":
            writer.lease_wait = 0.05
            append(writer, last)
            with pytest.raises(SlotOverwrittenError):
                reader.check([slot], [generation])
            break
        thread = threading.Thread(target=append, args=(writer, last))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        reader.check([slot], [generation])
        if let_go == "released":
            lease.release()
        elif let_go == "left":
            with lease:
                pass
        del lease
        thread.join()
        with pytest.raises(SlotOverwrittenError):
            reader.check([slot], [generation])
        with pytest.raises(SlotOverwrittenError):
            reader.lease([slot], [generation])


def test_a_dropped_writer_lets_go(tmp_path):
    path = tmp_path / "ring"
    writer = create(path)
    del writer
    Ring.open_write(str(path)).close()


def test_a_fork_does_not_keep_the_lock(tmp_path):
    """A data-loading worker outlives the killed trainer; the next trainer must not wait for it."""
    path = tmp_path / "ring"
    code = """
import os, signal
ring = create(Path(sys.argv[1]))
append(ring, 0)
if os.fork() == 0:
    print(os.getpid(), flush=True)  # it has run, so it has let go
signal.pause()
"""
    with running_python(code, path) as process:
        worker = int(process.stdout.readline())
    try:
        os.kill(worker, 0)  # still there
        assert Ring.open_write(str(path)).last_step == 0
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_writer_is_powerless(tmp_path):
    path = tmp_path / "ring"
    code = """
import os
from lmcleaner_ext.errors import LogWriteError
ring = create(Path(sys.argv[1]))
append(ring, 0)
child = os.fork()
if child == 0:
    for use in (lambda: append(ring, 1), ring.sync, lambda: ring.rewind(0)):
        try:
            use()
        except LogWriteError as error:
            assert "parent" in str(error)
        else:
            os._exit(1)
    ring.close()
    del ring
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child could write"
append(ring, 1)
try:
    Ring.open_write(sys.argv[1])
except Exception as error:
    print(type(error).__name__)
"""
    assert run_python(code, path) == ("LogLockedError", "")
    assert read_all(Ring.open_read(str(path))) == [0, 1]


@pytest.mark.parametrize("durability", ["step", "group", "process"])
def test_killed_at_any_moment(tmp_path, durability):
    """No acknowledged step is lost and no step is torn, 6 times in a row on one ring (test_native.py: many times)."""
    path, sizes = tmp_path / "ring", [300, 2_500_000]
    generator = random.Random(durability)
    acknowledged = -1
    for attempt in range(6):
        with running_python(WRITER, path, "300,2500000", "on" if attempt else "new", durability) as process:
            line = process.stdout.readline()  # the writer is up
            time.sleep(generator.uniform(0, 0.05))
            process.kill()
            steps = [int(step) for step in (line + process.stdout.read()).split("\n")[:-1]]
        assert steps[0] == acknowledged + 1, "it continues where the log ends"
        acknowledged = steps[-1]
        found = read_all(Ring.open_read(str(path)), sizes)
        assert found[-1] - acknowledged in (0, 1), (
            "the killed writer may have finished one more step than it could tell"
        )
        assert found == list(range(max(0, found[-1] - 3), found[-1] + 1))
        acknowledged = found[-1]  # the next writer continues from what it finds


def test_reading_beside_a_writer(tmp_path):
    """Readers see whole steps or SlotOverwrittenError, never a torn one and never a false alarm."""
    path, sizes = tmp_path / "ring", [300, 100_000]
    attempts, read, overwritten = 0, 0, []
    with running_python(WRITER, path, "300,100000", "new", "process") as process:
        process.stdout.readline()
        ring = Ring.open_read(str(path))
        while read < 500:
            try:
                # By turns the oldest step, which the writer is about to overwrite, and the newest.
                _, slot, generation, _ = ring.refresh()[-(attempts % 2)]
                attempts += 1
                ring.metadata(slot, generation)
                ring.verify([slot], [generation], 1, 0, sizes[1])
                read += 1
            except SlotOverwrittenError as error:
                overwritten.append(error.step)
    assert min(overwritten, default=0) >= 0, "an overwritten step is named"
