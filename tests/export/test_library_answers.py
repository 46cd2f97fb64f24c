"""Exported graphs, fed as they are served, answer raw texts as the library does that the checkpoint is made for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export import cli, convert, graph, library_answers
from export.checkpoint import load_model, load_tokenizer, read_config, read_settings, resolve_max_length, save_tokenizer
from export.model_inputs import bind_padding, fed_inputs
from export.original import original_run, require_no_types
from export.output_head import add_output_head
from export.tasks import task_class
from export.tasks.exported import ExportedTask
from export.tasks.feature_extraction import FeatureExtractionTask
from export.tasks.text_classification import TextClassificationTask
from export.training.batches import Collator
from serving.errors import ArtifactError, ExportError
from serving.manifests import ReferenceCheck
from serving.runtime.tasks.text_classification import TextClassification
from serving.runtime.tokenization import TextEncoder
from tests.helpers.checkpoints import make_config, make_tokenizer, randomize
from tests.helpers.reviews import LABELS, review_rows
from tests.helpers.tasks import classification

BART_LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
    },
    "big_bird": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
        "block_size": 4,
        "num_random_blocks": 1,
    },
}
SIZES["qwen2"] = SIZES["llama"]
SIZES["bart"] = {
    "d_model": 32,
    **{f"{half}_{size}": number for half in ("encoder", "decoder") for size, number in BART_LAYERS.items()},
    "max_position_embeddings": 80,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}
TEXTS = [text for text, _ in review_rows(8, seed=3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny random classifier of an architecture, with a tokenizer of byte-level BPE."""

    def make(architecture: str, *, tokenizer: Any = None, **changes: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        tokenizer = tokenizer or make_tokenizer("bpe")
        ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        config = AutoConfig.for_model(architecture, **SIZES[architecture], **(ids | changes))
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        randomize(model)
        folder = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def edited(source: Path, folder: Path, name: str, **changes: Any) -> Path:
    """Copy a checkpoint with other values in one of its JSON files; None removes a key."""
    shutil.copytree(source, folder)
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def compare(
    folder: Path,
    columns: tuple[list[str], ...] = (TEXTS,),
    *,
    task: str = "text-classification",
    max_length: int = 64,
    settings: Mapping[str, Any] | None = None,
    names: list[str] | None = None,
    padding: dict[str, int] | None = None,
    split_special_tokens: bool | None = None,
    opset: int = 18,
) -> ReferenceCheck:
    """Convert a checkpoint and compare it as ``export`` does; the last arguments replace what ``export`` would choose."""
    kind = task_class(task)
    assert issubclass(kind, ExportedTask)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, kind, tokenizer)
    bound: ExportedTask = kind.from_config(read_config(folder), pair=len(columns) == 2 and task == "text-classification")
    bound = bound.with_settings(settings or {}).with_tokenizer(tokenizer)
    values = bind_padding(tokenizer, model, str(folder))
    raw = convert.convert(folder, kind, folder / "graph", opset=opset)
    add_output_head(raw, bound)
    fed = graph.input_names(raw) if names is None else names
    if names is None and "token_type_ids" in fed and "token_type_ids" not in fed_inputs(tokenizer, model):
        graph.remove_token_types(raw)
        fed.remove("token_type_ids")
    save_tokenizer(tokenizer, folder / "served", max_length)
    encoder = TextEncoder(
        str(folder / "served" / "tokenizer.json"),
        max_length=max_length,
        names=fed,
        padding=values if padding is None else padding,
        split_special_tokens=tokenizer.split_special_tokens if split_special_tokens is None else split_special_tokens,
    )
    run = graph.runner(graph.session(raw), bound.model_outputs)
    served = library_answers.ServedGraph(task=bound, run=run, encoder=encoder, max_length=max_length)
    return library_answers.require_equal_answers(served, model, load_tokenizer(folder), columns, {})


PLAIN_INPUTS = ["input_ids", "attention_mask"]
ALL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
PAIRS = (TEXTS, [text for text, _ in review_rows(8, seed=4)])


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


