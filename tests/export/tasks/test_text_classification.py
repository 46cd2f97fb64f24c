"""Text classification of all three kinds: one label a row, any number of labels, a number. Against ``transformers.pipeline``."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import cli, graph
from export.data import read_evaluation
from export.tasks import bundle_task, load_task
from export.tasks.text_classification import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TextClassificationTask
from serving.artifact import read_manifest
from serving.bundle import Bundle, load_bundle
from serving.manifests import BundleManifest, CheckpointManifest
from serving.runtime.types import Arrays, Features, Origins
from tests.helpers.parity import assert_same
from tests.helpers.reviews import BAD, FILLING, GOOD, TRAINING

# said by transformers' own modules when they are imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

MULTI = {"labels": ["a", "b", "c"], "function_to_apply": "sigmoid", "problem_type": MULTI_LABEL}
MANY = TextClassificationTask.from_settings(MULTI)
NUMBERS = TextClassificationTask.from_settings({"labels": ["score"], "function_to_apply": "none", "problem_type": REGRESSION})
TOLERANCE = 1e-3


def answers(task: TextClassificationTask, logits: list[list[float]], **options: Any) -> Arrays:
    outputs = {"logits": np.array(logits, dtype=np.float32)}
    return task.served.with_options(options).postprocess(outputs, Origins(np.arange(len(logits))))


def single(*labels: str) -> TextClassificationTask:
    return TextClassificationTask.from_settings({"labels": [*labels], "function_to_apply": "softmax"})


def scores(*rows: list[float]) -> Arrays:
    return {"SCORES": np.array(rows, dtype=np.float32)}


# Bound to a checkpoint


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (SINGLE_LABEL, "softmax", ("LABEL_0", "LABEL_1"))),
        ({"id2label": {str(i): "abcdefghijk"[i] for i in (1, 10, *range(2, 10), 0)}}, (SINGLE_LABEL, "softmax", (*"abcdefghijk",))),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": SINGLE_LABEL}, (SINGLE_LABEL, "softmax", ("a", "b"))),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": MULTI_LABEL}, (MULTI_LABEL, "sigmoid", ("a", "b"))),
        ({"id2label": {"0": "a"}, "problem_type": MULTI_LABEL}, (MULTI_LABEL, "sigmoid", ("a",))),
        ({"id2label": {"0": "score"}, "problem_type": REGRESSION}, (REGRESSION, "none", ("score",))),
        ({"id2label": {"0": "LABEL_0"}}, (REGRESSION, "sigmoid", ("LABEL_0",))),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": SINGLE_LABEL}, (REGRESSION, "sigmoid", ("LABEL_0",))),
    ],
)
def test_the_config_says_which_kind_it_is(config: dict[str, Any], expected: tuple[Any, ...]) -> None:
    task = TextClassificationTask.from_config(config)
    assert (task.problem_type, task.served.function_to_apply, task.labels) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "same", "1": "same"}}, "its labels are not all different: same, same"),
        ({"id2label": {"0": "same", "1": "same"}, "problem_type": MULTI_LABEL}, "its labels are not all different: same, same"),
        (
            {"id2label": {"0": "x", "1": "y"}, "problem_type": REGRESSION},
            "it predicts 2 numbers per row, x, y, but only one number can be",
        ),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextClassificationTask.from_config(config)


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        (single("a", "b"), ("classification", "accuracy", SINGLE_LABEL)),
        (MANY, ("multi_label", "f1_micro", MULTI_LABEL)),
        (NUMBERS, ("regression", "spearman", REGRESSION)),
    ],
)
def test_the_kind_survives_settings_and_training(task: TextClassificationTask, figures: tuple[str, str, str]) -> None:
    assert load_task(task.name, json.loads(json.dumps(task.to_settings()))) == task
    assert (task.metric, task.main_metric, task.head()["problem_type"]) == figures
    head = task.head()
    assert (head["num_labels"], head["id2label"][0], head["label2id"]) == (
        len(task.labels),
        task.labels[0],
        {label: index for index, label in enumerate(task.labels)},
    )
    config = {"id2label": {str(index): label for index, label in head["id2label"].items()}, "problem_type": head["problem_type"]}
    assert TextClassificationTask.from_config(config) == task


# Answers, and what is made of them


def test_every_label_of_a_row_has_a_score_of_its_own() -> None:
    found = answers(MANY, [[2.0, -1.0, 0.5], [-3.0, -2.0, -4.0]])
    np.testing.assert_allclose(found["SCORES"], 1 / (1 + np.exp(-np.array([[2.0, -1.0, 0.5], [-3.0, -2.0, -4.0]]))), rtol=1e-6)
    assert found["LABEL"].tolist() == [[b"a"], [b"b"]]
    np.testing.assert_array_equal(found["SCORE"], found["SCORES"].max(axis=1, keepdims=True))
    assert {name: values.dtype for name, values in found.items()} == {
        "LABEL": np.object_,
        "SCORE": np.float32,
        "SCORES": np.float32,
    }


def test_logits_far_from_zero_are_scores_of_0_and_1() -> None:
    """Warnings are errors here: nothing may overflow."""
    np.testing.assert_array_equal(answers(MANY, [[1000.0, -1000.0, 0.0]])["SCORES"], [[1.0, 0.0, 0.5]])
    found = answers(MANY, [[1000.0, -1000.0, 0.0]], function_to_apply="softmax")["SCORES"]
    np.testing.assert_array_equal(found, [[1.0, 0.0, 0.0]])


def test_a_number_is_given_as_it_is() -> None:
    found = answers(NUMBERS, [[3.7], [-12.5]])
    np.testing.assert_array_equal(found["SCORES"], np.array([[3.7], [-12.5]], dtype=np.float32))
    np.testing.assert_array_equal(found["SCORE"], found["SCORES"])
    assert found["LABEL"].tolist() == [[b"score"], [b"score"]]
    assert NUMBERS.served.format_answers(found) == [
        {"label": "score", "score": pytest.approx(3.7)},
        {"label": "score", "score": pytest.approx(-12.5)},
    ]


def test_predictions_are_labels_above_the_threshold() -> None:
    rows = scores([0.9, 0.1, 0.6], [0.5, 0.49, 0.2], [0.1, 0.7, 0.2])
    assert MANY.predictions(rows) == [[0, 2], [], [1]], "at the threshold is not above it"
    careful = MANY.with_settings({"threshold": 0.8})
    assert careful.predictions(rows) == [[0], [], []]
    assert NUMBERS.predictions(scores([0.5], [-2.0])) == [0.5, -2.0]
    assert single("a", "b").predictions(scores([0.5, 0.5], [0.1, 0.9])) == [0, 1]


def test_agreement_of_several_labels_is_of_all_of_them() -> None:
    original = scores([0.9, 0.1, 0.6], [0.9, 0.1, 0.6], [0.9, 0.1, 0.6], [0.1, 0.2, 0.3])
    variant = scores([0.6, 0.4, 0.9], [0.9, 0.1, 0.4], [0.1, 0.9, 0.1], [0.3, 0.2, 0.1])
    assert MANY.agreement(variant, original).tolist() == [1, 0, 0, 1], "the order of the scores does not matter"


def test_agreement_of_numbers_goes_by_the_originals_range() -> None:
    original = scores([0.0], [10.0], [5.0], [5.0])
    assert NUMBERS.agreement(scores([0.4], [9.6], [5.6], [4.4]), original).tolist() == [1, 1, 0, 0]
    assert NUMBERS.agreement(scores([0.30005], [0.302]), scores([0.3], [0.3])).tolist() == [1, 0], "where that is nothing, 0.0001"


def test_ties_are_scores_on_the_edge() -> None:
    assert MANY.ties(scores([0.9, 0.50005, 0.1], [0.9, 0.49995, 0.1], [0.501, 0.499, 0.9], [0.6, 0.6, 0.6])).tolist() == [
        1,
        1,
        0,
        0,
    ]
    one = single("a", "b", "c")
    assert one.ties(scores([0.4, 0.39995, 0.2], [0.4, 0.2, 0.39995], [0.4, 0.3, 0.3], [0.2, 0.2, 0.6])).tolist() == [1, 1, 0, 0]
    assert not NUMBERS.ties(scores([0.5], [0.5])).any(), "numbers are near or not"


def test_targets_are_what_the_losses_take() -> None:
    nothing = Features([], Origins(np.arange(0)))
    assert MANY.targets(nothing, [[0, 2], [], [1]]) == {"labels": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]}
    assert NUMBERS.targets(nothing, [0.5, 4.0]) == {"labels": [0.5, 4.0]}
    one = single("a", "b")
    assert one.targets(nothing, [1, 0]) == {"labels": [1, 0]}


def test_all_labels_are_ranked_and_the_order_of_equal_ones_is_the_checkpoints() -> None:
    found = MANY.served.format_answers(scores([0.3, 0.9, 0.3]), top_k=None, ranked=True)
    assert [item["label"] for item in found[0]] == ["b", "a", "c"]
    assert [item["label"] for item in MANY.served.format_answers(scores([0.3, 0.9, 0.3]), top_k=2, ranked=True)[0]] == ["b", "a"]
    default = MANY.with_settings({"top_k": 2})
    assert [item["label"] for item in default.served.format_answers(scores([0.3, 0.9, 0.3]))[0]] == ["b", "a"]
    assert len(default.served.format_answers(scores([0.3, 0.9, 0.3]), top_k=None, ranked=True)[0]) == 3
    for wrong in ("2", True, 1.5):
        with pytest.raises(ValueError, match="option top_k must be"):
            MANY.served.with_options({"top_k": wrong})
    with pytest.raises(TypeError, match=r"no option topk; did you mean top_k\?"):
        MANY.served.sanitize_parameters({"topk": 1})


# Against the pipeline


TEXTS = ["good", "", "the film is a mess but every scene is beautiful", "bad and dull again", "café 👩‍👩‍👧 film " * 30]


@pytest.mark.parametrize(
    ("problem", "count"),
    [(None, 3), (SINGLE_LABEL, 3), (MULTI_LABEL, 3), (MULTI_LABEL, 1), (REGRESSION, 1), (None, 1), (SINGLE_LABEL, 1)],
)
def test_scores_are_those_of_the_pipeline(problem: str | None, count: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Whatever a config may say of the kind of problem, and whatever function is asked for."""
    import torch
    import transformers

    torch.manual_seed(count)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_checkpoint,
        num_labels=count,
        id2label={index: f"label {index}" for index in range(count)},
        label2id={f"label {index}": index for index in range(count)},
        ignore_mismatched_sizes=True,
    ).eval()
    model.config.problem_type = problem
    model.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    task = TextClassificationTask.from_config(json.loads((tmp_path / "config.json").read_text()))
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits.tolist()
    for asked in ({}, {"function_to_apply": "softmax"}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}):
        for shown in ({}, {"top_k": None}, {"top_k": 2}):
            ours = task.served.format_answers(answers(task, logits, **asked), **task.served.sanitize_parameters(shown)[1])
            assert_same(ours, pipe(TEXTS, truncation=True, max_length=64, **asked, **shown))


