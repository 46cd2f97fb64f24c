"""Token classification: rows, targets, metric, and the answers of ``transformers.pipeline`` from the same model's logits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export import convert, graph
from export.columns import Columns
from export.data import LabelledRows, bind_training_labels, encode_labels, read_evaluation, write_evaluation
from export.metric import bootstrapped_drop, compute
from export.sources import load_rows
from export.tasks.token_classification import TASK, TokenClassificationTask
from serving.errors import DataError
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Arrays
from tests.helpers.checkpoints import ARCHITECTURES
from tests.helpers.parity import assert_same
from tests.helpers.shared import WNUT, needs_shared
from tests.helpers.tagging import LABELS, STRATEGIES, TEXTS, tiny_tagger


def labelled_by(*labels: str) -> TokenClassificationTask:
    return TASK.from_settings({"labels": [*labels]})


class Reader:
    """A checkpoint as it is served, without a server: its tokenizer, the logits of a graph or of the model, the task's answers."""

    def __init__(self, folder: Path, onnx: Path | None = None) -> None:
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForTokenClassification.from_pretrained(folder).eval()
        self.pipeline = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
        bound = TASK.from_config(json.loads((folder / "config.json").read_text())).with_tokenizer(tokenizer)
        self.task = TASK.from_settings(json.loads(json.dumps(bound.to_settings())))  # as the bundle has it
        self.served = self.task.served
        names = graph.input_names(onnx) if onnx else tokenizer.model_input_names
        length = tokenizer.model_max_length
        self.encoder = TextEncoder(str(folder / "tokenizer.json"), max_length=length, names=names, padding={"input_ids": 0})
        self._run = graph.runner(graph.session(onnx), ("logits",)) if onnx else None
        self._model, self._torch = model, torch

    def entities(self, texts: list[str], **asked: Any) -> Arrays:
        """The tensors of the answer to request options."""
        task = self.served.with_options(asked)
        features = task.preprocess([texts], self.encoder)
        feed = self.encoder.arrays(features.encodings)
        if self._run:
            outputs = self._run(feed)
        else:
            with self._torch.inference_mode():
                tensors = {name: self._torch.from_numpy(array) for name, array in feed.items()}
                outputs = {"logits": self._model(**tensors).logits.numpy()}
        return task.postprocess(outputs, features.origins)

    def __call__(self, texts: list[str], **options: Any) -> list[Any]:
        """As the client gives it."""
        parameters = {**self.served.pipeline_defaults(), **self.served.sanitize_parameters(options)[0]}
        return list(self.served.format_answers(self.entities(texts, **parameters)))


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reader]:
    """Architecture → a tiny random checkpoint of it; made once a run. BERT's logits are those of its exported graph."""
    made: dict[str, Reader] = {}

    def make(architecture: str) -> Reader:
        if architecture not in made:
            folder = tiny_tagger(tmp_path_factory.mktemp("taggers") / architecture, architecture)
            onnx = convert.convert(folder, TASK, folder.parent / "onnx", opset=18) if architecture == "bert" else None
            made[architecture] = Reader(folder, onnx)
        return made[architecture]

    return make


def wanted(read: Reader, texts: list[str], **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no real words, and what is deprecated
        return read.pipeline(texts, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_the_pipeline(reader: Callable[[str], Reader], architecture: str, strategy: str) -> None:
    read = reader(architecture)
    asked = {"aggregation_strategy": strategy, "ignore_labels": ["O", "film"]}
    ours = read(TEXTS, **asked)
    assert_same(ours, wanted(read, TEXTS, **asked))
    assert len({one.get("entity", one.get("entity_group")) for row in ours for one in row}) >= 3, "a model that tells nothing apart"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_labels": []},
        {"ignore_labels": ["B-film", "I-film"]},
        {"stride": 0, "aggregation_strategy": "simple"},
        {"stride": 7, "aggregation_strategy": "first"},
        {"stride": 30, "aggregation_strategy": "AVERAGE", "ignore_labels": []},
        {"stride": 61, "aggregation_strategy": "max"},
        {"stride": 20},
        {"grouped_entities": True},
        {"grouped_entities": True, "ignore_subwords": True},
        {"grouped_entities": False},
        {"aggregation_strategy": None, "ignore_labels": None},
    ],
    ids=str,
)
def test_options_equal_the_pipelines(reader: Callable[[str], Reader], architecture: str, options: dict[str, Any]) -> None:
    read = reader(architecture)
    assert_same(read(TEXTS, **options), wanted(read, TEXTS, **options))