def test_big_birds_attention_depends_on_the_length(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("big_bird")
    with pytest.raises(ExportError, match="a text of 64 tokens") as failed:
        compare(folder)
    assert "reduce --max-length" in failed.value.hint


def test_a_text_on_which_the_graph_fails_is_named(
    checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BART's head wants equally many end tokens in all rows of a batch."""
    monkeypatch.setattr(convert, "_find_one_end_token", lambda _: None)
    folder = checkpoint("bart", tokenizer=make_tokenizer("bpe", model_input_names=PLAIN_INPUTS))
    with pytest.raises(ExportError, match=r"a text of all special tokens, .*, where the exported graph fails: ONNX Runtime cannot"):
        compare(folder)
    assert not capfd.readouterr().err, "ONNX Runtime does not print it too"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export", "error: BartForSequenceClassification cannot compute a batch of rows: All examples must have the same number"),
        (
            "finetune",
            "error: the model cannot compute a batch: All examples must have the same number of <eos> tokens.; the batch: ",
        ),
    ],
)
def test_rows_that_the_model_refuses_are_one_line(
    command: str, message: str, checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint("bart", tokenizer=make_tokenizer("bpe", model_input_names=PLAIN_INPUTS))
    rows = [{"text": f"{text}{' </s>' * (at % 3 == 0)}", "label": f"LABEL_{at % 2}"} for at, text in enumerate(TEXTS * 8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "export": ["--test"],
        "finetune": ["--epochs", "1", "--keep-leaks", "--validation", str(tmp_path / "rows.jsonl"), "--train"],
    }
    places = ["--artifacts", str(tmp_path), "--checkpoint", str(folder), "--max-length", "64", "--device", "cpu"]
    assert cli.main([command, *places, *data[command], str(tmp_path / "rows.jsonl")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_text_that_names_the_end_token_breaks_no_batch_of_bart(checkpoint: Callable[..., Path]) -> None:
    tokenizer = make_tokenizer("bpe", model_input_names=PLAIN_INPUTS)
    folder, end = checkpoint("bart", tokenizer=tokenizer), tokenizer.sep_token_id
    texts = ["good", "good </s> film </s></s> of course", "</s>", *TEXTS]
    assert compare(folder, (texts,)).max_difference < 1e-4
    labels = json.dumps(["film", "food"])
    found = compare(folder, (texts, [labels] * len(texts)), task="zero-shot-classification")
    assert found.texts > len(texts) and found.max_difference < 1e-4
    run = graph.runner(graph.session(folder / "graph" / "model.onnx"), ["logits"])
    alone = run({name: np.array([[0, 7, end]]) for name in PLAIN_INPUTS[:1]} | {"attention_mask": np.ones((1, 3), dtype=np.int64)})
    ids = np.array([[0, 7, end], [7, 8, 9]])  # the second row has no end token, which is not the fault of the first
    both = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert np.abs(both["logits"][0] - alone["logits"][0]).max() < 1e-4


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


@pytest.mark.parametrize(
    ("version", "cosine"),
    [("5.3.0", 1.0), ("5.7.0", 0.98636895), ("6.2.0", 0.98636895), (None, 1.0)],
)
def test_white_space_around_texts_is_embedded_as_by_the_version_that_wrote_the_files(
    version: str | None, cosine: float, embedder: Path, tmp_path: Path
) -> None:
    """The cosines are those of ``SentenceTransformer.encode`` of each version for this very checkpoint."""
    folder = shutil.copytree(embedder, tmp_path / "embedder")
    if version is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"__version__": {"sentence_transformers": version}}))
    settings = read_settings(folder, FeatureExtractionTask, {})
    task = FeatureExtractionTask.from_config(read_config(folder)).with_settings(settings)
    tokenizer = load_tokenizer(folder)
    encode = task.library(load_model(folder, FeatureExtractionTask, tokenizer), tokenizer, max_length=64, options={})
    one, other = (np.array(encode((text,))) for text in ("a superb film\n", "a superb film"))
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(cosine, abs=1e-5)
    if version in ("5.3.0", "6.2.0"):
        assert compare(folder, task="feature-extraction", settings=settings).max_difference < 1e-4


@pytest.mark.parametrize("opset", [17, 18])
def test_embeddings_are_normalized_before_they_are_truncated_where_that_is_a_module(
    opset: int, embedder: Path, tmp_path: Path
) -> None:
    """``SentenceTransformer(folder, truncate_dim=16).encode``, versions 5.3.0 and 6.2.0, gives a norm of 0.72819275."""
    folder = shutil.copytree(embedder, tmp_path / "embedder")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = read_settings(folder, FeatureExtractionTask, {"truncate_dim": 16})
    assert (settings["normalize"], settings["unit_first"], settings["dims"]) == (False, True, 16)
    task = FeatureExtractionTask.from_config(read_config(folder)).with_settings(settings)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, FeatureExtractionTask, tokenizer)
    encode = task.library(model, tokenizer, max_length=64, options={})
    assert np.linalg.norm(encode(("a superb film",))) == pytest.approx(0.72819275, abs=1e-6)
    assert compare(folder, task="feature-extraction", settings=settings, opset=opset).max_difference < 1e-4
    chosen = read_settings(folder, FeatureExtractionTask, {"truncate_dim": 16, "normalize": True})
    assert chosen["normalize"] and "unit_first" not in chosen, "encode(normalize_embeddings=True)"
    assert not read_settings(folder, FeatureExtractionTask, {"truncate_dim": 32}).get("unit_first")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa with the files of sentence-transformers; its weights are those that the cosines were recorded with."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("embedder")
    tokenizer = make_tokenizer("bpe")
    model = AutoModel.from_config(make_config("roberta", tokenizer))
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = ("Transformer", "Pooling")
    modules = [{"path": f"{'1_Pooling' * at}", "type": f"sentence_transformers.models.{kind}"} for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def test_a_text_that_the_library_answers_and_the_server_refuses_stops_the_export(
    make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextClassification.preprocess

    def refuse(self: Any, columns: Any, encoder: Any) -> Any:
        if "" in columns[0]:
            raise ValueError("row 0 is empty")
        return original(self, columns, encoder)

    monkeypatch.setattr(TextClassification, "preprocess", refuse)
    with pytest.raises(ExportError, match="answers an empty text, '', which would be refused when served: row 0 is empty"):
        compare(make_checkpoint("bert"))


def refusing(refused: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the library refuse some texts."""
    original = TextClassificationTask.library

    def library(self: Any, *arguments: Any, **options: Any) -> Callable[[Any], object]:
        ask = original(self, *arguments, **options)

        def answer(row: Any) -> object:
            if refused(row[0]):
                raise RuntimeError("no answer\nat all")
            return ask(row)

        return answer

    monkeypatch.setattr(TextClassificationTask, "library", library)


def test_texts_that_the_library_refuses_are_named_and_the_others_compared(
    make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint("bert")
    caplog.set_level("INFO")
    whole = compare(folder).texts
    with monkeypatch.context() as changed:
        refusing(lambda text: text == TEXTS[0], changed)
        assert compare(folder).texts == whole - 1
    assert "refuses 1 of the texts, so they are not compared: row 1 (RuntimeError: no answer)" in caplog.text
    with monkeypatch.context() as changed:
        refusing(lambda text: text in TEXTS, changed)
        with pytest.raises(ExportError, match=r"answers none of the rows to verify on: row 1 \(RuntimeError: no answer\)"):
            compare(folder)


@pytest.mark.parametrize(
    "task", ["token-classification", "question-answering", "fill-mask", "zero-shot-classification", "multiple-choice"]
)
def test_every_task_answers_as_its_library(task: str, task_checkpoint: Callable[[str], Path]) -> None:
    columns: dict[str, tuple[list[str], ...]] = {
        "question-answering": (["what is good"] * len(TEXTS), TEXTS),
        "fill-mask": ([f"{text} [MASK]" for text in TEXTS],),
        "zero-shot-classification": (TEXTS, [json.dumps(["film", "food"])] * len(TEXTS)),
        "multiple-choice": (TEXTS, [json.dumps(["good", "bad film"])] * len(TEXTS)),
    }
    found = compare(task_checkpoint(task), columns.get(task, (TEXTS,)), task=task)
    assert found.texts > len(TEXTS) and found.max_difference < 1e-4


@pytest.fixture(scope="module")
def task_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a tiny random BERT with the head of a task."""

    def make(task: str) -> Path:
        import transformers

        folder = tmp_path_factory.mktemp(task)
        tokenizer = make_tokenizer("wordpiece")
        model = getattr(transformers, task_class(task).auto_model).from_config(make_config("bert", tokenizer))
        randomize(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
