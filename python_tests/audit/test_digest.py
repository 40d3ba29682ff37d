"""The digest of weights against the hash functions themselves."""

import hashlib

import pytest
import torch
from blake3 import blake3

from lmcleaner_ext import digest
from lmcleaner_ext.digest import PIECE, digest_tensors
from lmcleaner_ext.errors import ConfigurationError

TENSORS = [torch.arange(PIECE // 4 + 3, dtype=torch.float32), torch.tensor([[1, 2], [3, 4]]).t(), torch.empty(0)]


def by_hand(hashed):
    whole, small = (t.contiguous().numpy().tobytes() for t in TENSORS[:2])
    leaves = [hashed(part).digest() for part in (whole[:PIECE], whole[PIECE:], small)]
    return hashed(b"".join(leaves)).hexdigest()


def test_a_tree_of_blake3():
    assert digest_tensors(TENSORS) == "blake3:" + by_hand(blake3)


def test_compared_by_the_hash_that_the_other_digest_names():
    expected = by_hand(hashlib.sha256)
    assert digest_tensors(TENSORS, like="sha256:0") == "sha256:" + expected
    assert digest_tensors(TENSORS, like="0") == expected
    assert digest_tensors(TENSORS, like="blake3:0") == "blake3:" + by_hand(blake3)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(digest, "blake3", None)
    assert digest_tensors(TENSORS) == "sha256:" + by_hand(hashlib.sha256)
    with pytest.raises(ConfigurationError, match="pip install blake3"):
        digest_tensors(TENSORS, like="blake3:0")
