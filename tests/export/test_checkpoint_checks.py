"""A checkpoint of which the stock model would compute something else is refused by name, to export as to fine-tune."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from export.checkpoint import load_for_training, load_model, load_tokenizer
from export.cli import main
from export.sources import checkpoint_folder
from export.tasks import task_class
from tests.helpers.checkpoints import make_config, make_tokenizer

Weights = dict[str, Any]


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def edit(file: Path, **values: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(content | values), encoding="utf-8")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a sentiment checkpoint."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "theirs"))


@pytest.fixture
def said(review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a command says of a checkpoint that it refuses, by line."""

    def said(command: str, folder: Path, *arguments: str) -> list[str]:
        rows = {"export": ["--test"], "finetune": ["--device", "cpu", "--train"]}[command]
        places = ["--name", "tiny", "--artifacts", str(tmp_path / "artifacts"), "--checkpoint", str(folder)]
        assert main([command, *places, *arguments, *rows, str(review_file)]) == 1
        assert not [path for path in (tmp_path / "artifacts").rglob("manifest.json") if ".training" not in path.parts]
        return capsys.readouterr().err.splitlines()

    return said


@pytest.fixture
def refusal(said: Callable[..., list[str]]) -> Callable[..., str]:
    """The one line with which a command refuses a checkpoint, without ``error:``."""

    def refusal(command: str, folder: Path, *arguments: str) -> str:
        lines = said(command, folder, *arguments)
        assert not any("Traceback" in line for line in lines)
        assert lines[-1].startswith("error: ")
        return lines[-1].removeprefix("error: ")

    return refusal


# -- code of its own -------------------------------------------------------------------------------------------------------------

OWN_MODEL = {"AutoConfig": "configuration_bert.OwnConfig", "AutoModel": "modeling_bert.OwnModel"}


@pytest.mark.parametrize(
    ("file", "auto_map", "named"),
    [
        ("config.json", OWN_MODEL, "AutoConfig → configuration_bert.OwnConfig, AutoModel → modeling_bert.OwnModel"),
        ("config.json", {"AutoModelForCausalLM": "owner/other--m.Own"}, "AutoModelForCausalLM → owner/other--m.Own"),
        ("config.json", {"AutoTokenizer": ["t.Own", None]}, "AutoTokenizer → t.Own"),
        ("tokenizer_config.json", {"AutoTokenizer": ["t.Own", "t.OwnFast"]}, "AutoTokenizer → t.OwnFast"),
        ("tokenizer_config.json", ["t.Own", None], "AutoTokenizer → t.Own"),
    ],
)
@pytest.mark.parametrize("command", ["export", "finetune"])
def test_a_checkpoint_with_code_of_its_own_is_refused(
    command: str, file: str, auto_map: object, named: str, folder: Path, refusal: Callable[..., str]
) -> None:
    edit(folder / file, auto_map=auto_map)
    assert refusal(command, folder) == (
        f"{folder} has code of its own ({file}, auto_map: {named}), which is never run, and the classes of transformers would "
        f"compute something else from its files (use a checkpoint without own code; or remove auto_map from its {file} if they "
        "compute the same)"
    )


@pytest.mark.parametrize("auto_map", [{"AutoImageProcessor": "p.Own", "TFAutoModel": "m.Own"}, {"AutoModel": None}, {}, None, 3])
def test_an_auto_map_without_models_and_tokenizers_does_no_harm(auto_map: object, folder: Path) -> None:
    edit(folder / "config.json", auto_map=auto_map)
    edit(folder / "tokenizer_config.json", auto_map={"AutoProcessor": "p.Own", "AutoTokenizer": [None, None]})
    assert checkpoint_folder(str(folder), folder) == folder