@pytest.mark.parametrize("count", [None, 1, 3])
def test_labels_without_names_are_those_of_the_pipeline(count: int | None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Three logits, one, or as many as the config class says, which a config need not write down."""
    import transformers

    size = {} if count is None else {"num_labels": count}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_checkpoint, num_labels=count or 2, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | size
    unnamed = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    (tmp_path / "config.json").write_text(json.dumps(unnamed))
    pipe = transformers.pipeline("text-classification", str(tmp_path), tokenizer=str(tiny_checkpoint), device="cpu")
    task = TextClassificationTask.from_config(unnamed)
    batch = pipe.tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    ours = answers(task, pipe.model.eval()(**batch).logits.tolist())
    for options in ({}, {"top_k": None}):
        shown = task.served.sanitize_parameters(options)[1]
        assert_same(task.served.format_answers(ours, **shown), pipe(TEXTS, truncation=True, max_length=64, **options))
    rows = tmp_path / "rows.jsonl"
    labels = [place / 7 if count == 1 else place % (count or 2) for place in range(70)]
    rows.write_text("\n".join(json.dumps({"text": f"good {place}", "label": label}) for place, label in enumerate(labels)))
    pipe.tokenizer.save_pretrained(tmp_path)
    places = ["--name", "tiny", "--artifacts", str(tmp_path), "--checkpoint", str(tmp_path), "--test", str(rows)]
    assert cli.main(["export", *places, "--precision", "fp32", "--max-metric-drop", "100"]) == 0
    assert bundle_task(load_bundle(tmp_path / "tiny" / "bundle")).labels == tuple(pipe.model.config.id2label.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"1": "a", "2": "b"}}, "its id2label has the keys 1, 2, but logits are numbered from 0 to 1"),
        ({"id2label": {"good": 0, "bad": 1}}, "its id2label has the keys good, bad, but logits are numbered from 0 to 1"),
        ({"id2label": {"0": "a", 0: "b"}}, "its id2label has the keys 0, 0, but"),
        ({"id2label": {}}, "its id2label is {}, not an object of labels"),
        ({"id2label": ["a", "b"]}, r"its id2label is \['a', 'b'\], not an object of labels"),
        ({"num_labels": "3"}, "its num_labels is '3', not a number of labels"),
        ({"num_labels": 0}, "its num_labels is 0, not a number of labels"),
    ],
)
def test_labels_that_do_not_name_each_logit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextClassificationTask.from_config(config)


def words(choose: random.Random, good: int, bad: int) -> str:
    """A text with that many good and bad words among others."""
    found = [*choose.choices(GOOD, k=good), *choose.choices(BAD, k=bad), *choose.choices(FILLING, k=choose.choice((0, 2, 5)))]
    choose.shuffle(found)
    return " ".join(found)


def labelled(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows that can be learnt: which kinds of words a text holds, or how many more good ones than bad."""
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        good, bad = choose.choice((0, 0, 1, 2)), choose.choice((0, 0, 1, 2))
        held = [label for label, number in (("praise", good), ("blame", bad)) if number]
        rows.append({"text": words(choose, good, bad), "label": held if kind == MULTI_LABEL else good - bad + 0.5})
    return rows


@pytest.fixture(scope="module")
def trained(base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind of problem → folder of artifacts of a checkpoint fine-tuned on it and exported (fp32), through the command line."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("trained")
            files = {}
            for seed, (split, count) in enumerate({"train": 320, "validation": 64, "test": 80}.items()):
                files[split] = folder / f"{split}.jsonl"
                files[split].write_text("\n".join(map(json.dumps, labelled(kind, count, seed))))
            data = [argument for split, path in files.items() for argument in (f"--{split}", str(path))]
            artifacts = ["--artifacts", str(folder)]
            metric = ["--metric", "f1_macro"] if kind == MULTI_LABEL else []
            training = [*TRAINING, "--early-stopping", "0", *artifacts, *metric]
            with contextlib.redirect_stderr(io.StringIO()) as said:
                assert cli.main(["finetune", "--checkpoint", str(base_checkpoint), *data, *training]) == 0, said.getvalue()
                assert cli.main(["export", "--name", "tiny", "--device", "cpu", *artifacts, "--precision", "fp32"]) == 0, (
                    said.getvalue()
                )
            made[kind] = folder / "tiny"
        return made[kind]

    return make


def exported_answers(bundle: Bundle, texts: list[str], **options: Any) -> Arrays:
    """What the exported graph and the task make of texts, each alone."""
    path = bundle.variant("fp32").path
    session, encoder = graph.session(path), bundle.encoder(graph.input_names(path))
    features = bundle.task.preprocess([texts], encoder)
    logits = [session.run(["logits"], encoder.arrays([encoding]))[0] for encoding in features.encodings]
    return bundle.task.with_options(options).postprocess({"logits": np.concatenate(logits)}, features.origins)


@pytest.mark.parametrize(
    ("kind", "labels", "figure"),
    [(MULTI_LABEL, ["blame", "praise"], "f1_macro"), (REGRESSION, ["score"], "spearman")],
    ids=["labels", "number"],
)
def test_from_rows_to_answers(kind: str, labels: list[str], figure: str, trained: Callable[[str], Path]) -> None:
    """Fine-tuned, exported, and asked: the same as the pipeline says of the checkpoint that was written."""
    import transformers

    folder = trained(kind)
    checkpoint = read_manifest(folder / "checkpoint", CheckpointManifest)
    manifest = read_manifest(folder / "bundle", BundleManifest)
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    assert (config["problem_type"], list(config["id2label"].values()), checkpoint.labels) == (kind, labels, tuple(labels))
    assert checkpoint.main_metric == manifest.main_metric == figure
    assert checkpoint.figures.splits["test"][figure] > 0.9, "the words give it away"
    assert manifest.original.metrics[figure] == pytest.approx(checkpoint.figures.splits["test"][figure], abs=1e-3)
    assert bundle_task(load_bundle(folder / "bundle")).main_metric == figure, "the benchmark asks the task"
    baseline = checkpoint.figures.baseline
    assert baseline is not None and baseline.splits["test"][figure] < checkpoint.figures.splits["test"][figure]
    record = manifest.precisions["fp32"]
    assert (record.verdict, record.figures.label_agreement) == ("passed", 1)
    # rounding puts rows whose numbers are nearly the same in another order
    assert record.figures.metrics[figure] == pytest.approx(manifest.original.metrics[figure], abs=5e-3)

    bundle = load_bundle(folder / "bundle")
    rows = read_evaluation(folder / "bundle", bundle_task(bundle))
    assert len(rows) == 80
    texts = [*rows.texts[0], *TEXTS]
    pipe = transformers.pipeline("text-classification", str(folder / "checkpoint"), device="cpu", truncation=True, max_length=32)
    found = exported_answers(bundle, texts)
    assert_same(bundle.task.format_answers(found, top_k=None, ranked=True), pipe(texts, top_k=None))
    assert_same(bundle.task.format_answers(found), pipe(texts))
    assert_same(
        bundle.task.format_answers(exported_answers(bundle, texts, function_to_apply="sigmoid"), top_k=None, ranked=True),
        pipe(texts, top_k=None, function_to_apply="sigmoid"),
    )


def test_the_model_card_says_what_was_measured(trained: Callable[[str], Path]) -> None:
    for kind, figure in ((MULTI_LABEL, "f1_macro"), (REGRESSION, "spearman")):
        folder = trained(kind) / "checkpoint"
        measured = read_manifest(folder, CheckpointManifest).figures.splits["test"]
        card = (folder / "README.md").read_text()
        assert f"{measured[figure]:.4f}" in card
        assert "| test, baseline | 80 |" in card and "Baseline: always " in card
        assert math.isfinite(measured["loss"])


def test_rows_of_another_kind_than_the_checkpoints_are_refused(
    trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(kind: str, label: Any) -> str:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("\n".join(json.dumps({"text": f"good {index}", "label": label}) for index in range(64)))
        folder = trained(kind)
        asked = ["export", "--name", "tiny", "--artifacts", str(folder.parent), "--device", "cpu", "--test", str(rows)]
        assert cli.main([*asked, "--precision", "fp32"]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "row 1: unknown label 'joy', known labels: blame, praise: ('good 0',)" in said(MULTI_LABEL, ["joy"])
    assert "row 1: unknown label 0.5, known labels: blame, praise: ('good 0',)" in said(MULTI_LABEL, 0.5)
    assert "row 1: label 'praise' is not a number: ('good 0',)" in said(REGRESSION, "praise")
    assert "row 1: label ['praise'] is not a number: ('good 0',)" in said(REGRESSION, ["praise"])
