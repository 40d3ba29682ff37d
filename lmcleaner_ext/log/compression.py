"""Lossless compression of full-precision vectors: bytes of equal significance together, then zstd.

    [n] elements of b bytes, little-endian  ->  b planes of n bytes, plane k = byte k of every element, each one zstd frame

The planes with sign and exponent compress well, those with the low bits of trained weights hardly: around 1.2 to 1 for float32
that was trained in float32, 2 to 1 and more where the low bits are zero (weights from bfloat16, moments of unused embeddings).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigurationError

LEVEL = 1  # higher levels are slower, and no better on these planes
MOST_EXPANSION = 1 << 15  # of a zstd frame: a block of 128 KiB takes at least 4 bytes


def require_zstandard() -> Any:
    """The package; raises ConfigurationError where it is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise ConfigurationError(
            'compression="zstd" needs the package zstandard: pip install "lmcleaner-ext[zstd]"'
        ) from error
    return zstandard


def compress(vector: Tensor) -> list[Tensor]:
    """One zstd frame (uint8) per byte of the element, the lowest first; vector [n], n >= 1, on the CPU."""
    zstandard = require_zstandard()
    elements = vector.contiguous().view(torch.uint8).numpy().reshape(-1, vector.element_size())

    def frame(k: int) -> Tensor:
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
        return torch.frombuffer(bytearray(compressor.compress(np.ascontiguousarray(elements[:, k]))), dtype=torch.uint8)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(frame, range(vector.element_size())))


def decompress(frames: Sequence[Tensor], dtype: torch.dtype, count: int) -> Tensor:
    """The vector [count] that `compress` was given; raises ValueError where the frames are not what it makes."""
    zstandard = require_zstandard()
    if len(frames) != dtype.itemsize:
        raise ValueError(f"{dtype} has {dtype.itemsize} bytes, found {len(frames)} planes")
    try:
        for frame in frames:  # before anything is allocated
            found = zstandard.frame_content_size(frame.numpy().data)
            if found != count or count > frame.numel() * MOST_EXPANSION:
                raise ValueError(f"a plane of {count} bytes was expected, found {found}")
        elements = np.empty((count, dtype.itemsize), dtype=np.uint8)

        def fill(k: int) -> None:
            plane = zstandard.ZstdDecompressor().decompress(frames[k].numpy().data)
            elements[:, k] = np.frombuffer(plane, dtype=np.uint8)

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(dtype.itemsize)))
    except zstandard.ZstdError as error:
        raise ValueError(f"a plane does not decompress: {error}") from error
    return torch.from_numpy(elements.reshape(-1)).view(dtype)