def test_rows_do_not_depend_on_their_neighbours(reader: Callable[[str], Reader]) -> None:
    read = reader("roberta")
    options = {"aggregation_strategy": "average", "stride": 5}
    assert_same(read(TEXTS, **options), [read([text], **options)[0] for text in TEXTS])


def test_a_request_that_asks_for_nothing_gets_entities(reader: Callable[[str], Reader]) -> None:
    read = reader("bert")
    answers = read.entities(TEXTS)["ENTITIES"]
    assert (answers.shape, answers.dtype) == ((len(TEXTS), 1), np.dtype(object))
    assert_same([json.loads(row) for row in answers[:, 0]], wanted(read, TEXTS, aggregation_strategy="simple"))


def test_ignored_labels_are_a_list_or_names_with_commas(reader: Callable[[str], Reader]) -> None:
    read = reader("bert")
    for plain, listed in (("O, film", '["O", "film"]'), ("", "[]"), ("O", ' ["O"]')):
        assert read.entities(TEXTS, ignore_labels=plain)["ENTITIES"].tolist() == (
            read.entities(TEXTS, ignore_labels=listed)["ENTITIES"].tolist()
        )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"aggregation_strategy": "best"}, "one of none, simple, first, average, max"),
        ({"aggregation_strategy": 1}, "must be a string"),
        ({"ignore_labels": "[O]"}, "must be a JSON list of strings, or names with commas between"),
        ({"ignore_labels": "[1]"}, "must be a JSON list of strings"),
        ({"stride": -1}, "must be 0 or more"),
        ({"stride": True}, "must be a whole number"),
        ({"top_k": 3}, "token-classification has no option top_k"),
    ],
)
def test_bad_options_are_refused(reader: Callable[[str], Reader], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader("bert").served.with_options(asked)


def test_a_stride_that_leaves_no_room_is_refused(reader: Callable[[str], Reader]) -> None:
    for stride in (62, 2**62):  # two of 64 tokens are the tokenizer's own
        with pytest.raises(ValueError, match=f"a window of 64 tokens has no room for new text beside {stride} tokens"):
            reader("bert").entities(["the film"], stride=stride)
    assert_same(reader("bert")(TEXTS), wanted(reader("bert"), TEXTS))  # and nothing is left of it


def test_text_that_is_too_long_is_refused_where_it_must_not_be_cut(reader: Callable[[str], Reader]) -> None:
    read = reader("bert")
    with pytest.raises(ValueError, match="row 1 is longer than the 64 tokens"):
        read.entities(["short", "long " * 100], truncation=False)
    assert read.entities(["long " * 100], truncation=False, stride=4)["ENTITIES"].shape == (1, 1)


def test_the_client_refuses_what_the_pipeline_refuses(reader: Callable[[str], Reader]) -> None:
    task = reader("bert").served
    with pytest.raises(ValueError, match="stride needs an aggregation_strategy"):
        task.sanitize_parameters({"stride": 4, "aggregation_strategy": "none"})
    with pytest.raises(ValueError, match="at least one input"):
        task.parse_inputs([])
    with pytest.raises(ValueError, match="each row must be a string, not 1"):
        task.parse_inputs(["text", 1])
    with pytest.raises(TypeError, match="no option top_k"):
        task.sanitize_parameters({"top_k": 1})
    with pytest.raises(ValueError, match="words are not read in windows"):
        task.with_options({"is_split_into_words": True, "stride": 4})


def test_strategies_are_taken_as_the_pipelines_own_names(reader: Callable[[str], Reader]) -> None:
    from transformers.pipelines.token_classification import AggregationStrategy

    found = reader("bert").served.sanitize_parameters({"aggregation_strategy": AggregationStrategy.MAX})
    assert found[0] == {"aggregation_strategy": "max"}


# -- rows ----------------------------------------------------------------------------------------------------------------------


def test_words_and_labels_become_a_text_and_places() -> None:
    texts, label = TASK.read_row((["Ada", "", "of New  York", "."],), [0, 0, 1, 0])
    assert texts == ("Ada  of New  York .",)
    assert label == {"start": [0, 4, 5, 18], "end": [3, 4, 17, 19], "label": [0, 0, 1, 0]}
    assert TASK.read_row(('["Ada", "ran"]',), '["B-PER", "O"]') == (
        ("Ada ran",),
        {"start": [0, 4], "end": [3, 7], "label": ["B-PER", "O"]},
    )


def test_entities_of_a_text_become_labels_of_its_words() -> None:
    text = "Ada's friend, 아다 러브레이스👍."
    entities = [{"start": 14, "end": 22, "label": "PER"}, {"start": 0, "end": 3, "label": "PER"}]
    texts, label = TASK.read_row((text,), entities)
    assert texts == (text,)
    words = [text[start:end] for start, end in zip(label["start"], label["end"], strict=True)]
    assert words == ["Ada", "'", "s", "friend", ",", "아다", "러브레이스", "👍", "."]
    assert label["label"] == ["B-PER", "O", "O", "O", "O", "B-PER", "I-PER", "O", "O"]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (["a", "b"], ["O"], "there are 2 words and 1 labels"),
        (["a", 1], ["O", "O"], "some of the words are not text"),
        (["a"], [0.5], "the labels must be all names or all whole numbers"),
        (["a"], "O", "the label is neither a list"),
        (["a"], None, "the label is neither a list"),
        ("a b", [{"start": 0, "end": 9, "label": "X"}], "not an entity of this text"),
        ("a b", [{"start": 0, "end": 3, "label": "X"}, {"start": 2, "end": 3, "label": "Y"}], "entities overlap"),
        (7, [], "the words are of type int, neither a list nor a text"),
    ],
)
def test_bad_rows_are_refused(text: Any, label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.read_row((text,), label)


def _rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_labels_are_named_outside_first_and_every_kind_has_both_marks(tmp_path: Path) -> None:
    rows = [{"tokens": ["x", "y"], "ner": ["B-b", "O"]}, {"tokens": ["x"], "ner": ["I-a"]}]
    read = load_rows(str(_rows(tmp_path / "rows.jsonl", rows)), Columns(), TASK, split="train", cache=tmp_path)
    task = bind_training_labels(TASK, read, pair=False)
    assert task.to_settings()["labels"] == ("O", "I-a", "B-b", "I-b")
    assert encode_labels(read, task).labels[0] == {"start": [0, 2], "end": [1, 3], "label": ["B-b", "O"]}
    with pytest.raises(DataError, match=r"rows.jsonl, row 1: unknown label 'B-b', known labels: O, B-c"):
        encode_labels(read, labelled_by("O", "B-c"))


def test_labels_that_are_numbers_are_positions() -> None:
    task = labelled_by("O", "B-x", "I-x")
    assert task.reference({"start": [0], "end": [1], "label": [2]})["label"] == ["I-x"]
    with pytest.raises(ValueError, match="unknown label 3"):
        task.reference({"start": [0], "end": [1], "label": [3]})


def test_names_of_the_hub_are_taken(tmp_path: Path) -> None:
    import datasets

    names = datasets.ClassLabel(names=["B-x", "I-x", "O"])
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(names)})
    rows = {"tokens": [["an", "x"], ["y"]], "ner_tags": [[2, 0], [2]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    read = load_rows(f"hub:{tmp_path}", Columns(labels=("ner_tags",)), TASK, split="train", cache=tmp_path)
    task = bind_training_labels(TASK, read, pair=False)
    assert task.to_settings()["labels"] == ("B-x", "I-x", "O")
    assert encode_labels(read, task).labels[0]["label"] == ["O", "B-x"]


@pytest.mark.parametrize("labels", [[["O", "O"]], [[]], [[0, "O"]]])
def test_labels_that_teach_nothing_are_refused(labels: list[list[Any]]) -> None:
    with pytest.raises(ValueError, match=r"nothing to tell apart|some are names and some numbers"):
        TASK.from_labels([{"start": [], "end": [], "label": row} for row in labels], names=(), pair=False)


def test_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="single texts, not pairs"):
        TASK.from_config({}, pair=True)
    with pytest.raises(ValueError, match="single texts, not pairs"):
        TASK.from_labels([], names=(), pair=True)


def test_evaluation_rows_travel(tmp_path: Path) -> None:
    task = labelled_by(*LABELS)
    references: tuple[Any, ...] = (
        {"start": [0, 4], "end": [3, 8], "label": ["O", "B-film"]},
        {"start": [], "end": [], "label": []},
    )
    rows = LabelledRows(texts=(("the film", ""),), labels=references)
    write_evaluation(rows, tmp_path)
    assert read_evaluation(tmp_path, task) == rows
    with pytest.raises(DataError, match=r"row 1: label .* is not a label of this checkpoint"):
        read_evaluation(tmp_path, labelled_by("O", "B-other"))


# -- training and judging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert"])
def test_a_words_label_stands_at_its_first_token(reader: Callable[[str], Reader], architecture: str) -> None:
    read = reader(architecture)
    words = ["the", "xylophone", "\u200b" if architecture == "bert" else "and", "film"]
    labels = ["O", "B-film", "I-film", "plain"]
    (text,), label = TASK.read_row((words,), labels)
    features = read.task.features([[text, ""]], read.encoder)
    (targets, nothing) = read.task.targets(features, [read.task.reference(label), {"start": [], "end": [], "label": []}])["labels"]
    encoding = features.encodings[0]
    found = [
        (text[slice(*encoding.offsets[place])].strip()[:1], LABELS[target]) for place, target in enumerate(targets) if target >= 0
    ]
    kept = [(word[0], name) for word, name in zip(words, labels, strict=True) if word != "\u200b"]  # which BERT's tokenizer drops
    assert found == kept
    assert len(targets) == len(encoding)
    assert set(nothing) == {-100}


def _row(*labels: str) -> dict[str, list[Any]]:
    """Words of one letter."""
    return {"start": [2 * i for i in range(len(labels))], "end": [2 * i + 1 for i in range(len(labels))], "label": list(labels)}


def test_the_metric_counts_whole_entities() -> None:
    predictions = [_row("B-x", "I-x", "O", "B-y"), _row("I-x", "O", "B-x", "B-x"), _row("O")]
    references = [_row("B-x", "I-x", "O", "I-y"), _row("O", "O", "B-x", "I-x"), _row("B-z")]
    figures = compute("entities", predictions, references)
    # predicted x x..., y; x, x, x: 5; wanted x, y; x; z: 4; right: the first row's two
    assert figures["precision"] == pytest.approx(2 / 5)
    assert figures["recall"] == pytest.approx(2 / 4)
    assert figures["f1"] == pytest.approx(4 / 9)
    assert figures["f1_macro"] == pytest.approx((2 / 6 + 2 / 2 + 0) / 3)
    assert figures["word_accuracy"] == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        (["B-x", "B-x"], 2),
        (["B-x", "I-y"], 2),
        (["I-x", "I-x"], 1),
        (["x", "x", "y"], 2),
        (["B-x", "E-x", "I-x"], 2),
        (["S-x", "I-x"], 2),
        (["B-x", "O", "I-x"], 2),
        (["B-creative-work", "I-creative-work"], 1),
        ([], 0),
    ],
)
def test_where_entities_begin_and_end(labels: list[str], entities: int) -> None:
    from export.metric import load_metric

    assert load_metric("entities").statistics([_row(*labels)], [_row(*labels)])[:, 1:, 0].sum() == entities


