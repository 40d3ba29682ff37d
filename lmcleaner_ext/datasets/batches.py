"""Question-answer rows as language-model samples: one sequence per row, padded batches, and batches by sample id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lmcleaner_ext.datasets.rows import Row, check_unicode, content_id
from lmcleaner_ext.datasets.tokenizer import Tokenizer, as_tokenizer
from lmcleaner_ext.errors import ConfigurationError, MissingDataError
from lmcleaner_ext.log.record import normalize_ids

IGNORE = -100  # the label that cross-entropy leaves out
TEMPLATE = "Question: {question}\nAnswer:"

Batch = dict[str, Tensor]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedRow:
    """One row as token ids, cut to `max_length`."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool


def encode_pair(
    tokenizer: Tokenizer, question: str, answer: str, *, max_length: int, template: str, train_on_question: bool
) -> EncodedRow:
    """[bos] prompt answer eos, where prompt is `template` with the question put in and the answer follows a blank.

    Labels equal the ids at the answer and the eos, and IGNORE before (unless `train_on_question`); they are not
    shifted: the model does that, as transformers' models do. Raises ConfigurationError if no answer token fits
    `max_length`.
    """
    prompt = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompt += tokenizer.encode(template.replace("{question}", question))
    target = [*tokenizer.encode(" " + answer), tokenizer.eos_id]
    if len(prompt) >= max_length:
        raise ConfigurationError(
            f"the prompt alone takes {len(prompt)} of max_length = {max_length} tokens and leaves none to the "
            f"answer; raise max_length to about {len(prompt) + len(target)}. The question begins {question[:60]!r}"
        )
    ids = prompt + target
    labels = list(ids) if train_on_question else [IGNORE] * len(prompt) + target
    return EncodedRow(ids[:max_length], labels[:max_length], len(ids) > max_length)


