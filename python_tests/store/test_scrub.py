"""The ring's scrub: killed in the middle it leaves whole steps and scrubbed ones, nothing between, and can be finished."""

import random
import time

import numpy as np

from lmcleaner_ext._native import Ring
from support.ring_tools import append, contents, create, read_all, running_python

SIZES = [300, 2 * 2**20 + 5]
SCRUBBED = [2, 3, 5]

SCRUB = """
ring = Ring.open_write(sys.argv[1])
print("up", flush=True)
ring.scrub([2, 3, 5])
print("done", flush=True)
"""


def filled(path):
    writer = create(path, section_bytes=SIZES, capacity=7, spare=2)
    for step in range(9):  # 0 and 1 have left the log; their slots hold them still
        append(writer, step, sizes=SIZES)
    return writer


def left_of(path, step):
    """Whether the file holds bytes of this step's contents."""
    data = path.read_bytes()
    return any(part[at : at + 64].tobytes() in data for part in contents(step, SIZES) for at in (0, part.size // 2))


def test_only_what_was_asked_for_is_gone(tmp_path):
    writer = filled(tmp_path / "ring")
    assert all(left_of(tmp_path / "ring", step) for step in range(9))
    assert writer.scrub(SCRUBBED) > 5 * sum(SIZES)
    assert [step for step in range(9) if left_of(tmp_path / "ring", step)] == [4, 6, 7, 8]
    reader = Ring.open_read(str(tmp_path / "ring"))
    assert read_all(reader, SIZES) == [4, 6, 7, 8]
    assert reader.scrubbed_steps() == SCRUBBED
    writer.close()
    resumed = Ring.open_write(str(tmp_path / "ring"))
    assert (resumed.last_step, resumed.dropped) == (8, [])
    append(resumed, 9, sizes=SIZES)
    assert read_all(reader, SIZES) == [4, 6, 7, 8, 9]


def test_the_newest_steps_may_be_scrubbed(tmp_path):
    """Resuming does not take them for torn, and the log goes on behind them."""
    writer = filled(tmp_path / "ring")
    writer.scrub([7, 8])
    writer.close()
    resumed = Ring.open_write(str(tmp_path / "ring"))
    assert (resumed.last_step, resumed.dropped) == (8, [])
    append(resumed, 9, sizes=SIZES)
    resumed.close()
    reader = Ring.open_read(str(tmp_path / "ring"))
    assert read_all(reader, SIZES) == [3, 4, 5, 6, 9]
    assert reader.scrubbed_steps() == [7, 8]


def test_kill_9(tmp_path):
    generator, interrupted = random.Random(0), 0
    while interrupted < 3:  # a kill that comes too late is as good, but not enough
        path = tmp_path / "ring"
        filled(path).close()
        with running_python(SCRUB, path) as process:
            process.stdout.readline()
            time.sleep(generator.uniform(0, 0.01))
            process.kill()
            interrupted += "done" not in process.stdout.read()
        reader = Ring.open_read(str(path))
        steps = read_all(reader, SIZES)
        assert sorted([*steps, *reader.scrubbed_steps()]) == list(range(2, 9))
        assert set(reader.scrubbed_steps()) <= set(SCRUBBED)
        writer = Ring.open_write(str(path))
        writer.scrub(SCRUBBED)
        assert [step for step in range(9) if left_of(path, step)] == [4, 6, 7, 8]
        writer.close()
        path.unlink()


def test_scrubbed_slots_are_all_zero_behind_their_header(tmp_path):
    writer = filled(tmp_path / "ring")
    writer.scrub(list(range(9)))
    data = np.fromfile(tmp_path / "ring", np.uint8)
    begin = len(data) - writer.slots * writer.slot_bytes
    for slot in data[begin:].reshape(writer.slots, -1):
        assert slot[:4096].any()
        assert not slot[4096:].any()
