"""Large aligned writes go past the page cache: the same bytes, and readers of the mapping beside them see nothing torn."""

import mmap

import numpy as np
import pytest

from lmcleaner_ext._native import Ring
from lmcleaner_ext.errors import SlotOverwrittenError
from support.ring_tools import contents, create, read_all, running_python, view

SIZES = [300, 3 * 2**20 + 70_001]

ALIGNED = """
import mmap
def aligned(part):
    memory = mmap.mmap(-1, part.nbytes)
    buffer = np.frombuffer(memory, dtype=np.uint8)
    buffer[:] = part
    return buffer
"""

WRITER = (
    ALIGNED
    + """
sizes = [300, 3 * 2**20 + 70_001]
ring = create(Path(sys.argv[1]), section_bytes=sizes, durability="process")
parts = [[aligned(p) for p in contents(step, sizes)] for step in range(8)]
print(ring.direct, flush=True)
for step in range(10**9):
    pair = parts[step % 8]
    ring.append(step, 0, f"step {step}".encode(), [(p.ctypes.data, p.nbytes) for p in pair], 2)
"""
)


def aligned(part, shift):
    """A copy that begins `shift` bytes after a page."""
    memory = mmap.mmap(-1, part.nbytes + shift)
    buffer = np.frombuffer(memory, dtype=np.uint8)[shift:]
    buffer[:] = part
    return buffer


@pytest.mark.parametrize("shift", [0, 1, 512])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bytes_from_any_address(tmp_path, shift, threads):
    writer = create(tmp_path / "ring", section_bytes=SIZES)
    for step in range(7):
        parts = [aligned(p, shift) for p in contents(step, SIZES)]
        writer.append(step, 0, f"step {step}".encode(), [(p.ctypes.data, p.nbytes) for p in parts], threads)
    writer.close()
    assert read_all(Ring.open_read(str(tmp_path / "ring")), SIZES) == [3, 4, 5, 6]


def test_reading_beside_a_direct_writer(tmp_path):
    """The kernel keeps the mapping and direct writes of one file in agreement: what verifies is whole, and nothing is called corrupt."""
    expected = [contents(step, SIZES)[1] for step in range(8)]
    read = 0
    with running_python(WRITER, tmp_path / "ring") as process:
        process.stdout.readline()
        ring = Ring.open_read(str(tmp_path / "ring"))
        while read < 200:
            assert process.poll() is None
            for step, slot, generation, _ in ring.refresh():
                try:
                    ring.verify([slot], [generation], 1, 0, SIZES[1], 1)
                    same = np.array_equal(view(ring, slot, generation, 1), expected[step % 8])
                    ring.check([slot], [generation])
                    assert same
                    read += 1
                except SlotOverwrittenError:
                    continue