def test_tokens_count_for_the_word_they_begin() -> None:
    """The second token of a word says nothing, a word without a token was cut, a space before a word is its token's."""
    tokens = {"start": [0, 2, 3], "end": [2, 3, 7], "label": ["B-x", "O", "I-x"]}
    words = {"start": [0, 4, 8], "end": [3, 7, 9], "label": ["B-x", "I-x", "O"]}
    assert compute("entities", [tokens], [words])["f1"] == 1
    assert compute("entities", [tokens], [{**words, "label": ["B-x", "I-x", "I-x"]}])["f1"] == 0
    assert compute("entities", [{"start": [], "end": [], "label": []}], [words])["recall"] == 0


def test_a_worse_variant_is_told_by_its_drop() -> None:
    references = [_row("B-x", "O"), _row("O", "B-y")] * 40
    worse = [_row("O", "O"), *references[1:]]
    drop, (low, high) = bootstrapped_drop("entities", "f1", references, worse, references)
    assert drop == pytest.approx(1 - 2 * 79 / 159)
    assert low <= drop <= high


def test_agreement_is_of_entities_and_forgives_close_calls() -> None:
    def answers(*rows: list[tuple[str, float]]) -> Arrays:
        items = [
            [{"entity": label, "score": score, "index": i, "start": i, "end": i + 1} for i, (label, score) in enumerate(row)]
            for row in rows
        ]
        return {"ENTITIES": np.array([[json.dumps(row).encode()] for row in items], dtype=object)}

    task = labelled_by(*LABELS)
    original = answers([("O", 0.9), ("O", 0.9)], [("B-film", 0.9), ("I-film", 0.8), ("O", 0.9)], [("B-film", 0.50001)], [])
    variant = answers([("O", 0.7), ("O", 0.9)], [("B-film", 0.7), ("O", 0.5), ("plain", 0.6)], [("O", 0.50002)], [])
    assert task.agreement(original, original).tolist() == [1, 1, 1, 1]
    assert task.agreement(variant, original).tolist() == pytest.approx([1, 1 / 3, 1, 1])