class QADataset(Dataset[dict[str, Any]]):
    """Rows with `question` and `answer` as samples {"input_ids": [L], "labels": [L], "sample_id": int}, tensors int64.

    rows: dicts; a row without `sample_id` gets `content_id(question, answer)`
    tokenizer: ByteTokenizer, BPETokenizer or a tokenizer of transformers
    max_length: tokens kept per sample; answers cut short are counted in `truncated` and logged once
    template: the prompt; must contain "{question}"
    train_on_question: also learn the prompt's tokens (default: the answer's only)
    question_key, answer_key: which texts to use, e.g. "paraphrased_question" and "paraphrased_answer"

    Raises ConfigurationError for repeated sample ids, a missing key, or a question that leaves no room for its answer.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        tokenizer: Any,
        max_length: int = 256,
        *,
        template: str = TEMPLATE,
        train_on_question: bool = False,
        question_key: str = "question",
        answer_key: str = "answer",
    ):
        if "{question}" not in template:
            raise ConfigurationError(f'the template must contain "{{question}}", found {template!r}')
        self.rows: list[Row] = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise ConfigurationError(
                    f"row {number} is a {type(row).__name__}: expected a mapping with a question and an answer"
                )
            self.rows.append(dict(row))
        self.tokenizer = as_tokenizer(tokenizer)
        self.max_length, self.template, self.train_on_question = max_length, template, train_on_question
        self.question_key, self.answer_key = question_key, answer_key

        self.sample_ids: list[int] = []
        self._encoded: list[EncodedRow] = []
        for number, row in enumerate(self.rows):
            for key in ("question", "answer", question_key, answer_key):
                if not isinstance(row.get(key), str):
                    has = ", ".join(sorted(map(str, row)))
                    raise ConfigurationError(f"row {number} has no text under {key!r}; it has {has}")
                check_unicode(row[key], f"row {number}: {key!r}")
            row.setdefault("sample_id", content_id(row["question"], row["answer"]))
            self.sample_ids.append(row["sample_id"])
            self._encoded.append(self._encode(row[question_key], row[answer_key]))
        normalize_ids(self.sample_ids)  # what the log takes as ids
        self._position = {sample_id: position for position, sample_id in enumerate(self.sample_ids)}
        if len(self._position) < len(self.rows):
            raise ConfigurationError(f"{len(self.rows) - len(self._position)} rows repeat the sample_id of another row")
        self.truncated = sum(encoded.truncated for encoded in self._encoded)
        if self.truncated:
            logger.warning("%d of %d answers were cut at max_length = %d", self.truncated, len(self.rows), max_length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        encoded = self._encoded[position]
        return {
            "input_ids": torch.tensor(encoded.input_ids),
            "labels": torch.tensor(encoded.labels),
            "sample_id": self.sample_ids[position],
        }

    def position(self, sample_id: int) -> int:
        """Where `sample_id` lies; MissingDataError if nowhere."""
        try:
            return self._position[sample_id]
        except KeyError:
            raise MissingDataError(
                f"the data set has no sample {sample_id!r} among its {len(self)} rows: it must hold every sample of "
                "the logged batches, under the id the log was given"
            ) from None

    def batch(self, positions: Iterable[int]) -> Batch:
        """The rows at `positions`, collated."""
        return collate([self[position] for position in positions], self.tokenizer.pad_id)

    def encode_answers(self, position: int, answers: Sequence[str]) -> Batch:
        """The question of one row with other answers, collated: e.g. its perturbed answers."""
        question = self.rows[position][self.question_key]
        samples = [self._encode(question, answer) for answer in answers]
        return collate(
            [{"input_ids": torch.tensor(one.input_ids), "labels": torch.tensor(one.labels)} for one in samples],
            self.tokenizer.pad_id,
        )

    def _encode(self, question: str, answer: str) -> EncodedRow:
        return encode_pair(
            self.tokenizer,
            question,
            answer,
            max_length=self.max_length,
            template=self.template,
            train_on_question=self.train_on_question,
        )


def collate(samples: Sequence[Mapping[str, Any]], pad_id: int) -> Batch:
    """Pad samples on the right to the longest: int64 input_ids, attention_mask, labels `[B, L]`, and nothing else.

    Padding holds `pad_id` in input_ids, 0 in attention_mask and IGNORE in labels, so that `model(**batch)` does the
    rest.
    """
    if not samples:
        raise ConfigurationError("a batch needs at least one sample, found none")
    for number, sample in enumerate(samples):
        if not {"input_ids", "labels"} <= set(sample) or len(sample["input_ids"]) != len(sample["labels"]):
            raise ConfigurationError(f"sample {number} of the batch must have input_ids and labels of one length")
    length = max(len(sample["input_ids"]) for sample in samples)
    input_ids = torch.full((len(samples), length), pad_id)  # [B, L]
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE)
    for row, sample in enumerate(samples):
        size = len(sample["input_ids"])
        input_ids[row, :size] = torch.as_tensor(sample["input_ids"])
        attention_mask[row, :size] = 1
        labels[row, :size] = torch.as_tensor(sample["labels"])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def by_id(dataset: QADataset, device: torch.device | str | None = None) -> Callable[[Iterable[int]], Batch]:
    """The `data` argument of `lmcleaner_ext.unlearn`: from sample ids to the batch of these rows, in their order.

    The callable raises MissingDataError for an id that the data set lacks.
    """

    def batch_of(ids: Iterable[int]) -> Batch:
        batch = dataset.batch([dataset.position(sample_id) for sample_id in ids])
        return batch if device is None else {name: tensor.to(device) for name, tensor in batch.items()}

    return batch_of


def token_weights(labels: Tensor) -> list[float]:
    """Each row's share of a loss that is the mean over the batch's tokens: the `weights` of `TrainingLogger.batch`.

        weight_j = n_j / sum_i n_i,    n_j = number of labels[j, 1:] other than IGNORE

    labels: int64 `[B, L]`, not shifted. A causal language model predicts token t from those before it, so the first
    label counts for nothing. The weights sum to 1. Raises ConfigurationError if no token counts.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        raise ConfigurationError(f"labels are a tensor [B, L], found {getattr(labels, 'shape', type(labels).__name__)}")
    counts = (labels[:, 1:] != IGNORE).sum(dim=1)  # [B]
    total = int(counts.sum())
    if total == 0:
        raise ConfigurationError("no label counts: every token of the batch is ignored, its mean loss is undefined")
    return [int(count) / total for count in counts]
