"""What a question-answer row is: the keys, their checks, and the id that names a row.

A row is a plain dict with TOFU's keys. `question` and `answer` are always there; `paraphrased_question`,
`paraphrased_answer` (text) and `perturbed_answer` (list of texts) where a truth ratio is wanted; `sample_id` once
loaded.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lmcleaner_ext.errors import ConfigurationError

Row = dict[str, Any]

REQUIRED_KEYS = ("question", "answer")
OPTIONAL_TEXT_KEYS = ("paraphrased_question", "paraphrased_answer", "option1", "option2", "option3", "option4")


def content_id(question: str, answer: str) -> int:
    """The id of a row by what it says: the first 63 bits of SHA-256(question, one zero byte, answer), both in UTF-8.

    63 bits fit a signed 64-bit integer. The question alone would not do: TOFU's rows 100 and 440 share one.

    >>> content_id("Who wrote it?", "She did.")
    7966862698638598166
    """
    digest = hashlib.sha256(question.encode() + b"\0" + answer.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_row(row: object, where: str) -> Row:
    """Return `row` if it has the shape above; otherwise raise ConfigurationError beginning with `where`."""
    if not isinstance(row, dict):
        raise ConfigurationError(f"{where}: expected a JSON object, found {type(row).__name__}")
    for key in REQUIRED_KEYS:
        if key not in row:
            raise ConfigurationError(
                f"{where}: the key {key!r} is missing; found {', '.join(sorted(row)) or 'no keys'}"
            )
    for key in (*REQUIRED_KEYS, *OPTIONAL_TEXT_KEYS):
        if key in row:
            _check_text(row[key], f"{where}: {key!r}")
    if "perturbed_answer" in row:
        answers = row["perturbed_answer"]
        if not isinstance(answers, list) or not answers:
            raise ConfigurationError(f"{where}: 'perturbed_answer' must be a list of texts that is not empty")
        for index, answer in enumerate(answers):
            _check_text(answer, f"{where}: 'perturbed_answer'[{index}]")
    return row


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{where} must be a text that is not blank, found {value!r}")
    check_unicode(value, where)


def check_unicode(value: str, where: str) -> None:
    """Raise ConfigurationError beginning with `where` for half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer can read
        raise ConfigurationError(f"{where} is not valid Unicode: {error}") from error
