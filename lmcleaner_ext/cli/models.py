"""Hugging Face model folders and data files, as the commands take them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..datasets import QADataset, by_id
from ..errors import ConfigurationError
from ..layout import ParameterLayout
from ..log.record import SampleId

# What makes a folder of weights usable besides the weights and their configuration.
COMPANIONS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")


def load_model(folder: str, layout: ParameterLayout) -> nn.Module:
    """The causal language model in `folder`, in the precision that the log was recorded with; local files only."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigurationError(
            f"{path} is not a model folder: it has no config.json. Pass what save_pretrained wrote"
        )
    transformers = _transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _loaded(transformers.AutoModelForCausalLM, path, "a model")
    dtypes = {entry.dtype for entry in layout.entries}
    if len(dtypes) == 1:
        model = model.to(getattr(torch, dtypes.pop()))
    loaded: nn.Module = model.eval()
    return loaded


def load_data(
    rows: str | None, tokenizer: str | None, model: str, max_length: int, template: str
) -> Callable[[Iterable[int]], Any] | None:
    """ids -> batch from a file of question-answer rows; None without a file.

    A row's id is its `sample_id` where it has one, else `content_id(question, answer)`. The tokenizer is the model folder's unless
    another folder is given.
    """
    if rows is None:
        return None
    folder = Path(tokenizer or model)
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder: --tokenizer takes what save_pretrained wrote")
    loaded = _loaded(_transformers().AutoTokenizer, folder, "a tokenizer")
    return by_id(QADataset(read_json_rows(Path(rows)), loaded, max_length, template=template))


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """Objects from JSON lines or from one JSON array; raises ConfigurationError that names the line."""
    text = read_text(path)
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is neither JSON lines nor a JSON array: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigurationError(f"{path}: every row must be a JSON object with a question and an answer")
    return list(rows)


def read_text(path: Path) -> str:
    """The file's text; raises ConfigurationError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}") from error


def save_model(model: nn.Module, source: str, target: str) -> None:
    """Write weights, configuration and the source's tokenizer files to `target`."""
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))  # type: ignore[operator]
    for pattern in COMPANIONS:
        for file in Path(source).glob(pattern):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copy2(file, folder / file.name)


def parse_ids(text: str, as_text: bool) -> list[SampleId]:
    """`1,2,3`, or `@FILE`: a JSON list, or one id per line. Whole numbers become integers unless `as_text`."""
    if text.startswith("@"):
        path = Path(text[1:])
        content = read_text(path)
        if content.lstrip().startswith("["):
            try:
                ids = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ConfigurationError(f"{path} is not valid JSON: {error}") from error
            wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int | str)]
            if wrong:
                raise ConfigurationError(f"{path}: an id is a whole number or a text, found {wrong[0]!r}")
            return [str(i) for i in ids] if as_text else ids
        parts = content.splitlines()
    else:
        parts = text.split(",")
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise ConfigurationError(f"--ids {text!r} names no id")
    return [part if as_text else _number(part) for part in found]


def _number(text: str) -> SampleId:
    try:
        return int(text)
    except ValueError:
        return text


def _loaded(kind: Any, folder: Path, what: str) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises those of every format that it reads
        raise ConfigurationError(
            f"{folder} does not load as {what} of transformers ({type(error).__name__}: {error}): pass what save_pretrained wrote"
        ) from error


def _transformers() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ImportError as error:
        raise ConfigurationError("model folders need transformers: pip install 'lmcleaner-ext[hf]'") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
