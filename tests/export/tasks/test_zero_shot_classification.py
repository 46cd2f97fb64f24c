"""Zero-shot classification without a server, held against ``transformers.pipeline``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers

from export.tasks.zero_shot_classification import ZeroShotClassificationTask as Task
from serving.runtime.tasks.zero_shot_classification import ZeroShotClassification
from tests.helpers.graphs import MAX_LENGTH, Exported, random_checkpoint

NLI = ("CONTRADICTION", "ENTAILMENT", "NEUTRAL")
TEXTS = ["the film is a delight", "a mess", "funny " * 200, "한국어 문장입니다.", "🎬👍🏽👩‍👩‍👧 cafe\u0301", "a"]
LABELS = ["good", "dull story", "funny", "영화"]


def config(*labels: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Exported]]:
    """Architecture and labels of its head → transformers' pipeline, and the exported graph."""
    made: dict[Any, tuple[Any, Exported]] = {}

    def build(architecture: str, *labels: str) -> tuple[Any, Exported]:
        key = (architecture, *labels)
        if key not in made:
            folder = tmp_path_factory.mktemp("nli")
            checkpoint = random_checkpoint(folder / "checkpoint", architecture, Task, **config(*labels))
            pipe = transformers.pipeline(Task.name, model=str(checkpoint), tokenizer=str(checkpoint), device="cpu")
            pipe.tokenizer.model_max_length = MAX_LENGTH
            made[key] = pipe, Exported(checkpoint, Task.from_config(config(*labels)), folder / "graph")
        return made[key]

    return build


def require_same(ours: list[Any], theirs: list[Any]) -> None:
    assert [(one["sequence"], one["labels"]) for one in ours] == [(one["sequence"], one["labels"]) for one in theirs]
    assert [list(one) for one in ours] == [list(one) for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"hypothesis_template": "it is {0} of course."}], ids=str)
def test_answers_are_the_pipelines(make: Callable[..., Any], architecture: str, options: dict[str, Any]) -> None:
    pipe, exported = make(architecture, *NLI)
    inputs, asked = exported.served.parse_call((TEXTS, LABELS), options)
    require_same(exported.answers(exported.served.parse_inputs(inputs), **asked), pipe(TEXTS, LABELS, **options))


def test_rows_of_unlike_numbers_of_labels_do_not_mix(make: Callable[..., Any]) -> None:
    pipe, exported = make("bert", *NLI)
    rows = [{"text": text, "candidate_labels": LABELS[: 1 + place % 4]} for place, text in enumerate(TEXTS)]
    wanted = [pipe(row["text"], row["candidate_labels"]) for row in rows]
    require_same(exported.answers(exported.served.parse_inputs(rows)), wanted)


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        (NLI, (1, 0)),
        (("Entailment", "neutral", "contradiction"), (0, 2)),
        (("entails", "not"), (0, 1)),
        (("LABEL_0", "LABEL_1", "LABEL_2"), (2, 0)),  # where no label says so, the last
    ],
)
@pytest.mark.parametrize("candidates", [["good"], ["good", "funny"]], ids=len)
def test_entailment_is_found_as_the_pipeline_finds_it(
    make: Callable[..., Any], labels: tuple[str, ...], places: tuple[int, int], candidates: list[str]
) -> None:
    pipe, exported = make("bert", *labels)
    assert (exported.served.entailment, exported.served.contradiction) == places
    inputs, _ = exported.served.parse_call((TEXTS, candidates), {})
    require_same(
        exported.answers(exported.served.parse_inputs(inputs), multi_label=True), pipe(TEXTS, candidates, multi_label=True)
    )


def test_equal_scores_and_labels_given_twice(make: Callable[..., Any]) -> None:
    pipe, exported = make("bert", *NLI)
    labels = ["good", "funny", "good"]
    ours = exported.answers([("a film", '["good", "funny", "good"]')])[0]
    theirs = pipe("a film", labels)
    assert ours["labels"] == theirs["labels"]
    assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-4)


