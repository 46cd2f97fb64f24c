"""A model is fed what its checkpoint's tokenizer gives, padded with the id that it looks for, up to its positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export import cli
from export.checkpoint import load_model, load_tokenizer, read_config, resolve_max_length, save_tokenizer
from export.model_inputs import bind_padding, fed_inputs
from export.original import original_run, require_no_types
from export.tasks.text_classification import TextClassificationTask
from export.training.batches import Collator
from serving.errors import ArtifactError, ExportError
from serving.runtime.tasks.text_classification import TextClassification
from tests.helpers.checkpoints import make_tokenizer
from tests.helpers.library_comparison import ALL_INPUTS, PAIRS, PLAIN_INPUTS, TEXTS, compare, edited, write_classifier
from tests.helpers.reviews import LABELS
from tests.helpers.tasks import classification


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny random classifier of an architecture, with a tokenizer of byte-level BPE."""
    return lambda architecture, **changes: write_classifier(tmp_path_factory.mktemp(architecture), architecture, **changes)


@pytest.fixture(scope="module")
def bert(make_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose token type embeddings matter, with a tokenizer that does not give any."""
    folder = tmp_path_factory.mktemp("bert") / "plain"
    return edited(make_checkpoint("bert"), folder, "tokenizer_config.json", model_input_names=PLAIN_INPUTS)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_decoders_are_padded_with_the_id_that_they_look_for(architecture: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(architecture, tokenizer=make_tokenizer("bpe", model_input_names=PLAIN_INPUTS), pad_token_id=5)
    assert load_tokenizer(folder).pad_token_id == 2
    found = compare(folder)
    assert found.texts > len(TEXTS) and found.max_difference < 1e-4
    with pytest.raises(ExportError, match=r"answer .*differently: 0/(score|label) is"):
        compare(folder, padding={"input_ids": 2})


@pytest.mark.parametrize("names", [["input_ids"], []])
def test_a_tokenizer_that_gives_no_attention_mask_is_exported(
    names: list[str], bert: Path, review_file: Path, tmp_path: Path
) -> None:
    """Padded rows need a mask; a row alone is the same without one."""
    folder = edited(bert, tmp_path / "plain", "tokenizer_config.json", model_input_names=names)
    given = ["--name", "n", "--task", "text-classification", "--artifacts", tmp_path, "--precision", "fp32"]
    assert cli.main(list(map(str, ["export", *given, "--checkpoint", folder, "--test", review_file, "--max-metric-drop", 1]))) == 0


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"max_position_embeddings": "64"}, "max_position_embeddings in config.json is '64', not a whole number"),
        (
            "config.json",
            {"model_type": "roberta", "pad_token_id": [0]},
            r"pad_token_id in config.json is \[0\], not a whole number",
        ),
        ("tokenizer_config.json", {"model_input_names": "input_ids"}, "model_input_names .* is 'input_ids', not a list"),
    ],
)
def test_a_damaged_number_or_list_is_one_error(
    file: str, changes: dict[str, Any], message: str, bert: Path, tmp_path: Path
) -> None:
    folder = edited(bert, tmp_path / "damaged", file, **changes)
    with pytest.raises(ArtifactError, match=message):
        resolve_max_length(None, load_tokenizer(folder), read_config(folder), default=None)


@pytest.mark.parametrize("command", ["export", "finetune"])
def test_no_padding_token_at_all_is_one_line(
    command: str, checkpoint: Callable[..., Path], review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer("bpe", model_input_names=PLAIN_INPUTS)
    folder = checkpoint("gpt2", tokenizer=tokenizer, pad_token_id=None, id2label=dict(enumerate(LABELS)))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text())
        del content["pad_token"]
        (folder / name).write_text(json.dumps(content))
    rows = ["--test", review_file] if command == "export" else ["--train", review_file, "--epochs", "1"]
    given = [command, "--name", "n", "--task", "text-classification", "--checkpoint", folder, "--artifacts", tmp_path, *rows]
    assert cli.main(list(map(str, given))) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "has no padding token" in error and "set both" in error


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_a_config_without_a_padding_token_takes_that_of_the_tokenizer(architecture: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(architecture, tokenizer=make_tokenizer("bpe", model_input_names=PLAIN_INPUTS), pad_token_id=None)
    model = load_model(folder, TextClassificationTask, load_tokenizer(folder))
    assert bind_padding(load_tokenizer(folder), model, "it") == {"input_ids": 2, "token_type_ids": 0}
    assert model.config.pad_token_id == 2
    assert compare(folder).max_difference < 1e-4


def test_a_padding_token_without_an_embedding_is_refused(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    model = load_model(folder, TextClassificationTask, load_tokenizer(folder))
    model.config.pad_token_id = 10_000
    with pytest.raises(ArtifactError, match="has the id 10000, but the model has only"):
        bind_padding(load_tokenizer(folder), model, "it")


def test_training_pads_with_the_id_that_the_model_looks_for() -> None:
    collate = Collator({"input_ids": 5}, TextClassificationTask(served=classification(("a", "b"))))
    rows = [{"input_ids": [7], "attention_mask": [1], "labels": 0}, {"input_ids": [7, 8], "attention_mask": [1, 1], "labels": 1}]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[7, 5], [7, 8]] and batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_only_inputs_that_the_tokenizer_gives_are_fed(bert: Path) -> None:
    assert compare(bert, PAIRS).max_difference < 1e-4
    with pytest.raises(ExportError, match=r"answer .*differently"):
        compare(bert, PAIRS, names=ALL_INPUTS)


def test_token_types_that_the_graph_does_not_take_are_refused_where_they_matter(
    checkpoint: Callable[..., Path], make_checkpoint: Callable[[str], Path]
) -> None:
    """GPT-2 adds the embedding of token 0 for type 0; DeBERTa's relatives without types ignore them."""
    for folder, matters in ((checkpoint("gpt2"), True), (make_checkpoint("deberta-v2"), False)):
        model = load_model(folder, TextClassificationTask, load_tokenizer(folder))
        assert "token_type_ids" in fed_inputs(load_tokenizer(folder), model)
        run = original_run(model, TextClassificationTask(served=classification(("a", "b"))), device="cpu")
        if matters:
            with pytest.raises(ExportError, match="token_type_ids, which change the answers"):
                require_no_types(run, 64)
        else:
            require_no_types(run, 64)


def test_special_tokens_in_a_text_are_words_if_the_tokenizer_says_so(
    make_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = edited(make_checkpoint("bert"), tmp_path / "split", "tokenizer_config.json", split_special_tokens=True)
    assert compare(folder).max_difference < 1e-4
    with pytest.raises(ExportError, match="a text of all special tokens"):
        compare(folder, split_special_tokens=False)


def test_an_empty_second_text_is_none(make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint("bert")
    pair = TextClassification(labels=("a", "b"), function_to_apply="softmax", pair=True)
    assert pair.texts((["a", "b", ""], ["c", "", ""])) == [("a", "c"), "b", ""]
    assert compare(folder, PAIRS).max_difference < 1e-4
    monkeypatch.setattr(TextClassification, "texts", lambda _, columns: list(zip(*columns, strict=True)))
    with pytest.raises(ExportError, match="an empty text as input 2"):
        compare(folder, PAIRS)


def test_the_tokenizers_length_is_not_the_models() -> None:
    tokenizer, config = SimpleNamespace(model_max_length=16), {"model_type": "bert", "max_position_embeddings": 64}
    assert resolve_max_length(None, tokenizer, config, default=None) == 16, "where transformers truncates"
    assert resolve_max_length(None, tokenizer, config, default=None, recommended=48) == 48
    assert resolve_max_length(None, tokenizer, config, default=None, recommended=128) == 64, "the model has no more positions"
    assert resolve_max_length(64, tokenizer, config, default=None) == 64
    with pytest.raises(ArtifactError, match="the model takes at most 64 tokens, not 65"):
        resolve_max_length(65, tokenizer, config, default=None)


def test_a_longer_length_than_the_tokenizers_is_saved_with_it(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("wordpiece")
    tokenizer.model_max_length = 16
    save_tokenizer(tokenizer, tmp_path, max_length=32)
    assert load_tokenizer(tmp_path).model_max_length == 32