@pytest.mark.parametrize("command", ["export", "finetune"])
def test_a_pipeline_of_its_own_is_refused_for_its_task_alone(command: str, folder: Path, refusal: Callable[..., str]) -> None:
    own = {"impl": "pair.PairPipeline", "pt": ["AutoModelForSequenceClassification"]}
    edit(folder / "config.json", custom_pipelines={"text-classification": own, "pair-classification": own})
    assert "has a text-classification pipeline of its own (custom_pipelines in config.json)" in refusal(command, folder)
    edit(folder / "config.json", custom_pipelines={"pair-classification": own})
    assert "the model takes at most" in refusal(command, folder, "--max-length", "10000")


def test_a_class_that_transformers_does_not_have_is_pointed_out(folder: Path, said: Callable[..., list[str]]) -> None:
    edit(folder / "config.json", architectures=["OwnForSequenceClassification"])
    rewrite(folder, without("classifier"))
    *_, warning, error = said("export", folder)
    assert warning == (
        f"warning: {folder} was saved by OwnForSequenceClassification, which transformers does not have: "
        "BertForSequenceClassification is used instead, and may compute something else"
    )
    assert "lacks 2 weights" in error


@pytest.mark.parametrize(("named", "pointed_out"), [([5], True), ("BertModel", False), (None, False)])
def test_damaged_architectures_are_no_traceback(
    named: object, pointed_out: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder / "config.json", architectures=named)
    load_model(folder, task_class("text-classification"), load_tokenizer(folder))
    assert ("was saved by 5, which transformers does not have" in caplog.text) == pointed_out