def test_calls_as_the_pipeline_takes_them() -> None:
    task = Task.from_config(config(*NLI)).served
    row = ("a", '["x", "y z"]')
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("a", ["x", "y z"]), {}),
        (("a", "x, y z,"), {}),
        (("a",), {"candidate_labels": ("x", "y z")}),
        ((), {"sequences": "a", "candidate_labels": "x,y z"}),
        (({"text": "a", "candidate_labels": ["x", "y z"]},), {}),
    ]
    for arguments, given in calls:
        inputs, options = task.parse_call(arguments, {**given, "multi_label": True})
        assert task.parse_inputs(inputs) == [row]
        assert options == {"multi_label": True}
    assert task.format_result(["a"], [1], {}) == [1]
    assert task.format_result({"text": "a"}, [1], {}) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.parse_call((), {"candidate_labels": ["a"]}),
        lambda task: task.parse_call(({"text": "a", "candidate_labels": ["b"]}, ["b"]), {}),
        lambda task: task.parse_inputs("a"),
        lambda task: task.parse_inputs({"text": "a", "candidate_labels": [1]}),
    ],
)
def test_calls_that_are_none(call: Callable[[ZeroShotClassification], Any]) -> None:
    with pytest.raises(TypeError):
        call(Task.from_config(config(*NLI)).served)


@pytest.mark.parametrize(("arguments", "given"), [(("a", ["b"]), {"candidate_labels": ["b"]}), (("a", ["b"], "c"), {})])
def test_more_arguments_than_the_pipeline_takes(arguments: Any, given: Any) -> None:
    with pytest.raises(ValueError, match="each once"):
        Task.from_config(config(*NLI)).served.parse_call(arguments, given)


@pytest.mark.parametrize("labels", ["[]", "", "{}", '["a", 1]', '"a"', "[" * 100_000, '["\\ud800"]'])
def test_candidate_labels_that_are_none(make: Callable[..., Any], labels: str) -> None:
    _, exported = make("bert", *NLI)
    with pytest.raises(ValueError, match="CANDIDATE_LABELS"):
        exported.answers([("good", '["a"]'), ("a film", labels)])


@pytest.mark.parametrize(
    "template", ["no place", "{} and {", "{x}", "{0.__class__}", "{:9999999}", "{}{1}", "{{}}", "{0}{0}", "{}{}", "{}" + "a" * 1000]
)
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(ValueError, match="hypothesis_template"):
        Task.from_config(config(*NLI)).served.with_options({"hypothesis_template": template})


def test_a_hypothesis_that_leaves_the_text_no_room(make: Callable[..., Any]) -> None:
    _, exported = make("bert", *NLI)
    with pytest.raises(ValueError, match="64 tokens"):
        exported.answers([("a film", '["%s"]' % ("good " * 100))])
    assert exported.answers([("a film", '["good"]')])  # the encoder is as it was
    with pytest.raises(ValueError, match="truncation is off"):
        exported.answers([("film " * 100, '["good"]')], truncation=False)


def test_judged_by_the_labels_of_rows() -> None:
    task = Task.from_config(config(*NLI)).with_evaluation_labels(["joy", "fear", "joy"], names=())
    assert task.labels == ("fear", "joy")
    assert task.requests([["a", "b"]]) == [["a", "b"], ['["fear", "joy"]'] * 2]
    assert task.reference("joy") == 1
    with pytest.raises(ValueError, match="numbers"):
        task.with_evaluation_labels([0, 1], names=())
    with pytest.raises(ValueError, match="one label"):
        task.with_evaluation_labels(["joy"], names=())
    with pytest.raises(ValueError, match="unknown label"):
        task.reference("love")


def test_label2id_counts_only_beside_id2label() -> None:
    """Transformers overwrites it where id2label is missing."""
    config = {"model_type": "bert", "num_labels": 3, "label2id": {"entailment": 0, "neutral": 1, "contradiction": 2}}
    assert list(transformers.CONFIG_MAPPING["bert"].from_dict(dict(config)).label2id) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    served = Task.from_config(config).served
    assert (served.entailment, served.contradiction) == (2, 0)