def test_predictions_are_what_the_metric_takes(reader: Callable[[str], Reader]) -> None:
    read = reader("bert")
    answers = read.entities(["the film is good", ""], **read.task.evaluation_options)
    first, empty = read.task.predictions(answers)
    assert (first["start"], first["end"]) == ([0, 4, 9, 12], [3, 8, 11, 16])
    assert empty == {"start": [], "end": [], "label": []}
    assert compute("entities", [first], [read.task.reference(first)])["word_accuracy"] == 1


def test_a_tokenizer_without_decoder_or_unknown_token(reader: Callable[[str], Reader]) -> None:
    tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: '{"decoder": null}'), unk_token_id=None)
    task = labelled_by(*LABELS).with_tokenizer(tokenizer)
    assert (task.served.decoder, task.served.unknown) == ("", None)
    assert task.served._spell(["a", "##b"]) == "a ##b"  # as transformers has it


@needs_shared(WNUT)
def test_real_rows_are_read() -> None:
    rows = load_rows(str(WNUT), Columns(), TASK, split="validation", cache=Path())
    task = bind_training_labels(TASK, rows, pair=False)
    kinds = ("corporation", "creative-work", "group", "location", "person", "product")
    assert task.to_settings()["labels"] == ("O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI"))
    labelled = encode_labels(rows, task)
    figures = compute("entities", list(labelled.labels), list(labelled.labels))
    assert (len(labelled), figures["f1"], figures["word_accuracy"]) == (1009, 1, 1)
    for text, label in zip(labelled.texts[0], labelled.labels, strict=True):
        assert [text[start:end] for start, end in zip(label["start"], label["end"], strict=True)] == text.split(" ")
