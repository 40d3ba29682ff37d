"""Append-only audit log: one canonical JSON object per line, each with the hash of the line before, mode 0600.

`request` is durable before weights change, `scrub` before a log is overwritten; `result`, `scrubbed`, `refused` or `failed`
follows. An open request reveals a crash.
Tamper-evident relative to a head that is kept elsewhere, not tamper-proof.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from ..errors import LogCorruptError
from ..files import append_private, read_private

GENESIS = "0" * 64


class AuditLog:
    """A JSONL file that can only grow. Raises InsecurePermissionsError where others can read it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def append(self, event: str, request: str, fields: dict[str, Any]) -> str:
        """Write one line and sync it; returns its hash, the new head."""
        entries, head = self._read()
        entry = {
            "sequence": len(entries),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": event,
            "request": request,
            "previous": head,
            **fields,
        }
        line = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        append_private(self.path, line)
        return hashlib.sha256(line).hexdigest()

    def verify(self, head: str | None = None) -> int:
        """Number of entries; raises LogCorruptError at the first broken link, or if the last hash is not `head`."""
        entries, last = self._read()
        if head is not None and last != head:
            raise LogCorruptError(len(entries), 0, f"{self.path}: the last entry's hash is {last}, expected {head}")
        return len(entries)

    def served(self, run: str) -> set[str]:
        """Digests of the weights that earlier requests on this run left behind; raises LogCorruptError as `verify` does."""
        return {e["digest_after"] for e in self._read()[0] if e.get("event") == "result" and e.get("run") == run}

    def _read(self) -> tuple[list[dict[str, Any]], str]:
        """(all entries, hash of the last line), every link checked: an entry that is not in the chain must not be believed."""
        entries: list[dict[str, Any]] = []
        previous = GENESIS
        for line in read_private(self.path).splitlines(keepends=True) if os.path.lexists(self.path) else []:
            try:
                entry = json.loads(line)
                linked = entry["previous"] == previous and line.endswith(b"\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                linked = False
            if not linked:
                raise LogCorruptError(
                    len(entries), 0,
                    f"{self.path}: entry {len(entries)} does not continue the one before it. Keep the file as evidence and start another",
                )  # fmt: skip
            entries.append(entry)
            previous = hashlib.sha256(line).hexdigest()
        return entries, previous


def pseudonym(run: str, identity: int | str) -> str:
    """HMAC of an id, keyed by the run: raw ids are personal data."""
    return hmac.new(bytes.fromhex(run), repr(identity).encode(), hashlib.sha256).hexdigest()


def new_request() -> str:
    return uuid.uuid4().hex
