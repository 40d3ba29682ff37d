"""inspect, plan, unlearn, verify and show-config on a tiny Llama saved by transformers, and what errors look like."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lmcleaner_ext as lmc
from lmcleaner_ext import datasets
from lmcleaner_ext.cli import main
from lmcleaner_ext.cli.models import parse_ids
from lmcleaner_ext.unlearn.options import UnlearnOptions

STEPS, BATCH = 12, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a trained model, its log and its data: model/, log/, rows.jsonl."""
    folder = tmp_path_factory.mktemp("run")
    rows = datasets.generate_authors(2, 8, seed=5)
    words = sorted({word for row in rows for key in ("question", "answer") for word in row[key].split()})
    names = ["<unk>", "<eos>", "Question:", "Answer:", *words]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(names))}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    dataset = datasets.QADataset(rows, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with lmc.TrainingLogger(folder / "log", model, optimizer, capacity=STEPS, anchor_every=5) as log:
        for step in range(STEPS):
            positions = [(BATCH * step + i) % len(dataset) for i in range(BATCH)]
            batch = dataset.batch(positions)
            ids = [dataset.sample_ids[position] for position in positions]
            log.batch(sample_ids=ids, weights=datasets.token_weights(batch["labels"]))
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ids").write_text("\n".join(str(i) for i in dataset.sample_ids[:2]))
    return folder


@pytest.fixture
def call(run, capsys):
    """call(command, *arguments) -> (exit code, parsed stdout) of a request for two samples, with data."""

    def request(command: str, *arguments: str, data: bool = True):
        options = ["--model", str(run / "model"), "--ids", f"@{run / 'ids'}", "--json", *arguments]
        options += ["--data", str(run / "rows.jsonl")] if data else []
        code = main([command, str(run / "log"), *options])
        return code, json.loads(capsys.readouterr().out)

    return request


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_unlearn_writes_the_model_that_the_library_computes(run, call, tmp_path):
    before = weights(run / "model")
    code, printed = call("unlearn", "--out", str(tmp_path / "new"), "--audit-log", str(tmp_path / "audit.jsonl"))
    assert code == 0
    expected = LlamaForCausalLM.from_pretrained(run / "model")
    dataset = datasets.QADataset(datasets.read_rows(run / "rows.jsonl"), datasets.ByteTokenizer(), 4096)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "model")
    data = datasets.by_id(datasets.QADataset(dataset.rows, tokenizer))
    lmc.unlearn(expected, run / "log", dataset.sample_ids[:2], data=data)
    written = LlamaForCausalLM.from_pretrained(tmp_path / "new")
    for (name, p), (_, q) in zip(written.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7, msg=name)
    assert all(torch.equal(before[name], value) for name, value in weights(run / "model").items())
    assert any(not torch.equal(before[name], value) for name, value in weights(tmp_path / "new").items())
    assert (tmp_path / "new" / "tokenizer.json").exists()
    assert printed["audit"]["ids"] == 2
    assert printed["audit"]["digest_after"] != printed["audit"]["digest_before"]
    events = [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert events == ["request", "result"]


def test_dry_run_writes_nothing(run, call):
    before = (run / "model" / "model.safetensors").read_bytes()
    code, printed = call("unlearn", "--dry-run", "--mode", "exact", "--every", "4")
    assert code == 0
    assert printed["out"] is None
    assert printed["audit"]["mode"] == "exact"
    assert printed["audit"]["products"] == 3
    assert (run / "model" / "model.safetensors").read_bytes() == before


CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_config_gives_options_and_the_command_line_wins(call):
    code, printed = call("unlearn", "--dry-run", "-K", "3", "--config", str(CONFIGS / "unlearn-sgd.json"))
    assert code == 0
    assert (printed["audit"]["mode"], printed["audit"]["K"], printed["audit"]["damping"]) == ("exact", 3, 1e-4)


@pytest.mark.parametrize("text", ['{"mode": "wrong"}', '{"no_such_option": 1}', "[1]", "{", None])
def test_a_wrong_config_is_wrong_usage(call, tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        call("unlearn", "--dry-run", "--config", str(tmp_path / "config.json"))
    assert stopped.value.code == 2


def config(tmp_path, text: str, name: str = "config.json") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_config_in_yaml_has_the_same_names(call, tmp_path):
    code, printed = call("unlearn", "--dry-run", "--config", str(CONFIGS / "unlearn-sgd.yaml"))
    assert code == 0
    as_json = json.loads((CONFIGS / "unlearn-sgd.json").read_text())
    assert {name: printed["audit"][name] for name in as_json if name != "every"} == {
        name: value for name, value in as_json.items() if name != "every"
    }
    code, printed = call("unlearn", "--dry-run", "--config", config(tmp_path, "damping: 1e-3\nK: 2\n", "x.yml"))
    assert (code, printed["audit"]["damping"], printed["audit"]["K"]) == (0, 0.0, 2)  # mode none has no damping


@pytest.mark.parametrize("first", [True, False])
def test_the_command_line_wins_where_it_names_the_default_too(call, tmp_path, first):
    given, file = ["-K", "800", "--mode", "auto"], ["--config", config(tmp_path, '{"K": 3, "mode": "exact"}')]
    code, printed = call("unlearn", "--dry-run", *(given + file if first else file + given))
    assert (code, printed["audit"]["K"], printed["audit"]["mode"]) == (0, 800, "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"K": "many"}', "K is a whole number, found 'many'"),
        ('{"K": true}', "K is a whole number, found True"),
        ('{"K": null}', "K is a whole number, found None"),
        ('{"damping": "much"}', "damping is a number, found 'much'"),
        ('{"backend": "quantum"}', "backend is one of reference, cpu, cuda, triton, found 'quantum'"),
        ('{"allow_changed_weights": 1}', "allow_changed_weights is true or false, found 1"),
        ('{"no_such_option": 1}', "no option 'no_such_option', its options are"),
        ("[1]", "expected an object of options, found list"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(call, capsys, tmp_path, text, message):
    for name in ("config.json", "config.yaml"):
        with pytest.raises(SystemExit) as stopped:
            call("unlearn", "--dry-run", "--config", config(tmp_path, text, name))
        shown = capsys.readouterr().err
        assert stopped.value.code == 2
        assert name in shown
        assert message in shown


def test_every_option_of_a_request_is_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["unlearn", "--help"])
    shown = capsys.readouterr().out
    for f in fields(UnlearnOptions):
        flag = f"-{f.name}" if len(f.name) == 1 else "--" + (f.metadata["flag"] or f.name).replace("_", "-")
        assert (f" {flag} " in shown.replace("\n", " ")) == f.metadata["command_line"], f.name
    assert "{reference,cpu,cuda,triton}" in shown


def test_an_unknown_backend_is_wrong_usage_and_leaves_no_request(run, tmp_path):
    request = ["unlearn", str(run / "log"), "--model", str(run / "model"), "--ids", "3", "--level", "batch"]
    with pytest.raises(SystemExit) as stopped:
        main([*request, "--dry-run", "--backend", "foo", "--audit-log", str(tmp_path / "audit.jsonl")])
    assert stopped.value.code == 2
    assert not (tmp_path / "audit.jsonl").exists()


def test_tol_and_micro_batch_reach_the_sweep(call):
    code, printed = call("unlearn", "--dry-run", "--tol", "1e6", "--micro-batch", "1")
    assert code == 0
    assert printed["audit"]["K_used"] < STEPS
    with pytest.raises(SystemExit):
        call("unlearn", "--dry-run", "--tol", "little")


def test_unlearn_skips_a_batch_without_data(run, call, tmp_path):
    code = main(
        [
            "unlearn",
            str(run / "log"),
            "--model",
            str(run / "model"),
            "--ids",
            "3",
            "--level",
            "batch",
            "--out",
            str(tmp_path / "new"),
        ]
    )
    assert code == 0
    assert (tmp_path / "new" / "model.safetensors").exists()


def test_plan_with_and_without_data(call):
    code, with_data = call("plan")
    assert code == 0
    assert with_data["automatic"] == "none"
    modes = {mode["mode"]: mode for mode in with_data["modes"]}
    assert modes["exact"]["possible"]
    assert modes["exact"]["passes"] > modes["none"]["passes"]
    assert not modes["diag"]["possible"]


def test_verify_measures_against_retraining(call):
    code, report = call("verify", "--modes", "none,exact")
    assert code == 0
    found = {mode["mode"]: mode for mode in report["modes"]}
    assert found["exact"]["residual"] < found["none"]["residual"] < 0.3
    assert report["steps"] == STEPS


@pytest.mark.parametrize("command", ["inspect", "plan", "verify"])
def test_tables_for_people(run, capsys, command):
    request = ["--model", str(run / "model"), "--ids", f"@{run / 'ids'}", "--data", str(run / "rows.jsonl")]
    assert main([command, str(run / "log"), *(request if command != "inspect" else [])]) == 0
    shown = capsys.readouterr().out
    assert {"inspect": "AdamW", "plan": "auto: none", "verify": "residual"}[command] in shown


def test_show_config(capsys):
    assert main(["show-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["lmcleaner_ext"] == lmc.__version__


def test_errors_are_one_message_and_exit_code_1(run, capsys, tmp_path):
    model, log = str(run / "model"), str(run / "log")
    cases = {
        "UnknownSampleError": ["plan", log, "--model", model, "--ids", "123456"],
        "LogFormatError": ["inspect", str(tmp_path)],
        "ConfigurationError": ["plan", log, "--model", str(tmp_path), "--ids", "1"],
        "MissingDataError": ["unlearn", log, "--model", model, "--ids", f"@{run / 'ids'}", "--dry-run"],
        "FileNotFoundError": ["plan", log, "--model", model, "--ids", f"@{tmp_path / 'none'}"],
    }
    for name, arguments in cases.items():
        assert main(arguments) == 1, name
        shown = capsys.readouterr()
        assert name in shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""


def test_a_changed_model_is_refused_and_out_is_not_overwritten(run, capsys, tmp_path):
    model = LlamaForCausalLM.from_pretrained(run / "model")
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "other")
    request = ["unlearn", str(run / "log"), "--ids", "3", "--level", "batch"]
    assert main([*request, "--model", str(tmp_path / "other"), "--out", str(tmp_path / "new")]) == 1
    assert "WrongModelError" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*request, "--model", str(run / "model"), "--out", str(tmp_path / "other")]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["unlearn", "log"], ["demo", "--steps", "many"]])
def test_wrong_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_ids(tmp_path):
    (tmp_path / "list.json").write_text('[7, "7"]')
    (tmp_path / "lines").write_text("7\n\nabc\n")
    assert parse_ids("1, 2,x", as_text=False) == [1, 2, "x"]
    assert parse_ids("1,2", as_text=True) == ["1", "2"]
    assert parse_ids(f"@{tmp_path / 'list.json'}", as_text=False) == [7, "7"]
    assert parse_ids(f"@{tmp_path / 'lines'}", as_text=False) == [7, "abc"]
    for text in (",", f"@{tmp_path / 'wrong.json'}"):
        (tmp_path / "wrong.json").write_text("[1.5]")
        with pytest.raises(lmc.errors.ConfigurationError):
            parse_ids(text, as_text=False)