# -- adapters --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LoRA adapter with a head of three labels."""
    import peft

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base_checkpoint, num_labels=3)
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("beside_a_model", [False, True])
@pytest.mark.parametrize("command", ["export", "finetune"])
def test_an_adapter_is_refused_with_the_command_that_merges_it(
    command: str, beside_a_model: bool, adapter: Path, base_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """Beside a model too: transformers loads the adapter then."""
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    if beside_a_model:
        shutil.copytree(base_checkpoint, folder, dirs_exist_ok=True)
    said = refusal(command, folder)
    assert said.startswith(f"{folder} is an adapter of {base_checkpoint}, not a checkpoint: it has adapter_config.json")
    assert said.endswith(f"; then save the tokenizer of {base_checkpoint} into the same folder)")


@pytest.mark.long
def test_the_command_merges_the_adapter(adapter: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    import peft

    said = refusal("export", adapter)
    command = shlex.split(said.partition("merge it first: ")[2].partition(", where N")[0].replace("=N", "=3"))
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, capture_output=True)
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    whole = peft.AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, whole(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("content", ["[]", "{", "null", "[" * 10_000, '{"task_type": []}'])
def test_a_damaged_adapter_is_one_line(content: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "adapter_config.json").write_text(content, encoding="utf-8")
    assert "adapter_config.json" in refusal("export", tmp_path)


# -- weights ---------------------------------------------------------------------------------------------------------------------

WHOLE = "does its config.json belong to its weights?"
FITS = "BertForSequenceClassification"


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: values for name, values in weights.items() if part not in name}


def wrapped(weights: Weights) -> Weights:
    return {f"module.{name}": values for name, values in weights.items()}


@pytest.mark.parametrize(
    ("change", "config", "found"),
    [
        (without("position"), {}, f"lacks 1 weight (bert.embeddings.position_embeddings.weight), which {FITS} has by its config"),
        (None, {"num_hidden_layers": 3}, "lacks 16 weights (bert.encoder.layer.2.attention.output.LayerNorm.bias, "),
        (None, {"num_hidden_layers": 1}, "has 16 weights (bert.encoder.layer.1.attention.output.LayerNorm.bias, "),
        (None, {"max_position_embeddings": 90}, "in another shape than BertForSequenceClassification by its config.json, where"),
        (wrapped, {}, f"do not fit {FITS}: their names begin with module. (save the model inside DataParallel"),
    ],
    ids=["no positions", "too few layers", "too many layers", "other shape", "wrapped"],
)
@pytest.mark.parametrize("command", ["export", "finetune"])
def test_weights_that_do_not_fit_the_config_are_refused(
    command: str, change: Any, config: dict[str, Any], found: str, folder: Path, refusal: Callable[..., str]
) -> None:
    if change is not None:
        rewrite(folder, change)
    edit(folder / "config.json", **config)
    said = refusal(command, folder)
    assert found in said
    assert str(folder) in said
    assert WHOLE in said or change is wrapped


def test_a_missing_head_is_refused_in_an_export(folder: Path, refusal: Callable[..., str]) -> None:
    rewrite(folder, without("classifier"))
    head = "lacks 2 weights (classifier.bias, classifier.weight), which BertForSequenceClassification has by its config.json"
    remedy = f"fine-tune it first with: tritonize finetune --task text-classification --checkpoint {folder}"
    assert refusal("export", folder) == f"{folder} {head} ({remedy})"


def test_another_number_of_labels_is_refused_in_an_export(folder: Path, refusal: Callable[..., str]) -> None:
    edit(folder / "config.json", id2label={"0": "negative", "1": "positive", "2": "neither"})
    said = refusal("export", folder)
    assert "has 2 weights (classifier.bias, classifier.weight) in another shape" in said
    assert "where classifier.bias is [3] (its head has one row per label: see id2label or num_labels)" in said


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Auto class → a checkpoint that it saved."""
    made: dict[str, Path] = {}

    def saved(auto: str) -> Path:
        if auto not in made:
            tokenizer = make_tokenizer("wordpiece")
            made[auto] = tmp_path_factory.mktemp("saved") / auto
            getattr(transformers, auto).from_config(make_config("bert", tokenizer)).save_pretrained(made[auto])
            tokenizer.save_pretrained(made[auto])
        return made[auto]

    return saved


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"])
def test_weights_that_a_task_does_not_need_may_be_missing_or_left_over(auto: str, saved: Callable[[str], Path]) -> None:
    folder, task = saved(auto), task_class("feature-extraction")
    tokenizer = load_tokenizer(folder)
    ours, theirs = load_model(folder, task, tokenizer), transformers.AutoModel.from_pretrained(folder)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).last_hidden_state, theirs.eval()(ids).last_hidden_state, rtol=0, atol=0)
    new = load_for_training(folder, task_class("text-classification"), tokenizer, new_head=True)[1]
    pooler = {"bert.pooler.dense.bias", "bert.pooler.dense.weight"} if auto == "AutoModelForMaskedLM" else set()
    head = set() if auto == "AutoModelForSequenceClassification" else {"classifier.bias", "classifier.weight"}
    assert new == pooler | head


def test_positions_that_old_checkpoints_saved_do_no_harm(folder: Path) -> None:
    rewrite(folder, lambda weights: weights | {"bert.embeddings.position_ids": np.arange(80)[None]})
    load_model(folder, task_class("text-classification"), load_tokenizer(folder))


# -- tokens ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"output_hidden_states": True, "output_attentions": True}, {"torchscript": True}, {"return_dict": False}]
)
def test_what_else_a_model_returns_by_its_config_does_no_harm(
    options: dict[str, bool], folder: Path, review_file: Path, tmp_path: Path
) -> None:
    edit(folder / "config.json", **options)
    places = ["--artifacts", str(tmp_path / "artifacts"), "--device", "cpu"]
    data = ["--checkpoint", str(folder), "--train", str(review_file), "--max-train-rows", "40", "--epochs", "1"]
    assert main(["finetune", *places, *data]) == 0
    assert main(["export", *places, "--precision", "fp32"]) == 0


@pytest.mark.parametrize("command", ["export", "finetune"])
def test_tokens_without_an_embedding_are_refused(command: str, folder: Path, refusal: Callable[..., str]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<user>", "<url>"])
    tokenizer.save_pretrained(folder)
    said = refusal(command, folder)
    tokens = f"'<user>' (token {size}), '<url>' (token {size + 1})"
    assert f"the model of {folder} has embeddings of {size} tokens, numbered from 0, but its tokenizer also has {tokens}" in said
    assert "model.resize_token_embeddings(len(tokenizer))" in said
