"""Samples and batches: which token counts, where padding goes, which row an id means."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcleaner_ext.datasets import (
    IGNORE,
    ByteTokenizer,
    QADataset,
    by_id,
    collate,
    content_id,
    generate_authors,
    token_weights,
)
from lmcleaner_ext.errors import ConfigurationError, MissingDataError

BYTES = ByteTokenizer()
ROWS = generate_authors(3, 5, seed=4)


def tiny_llama(vocab_size, seed=0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return transformers.LlamaForCausalLM(config)


def test_a_sample_spells_the_prompt_and_the_answer():
    dataset = QADataset([{"question": "Q{}?", "answer": "A."}], BYTES, template="<{question}>")
    sample = dataset[0]
    assert bytes(sample["input_ids"][1:-1].tolist()) == b"<Q{}?> A."
    assert sample["input_ids"][0] == BYTES.bos_id
    assert sample["input_ids"][-1] == BYTES.eos_id
    prompt = 1 + len("<Q{}?>")
    assert sample["labels"][:prompt].tolist() == [IGNORE] * prompt
    assert torch.equal(sample["labels"][prompt:], sample["input_ids"][prompt:])
    assert sample["sample_id"] == content_id("Q{}?", "A.")
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64


def test_training_on_the_question_too():
    sample = QADataset(ROWS, BYTES, train_on_question=True)[2]
    assert torch.equal(sample["labels"], sample["input_ids"])


def test_other_texts_of_a_row():
    dataset = QADataset(
        ROWS, BYTES, 400, question_key="paraphrased_question", answer_key="paraphrased_answer", template="{question}"
    )
    expected = ROWS[3]["paraphrased_question"] + " " + ROWS[3]["paraphrased_answer"]
    assert BYTES.decode(dataset[3]["input_ids"].tolist()) == expected
    assert dataset.sample_ids == [row["sample_id"] for row in ROWS]


def test_cut_answers_are_counted_and_reported(caplog):
    row = {"question": "Q", "answer": "x" * 50}
    with caplog.at_level(logging.WARNING):
        dataset = QADataset([row], BYTES, max_length=20, template="{question}")
    assert dataset.truncated == 1
    assert len(dataset[0]["input_ids"]) == 20
    assert "1 of 1 answers were cut" in caplog.text
    assert QADataset([row], BYTES, max_length=54, template="{question}").truncated == 0


def test_a_question_without_room_for_its_answer():
    row = {"question": "x" * 19, "answer": "A"}
    assert (QADataset([row], BYTES, max_length=21, template="{question}")[0]["labels"] != IGNORE).sum() == 1
    with pytest.raises(ConfigurationError, match="raise max_length to about 23"):
        QADataset([row], BYTES, max_length=20, template="{question}")


def test_refused_rows_and_templates():
    with pytest.raises(ConfigurationError, match="repeat the sample_id"):
        QADataset([ROWS[0], ROWS[0]], BYTES)
    with pytest.raises(ConfigurationError, match="row 1 has no text under 'answer'"):
        QADataset([ROWS[0], {"question": "Q"}], BYTES)
    with pytest.raises(ConfigurationError, match="template must contain"):
        QADataset(ROWS, BYTES, template="Answer:")


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 300))
def test_collate_pads_on_the_right(lengths, pad_id):
    samples = [{"input_ids": list(range(1, n + 1)), "labels": list(range(n))} for n in lengths]
    batch = collate(samples, pad_id)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for row, n in enumerate(lengths):
        rest = max(lengths) - n
        assert batch["input_ids"][row].tolist() == samples[row]["input_ids"] + [pad_id] * rest
        assert batch["labels"][row].tolist() == samples[row]["labels"] + [IGNORE] * rest
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * rest
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigurationError, match="at least one sample"):
        collate([], 0)


def test_rows_are_found_by_id():
    dataset = QADataset(ROWS, BYTES)
    data = by_id(dataset)
    wanted = [ROWS[7]["sample_id"], ROWS[2]["sample_id"], ROWS[7]["sample_id"]]
    batch = data(wanted)
    assert all(
        torch.equal(batch[key], value) for key, value in collate([dataset[7], dataset[2], dataset[7]], 256).items()
    )
    with pytest.raises(MissingDataError, match="has no sample 17 among its 15 rows"):
        data([wanted[0], 17])
    assert by_id(dataset, device="meta")(wanted)["labels"].device.type == "meta"


def test_a_data_loader_takes_it():
    from functools import partial

    loader = torch.utils.data.DataLoader(
        QADataset(ROWS, BYTES), batch_size=4, collate_fn=partial(collate, pad_id=BYTES.pad_id)
    )
    assert sum(len(batch["labels"]) for batch in loader) == len(ROWS)


def test_token_weights_turn_row_means_into_the_models_loss():
    """Oracle: the loss of transformers' model on the batch is the weighted sum of its losses on single rows.

    To float32 only: transformers takes the loss in float32 even of a float64 model.
    """
    model = tiny_llama(BYTES.vocab_size).double().eval()
    dataset = QADataset(ROWS, BYTES)
    batch = dataset.batch([0, 4, 9])
    with torch.no_grad():
        whole = model(**batch).loss
        rows = [model(**dataset.batch([position])).loss for position in (0, 4, 9)]
    weights = token_weights(batch["labels"])
    assert sum(weights) == pytest.approx(1)
    assert float(sum(w * loss for w, loss in zip(weights, rows, strict=True))) == pytest.approx(float(whole), rel=1e-6)


def test_token_weights_leave_the_first_label_out():
    labels = torch.tensor([[5, 5, IGNORE], [5, 5, 5], [5, IGNORE, IGNORE]])
    assert token_weights(labels) == [1 / 3, 2 / 3, 0.0]
    with pytest.raises(ConfigurationError, match="no label counts"):
        token_weights(labels[2:])
