"""A digest of many gigabytes of weights, on all cores.

    digest = "blake3:" + hex(H( H(piece 0) || H(piece 1) || ... )),   H = BLAKE3, pieces of 16 MiB, tensor by tensor

A tree instead of one stream: the hashes release the GIL, so the pieces are hashed in parallel. A digest names its H, and is compared with
one by the same H: "sha256:", three times slower, is written where the package blake3 is not installed; without a name it is SHA-256 too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigurationError

try:
    from blake3 import blake3
except ImportError:  # a source tree on a machine without network
    blake3 = None  # type: ignore[assignment, misc]

PIECE = 16 << 20


def digest_tensors(tensors: Iterable[Tensor], like: str | None = None) -> str:
    """Digest of the tensors' bytes, in order; shapes and dtypes are the caller's to compare.

    like: a digest that the result will be compared with: the same H is used. Raises ConfigurationError where it is not installed.
    """
    name, hashed = _algorithm(like)
    pieces = []
    for tensor in tensors:
        data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        pieces += [data[i : i + PIECE] for i in range(0, len(data), PIECE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        leaves = pool.map(lambda piece: hashed(piece).digest(), pieces)
        return name + hashed(b"".join(leaves)).hexdigest()


def _algorithm(like: str | None) -> tuple[str, Callable[[Any], Any]]:
    """(the name that begins the digest, H)."""
    if like is None:
        like = "sha256:" if blake3 is None else "blake3:"
    if not like.startswith("blake3:"):
        return "sha256:" if ":" in like else "", hashlib.sha256
    if blake3 is None:
        raise ConfigurationError(
            f"the digest {like[:19]}... is a BLAKE3 hash, and the package blake3 is not installed: pip install blake3"
        )
    return "blake3:", blake3
