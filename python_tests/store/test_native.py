"""The native tests of the ring (csrc/store/tests): simulated power cuts, mutants, I/O errors, kill -9, fuzzing, races.

Built from the sources beside these tests by CMake. What runs by default is a seeded share, under the address and undefined-behaviour
sanitizers; the full sizes are marked slow. Each prints how much it did: pytest -s shows it.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a memory file system makes the many small rings fast

MUTANTS = ["no_barrier", "header_first", "no_spare_slot", "no_writing_mark", "no_fallocate", "no_atfork_close", "no_group_sync",
           "no_rewind_sync", "no_scrub_sync", "no_resume_check", "no_resume_sync", "no_poison",
           "sync_again", "no_lease_wait", "no_second_look"]  # fmt: skip


pytestmark = pytest.mark.timeout(1800)  # the build too


def build(sanitizers: str) -> Path:
    command = [ROOT / "scripts" / "build_store_tests.sh", sys.executable, sanitizers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def run(program: Path, *arguments: object) -> str:
    # what a damaged file asks for must stay small; the quarantine only costs page faults
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:max_allocation_size_mb=256:quarantine_size_mb=16"}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        command = [program, folder, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(done.stdout, end="")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build("address,undefined")


@pytest.mark.parametrize(
    ("test", "amount", "says"),
    [
        ("power_cut", 2000, ": 0 lost, 0 torn, 0 wrong"),
        ("killed", 40, ": 0 lost, 0 torn"),
        ("chase", 5000, ", 0 wrong, 0 false alarms"),
        ("eio", 0, "failed, each once"),
        ("no_space", 0, "never full"),
        ("forked", 0, ""),
        ("leases", 0, ""),
        ("overtaken", 0, "at each of"),
        ("truncated", 0, ""),
    ],
)
def test_share(sanitized, test, amount, says):
    output = run(sanitized, test, amount, 7)
    assert output.startswith(test)
    assert says in output


def test_fuzz(sanitized):
    """Inputs must get behind the checksums, or nothing was tested: each part of the work succeeds, and what can fail fails."""
    inputs = 20_000
    output = run(sanitized, "fuzz", inputs, 7)
    assert ": 0 crashes" in output
    outcomes = {
        part: {kind: int(count) for kind, count in re.findall(r"([a-z]+(?: [a-z]+)?) (\d+)", counts)}
        for part, counts in re.findall(r"^fuzz outcomes: (\w+) (.*)$", output, re.MULTILINE)
    }
    assert outcomes["open"]["succeeded"] > inputs / 4
    for kind in ("truncated", "new version", "bad format"):
        assert outcomes["open"][kind] > inputs / 100, kind
    for part in ("header", "metadata", "section", "stream"):
        assert outcomes[part]["succeeded"] > outcomes[part]["corrupt"] > 0, part
    for part in ("lease", "resume", "append", "rewind", "scrub", "reopen"):
        assert outcomes[part]["succeeded"] > inputs / 100, part


def test_every_mutant_is_killed(sanitized):
    output = run(sanitized, "mutants", 0, 3)
    assert [line.split()[1][:-1] for line in output.splitlines() if line.startswith("mutant")] == MUTANTS
    assert output.count("killed by") == len(MUTANTS)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("sanitizers", "test", "amount"),
    [
        ("", "power_cut", 1_000_000),
        ("", "killed", 1000),
        ("", "bit_flips", 0),
        ("", "chase", 300_000),
        ("thread", "chase", 100_000),
        ("address,undefined", "fuzz", 10_000_000),
    ],
)
def test_in_full(sanitizers, test, amount):
    run(build(sanitizers), test, amount, 2026)
