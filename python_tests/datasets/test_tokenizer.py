"""Tokenizers: what goes in comes out, and the special tokens stay out of reach of a text."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcleaner_ext.datasets import BPETokenizer, ByteTokenizer, as_tokenizer, generate_authors, train_bpe
from lmcleaner_ext.errors import ConfigurationError

pytest.importorskip("tokenizers")
TEXTS = [row[key] for row in generate_authors(6, 20, seed=1) for key in ("question", "answer")]
BPE = train_bpe(TEXTS, 600)
# Every text that UTF-8 can spell, with the special tokens' own spelling mixed in.
text = st.lists(
    st.one_of(st.text(st.characters(codec="utf-8")), st.sampled_from(["<eos>", "<pad>", "<bos>", " "]))
).map("".join)


@given(text)
def test_round_trip(sample):
    for tokenizer in (ByteTokenizer(), BPE):
        ids = tokenizer.encode(sample)
        assert tokenizer.decode(ids) == sample
        special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
        assert special.isdisjoint(ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == sample


@given(st.lists(st.integers(0, 258)))
def test_bytes_decode_whatever_a_model_emits(ids):
    expected = bytes(i for i in ids if i < 256).decode(errors="replace")
    assert ByteTokenizer().decode(ids) == expected


@given(st.text(st.characters(codec="utf-8")))
def test_byte_ids_are_utf8(sample):
    assert bytes(ByteTokenizer().encode(sample)) == sample.encode("utf-8")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])
def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ConfigurationError, match=f"token id {bad} is outside"):
            tokenizer.decode([bad])


def test_bpe_compresses_what_it_was_trained_on():
    assert BPE.vocab_size == 600
    assert (BPE.pad_id, BPE.bos_id, BPE.eos_id) == (0, 1, 2)
    assert len(BPE.encode(" ".join(TEXTS))) < 0.5 * len(" ".join(TEXTS).encode())


def test_bpe_training_is_deterministic():
    again = train_bpe(TEXTS, 600)
    assert again.tokenizer.get_vocab() == BPE.tokenizer.get_vocab()


@given(text)
@settings(max_examples=30)
def test_a_saved_bpe_encodes_alike(tmp_path_factory, sample):
    path = tmp_path_factory.getbasetemp() / "bpe.json"
    if not path.exists():
        BPE.save(path)
    loaded = BPETokenizer.load(path)
    assert loaded.encode(sample) == BPE.encode(sample)
    assert loaded.decode(loaded.encode(sample)) == sample


def test_files_that_hold_no_tokenizer(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        BPETokenizer.load(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is not a tokenizer file"):
        BPETokenizer.load(tmp_path / "bad.json")


def test_smallest_vocabulary():
    assert train_bpe(["aa"], 259).vocab_size == 259
    with pytest.raises(ConfigurationError, match="at least 259"):
        train_bpe(["aa"], 258)


def test_without_the_tokenizers_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigurationError, match="pip install tokenizers"):
        train_bpe(["aa"], 300)


def transformers_tokenizer(**special):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=train_bpe(TEXTS, 400).tokenizer, **special)


def test_a_transformers_tokenizer_is_wrapped():
    wrapped = as_tokenizer(transformers_tokenizer(eos_token="<eos>", bos_token="<bos>"))
    assert wrapped.bos_id is None  # declared, but not put in front of a text
    assert wrapped.pad_id == wrapped.eos_id == 2
    sample = "Who wrote it? Ngozi Eze did."
    assert wrapped.decode(wrapped.encode(sample)) == sample
    assert as_tokenizer(wrapped) is wrapped


def test_a_transformers_tokenizer_that_begins_with_bos():
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers_tokenizer(eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    wrapped = as_tokenizer(tokenizer)
    assert (wrapped.pad_id, wrapped.bos_id, wrapped.eos_id) == (0, 1, 2)
    assert 1 not in wrapped.encode("Who?")


def test_what_is_no_tokenizer():
    with pytest.raises(ConfigurationError, match="dict is no tokenizer"):
        as_tokenizer({})
    with pytest.raises(ConfigurationError, match="no eos token"):
        as_tokenizer(transformers_tokenizer())
