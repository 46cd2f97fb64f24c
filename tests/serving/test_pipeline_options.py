"""Every option and form of a call of ``transformers.pipeline``: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end of each part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from export.tasks import task_class
from serving.client import TritonPipeline
from serving.errors import DataError, InvalidArgumentError, PipelineError
from tests.helpers.graphs import random_checkpoint
from tests.helpers.in_process import in_process
from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.tagging import TEXTS, tiny_tagger
from tests.helpers.tiny_pipelines import TinyPipelines

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]
Case = tuple[tuple[Any, ...], dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPipelines]:
    with ExitStack() as stack:
        yield TinyPipelines(tmp_path_factory.mktemp("options"), stack)


@pytest.fixture(scope="module")
def both(made: TinyPipelines) -> Callable[..., tuple[TritonPipeline, Any]]:
    """Task → a client and the pipeline of its tiny checkpoint."""
    return made.both


def each(inputs: list[Any], options: list[dict[str, Any]]) -> list[Case]:
    return [((one,), chosen) for one in inputs for chosen in options]


def shown(case: Case) -> str:
    return f"{case[0]} {case[1]}"[:80]


# -- text classification -------------------------------------------------------------------------------------------------------

WORDS = "the film and this story with every scene"
LONG = f"{WORDS} " * 40
TEXT: list[Case] = [
    *each(
        ["the film", ["the film"], ["the film", "a dull mess"], {"text": "the film"}, [{"text": "a"}], []],
        [
            {},
            *({"top_k": top_k} for top_k in (0, -1, 1, 2, 9, None)),
            *({"return_all_scores": shown} for shown in (True, False, None)),
            {"top_k": 2, "return_all_scores": True},
            {"top_k": None, "return_all_scores": False},
        ],
    ),
    *each(
        [WORDS, [WORDS, WORDS]],
        [
            *({"function_to_apply": name} for name in ("SIGMOID", "none", None, "default", "relu")),
            *({"truncation": way, "max_length": 5} for way in (True, False, "only_first", "longest_first", "do_not_truncate")),
            {"max_length": 5},
            {"max_length": 2},
            {"max_length": 5, "padding": True},
            {"max_length": 200, "truncation": True},
            {"padding": "max_length", "max_length": 20, "truncation": True},
            {"padding": True, "pad_to_multiple_of": 8, "verbose": False},
            {"add_special_tokens": False},
            {"add_special_tokens": False, "max_length": 3},
            {"add_special_tokens": True},
            {"text_pair": None},
            # refused
            {"truncation": "foo"},
            {"padding": "foo"},
            {"foo": 1},
            {"is_split_into_words": True},
            {"return_tensors": "pt"},
            {"return_overflowing_tokens": True},
            {"max_length": 2.5},
            {"max_length": "5"},
            {"tokenizer_kwargs": {"truncation": True}},
        ],
    ),
    *each(
        [
            "",
            [""],
            # refused
            None,
            5,
            [None],
            ["a", None],
            b"x",
            [["a", "b"]],
            [[]],
            {},
            {"text": 5},
            {"txt": "a"},
            {"text_pair": "b"},
            {"text": "a", "foo": "b"},
            {"text": "a", "text_pair": 5},
        ],
        [{}, {"top_k": 1}],
    ),
    ((), {}),
    (("a", "b"), {}),
    ((), {"inputs": "a"}),
    ((LONG,), {"truncation": True}),
    ((LONG,), {"truncation": True, "max_length": 9, "add_special_tokens": False}),
]


@pytest.mark.parametrize("case", TEXT, ids=shown)
def test_text_classification(both: Any, case: Case) -> None:
    assert_alike(*both("text-classification"), *case[0], **case[1])


@pytest.mark.parametrize(
    "case",
    [
        *each(["a", ["a", "b"], {"text": "a"}, {"text": "a", "text_pair": "b"}, [[["a", "b"]]]], [{}, {"top_k": 2}]),
        *each(["a", ["a", "b"]], [{"text_pair": "again"}, {"text_pair": "again", "top_k": None}, {"text_pair": 5}]),
        *each(["the film " * 6, ["the film " * 60, "a"]], [{"text_pair": "a story " * 80, "truncation": True}]),
        *each(
            ["the film " * 6],
            [{"text_pair": "a story " * 8, "max_length": 9, "add_special_tokens": kept} for kept in (True, False)],
        ),
        (([{"text": "a", "text_pair": "b"}, "a", {"text": "a", "text_pair": None}],), {}),
        *each(
            [f"{WORDS} and again", [LONG]],
            [{"text_pair": WORDS, "truncation": way, "max_length": 14} for way in ("longest_first", "only_first", "only_second")],
        ),
        (("a",), {"text_pair": WORDS, "truncation": "only_first", "max_length": 6}),
        ((LONG,), {"truncation": "only_first"}),
        ((LONG,), {"truncation": "only_second"}),
    ],
    ids=shown,
)
def test_text_classification_of_pairs_and_of_a_text_alone(both: Any, case: Case) -> None:
    """By a model that was exported for pairs."""
    assert_alike(*both("text-classification", pair=True), *case[0], **case[1])


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"top_k": 2}, {}),
        ({"top_k": 1}, {}),
        ({}, {"return_all_scores": True}),
        ({}, {"return_all_scores": False}),
        ({}, {"problem_type": "multi_label_classification"}),
        ({}, {"problem_type": "single_label_classification", "function_to_apply": "none"}),
    ],
    ids=str,
)
def test_text_classification_as_it_was_exported(made: TinyPipelines, settings: dict[str, Any], config: dict[str, Any]) -> None:
    """With ``--setting``, as with options of the pipeline's construction; and with what the checkpoint's config says."""
    checkpoint = made.checkpoint("text-classification", **config)
    pair = made.client(checkpoint, "text-classification", **settings), made.pipeline(checkpoint, "text-classification", **settings)
    for inputs in ("a", ["a"], ["a", "b"], {"text": "a"}, []):
        for options in ({}, {"top_k": None}, {"top_k": 3}, {"function_to_apply": "sigmoid"}, {"return_all_scores": False}):
            assert_alike(*pair, inputs, **options)


@pytest.mark.parametrize(
    "defaults",
    [{"top_k": 2}, {"top_k": None}, {"return_all_scores": True}, {"return_all_scores": False}, {"function_to_apply": "none"}],
    ids=str,
)
def test_text_classification_with_options_of_the_constructor(made: TinyPipelines, defaults: dict[str, Any]) -> None:
    checkpoint = made.checkpoint("text-classification")
    ours = made.stack.enter_context(in_process(checkpoint, task_class("text-classification"), defaults=defaults))
    for inputs in ("a", ["a", "b"]):
        for options in ({}, {"top_k": 3}, {"top_k": None}, {"return_all_scores": True}, {"return_all_scores": False}):
            assert_alike(ours, made.pipeline(checkpoint, "text-classification", **defaults), inputs, **options)


def with_number_labels(made: TinyPipelines, task: str) -> tuple[TritonPipeline, Any]:
    checkpoint = random_checkpoint(made.folder / f"{task}-numbers", "bert", task_class(task))
    file = checkpoint / "config.json"
    labels = {"id2label": {"0": 7, "1": "7b"}, "label2id": {"7": 0, "7b": 1}}
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | labels), encoding="utf-8")
    return made.client(checkpoint, task), made.pipeline(checkpoint, task)


def test_numbers_as_labels_stay_numbers(made: TinyPipelines) -> None:
    pair = with_number_labels(made, "text-classification")
    for options in ({}, {"top_k": None}, {"return_all_scores": True}):
        assert_alike(*pair, ["a", WORDS, "a dull mess"], **options)
    assert {label["label"] for label in pair[0]("a", top_k=None)} == {7, "7b"}
    (answer,) = pair[0].tensors([("a",)])
    assert answer["LABEL"].item() in (b"7", b"7b")


def test_text_classification_otherwise(both: Any) -> None:
    ours, _ = both("text-classification")
    for options in ({"top_k": "2"}, {"top_k": True}, {"top_k": 2.0}, {"return_token_type_ids": False}):
        with pytest.raises(TypeError, match="option"):
            ours("a", **options)
    assert len(ours("a", top_k=np.int64(2))) == 2
    with pytest.raises(ValueError, match="max_length is 1, and a row has 2 special tokens"):
        ours("a", truncation=True, max_length=1)
    with pytest.raises(ValueError, match="option max_length must be 1 or more"):
        ours("a", max_length=-1)
    for inputs, options in (({"text": "a", "text_pair": "b"}, {}), ([[["a", "b"]]], {}), ("a", {"text_pair": "b"})):
        with pytest.raises(ValueError, match="exported for single texts, and its graph cannot tell two texts apart"):
            ours(inputs, **options)
    with pytest.raises(TypeError, match="goes with texts that are strings"):
        ours({"text": "a"}, text_pair="b")
    with pytest.raises(DataError, match="half of a surrogate pair"):
        ours("\ud83d")
    with pytest.raises(InvalidArgumentError, match="truncation is off"):
        ours(LONG, truncation=False)
    assert_same(ours(LONG), ours(LONG, truncation=True))


def test_nothing_is_asked_where_an_option_is_wrong(both: Any) -> None:
    ours, _ = both("text-classification")
    asked = ours._pipeline._connection.asked
    before = len(asked)
    for options in ({"foo": 1}, {"function_to_apply": "relu"}, {"top_k": "2"}, {"truncation": "foo"}, {"max_length": 0}):
        with pytest.raises((TypeError, KeyError, ValueError)):
            ours("a", **options)
        with pytest.raises((TypeError, KeyError, ValueError)):
            next(ours.stream(["a"], **options))
    assert len(asked) == before


# -- fill-mask -----------------------------------------------------------------------------------------------------------------

ONE, TWO = "the film was [MASK] again", "a [MASK] story [MASK]"
MASKS: list[Case] = [
    *each(
        [ONE, [ONE], [ONE, ONE], TWO, [TWO], [ONE, TWO], []],
        [
            {},
            {"top_k": 2},
            {"top_k": 0},
            {"top_k": None},
            {"targets": "good"},
            {"targets": ["good", "bad", "good"], "top_k": 5},
            {"targets": ("good", "bad")},
            {"targets": {"good"}},
        ],
    ),
    *each(
        [ONE, TWO],
        [
            {"top_k": np.int64(2)},
            {"tokenizer_kwargs": {}},
            {"tokenizer_kwargs": None},
            {"tokenizer_kwargs": {"truncation": True, "max_length": 7}},
            {"tokenizer_kwargs": {"max_length": 7}},
            {"tokenizer_kwargs": {"padding": "max_length", "max_length": 30}},
            {"tokenizer_kwargs": {"add_special_tokens": False}},
            # refused
            {"tokenizer_kwargs": {"truncation": True, "max_length": 2}},
            {"tokenizer_kwargs": {"foo": 1}},
            {"tokenizer_kwargs": {"truncation": "foo"}},
            {"tokenizer_kwargs": {"return_tensors": "pt"}},
            {"tokenizer_kwargs": 5},
            {"max_length": 5},
            {"foo": 1},
            {"top_k": "2"},
            {"top_k": 2.0},
            {"targets": []},
            {"targets": ""},
            {"targets": [""]},
            {"targets": 5},
            {"targets": [5]},
        ],
    ),
    *each(["no mask", ["no mask"], [ONE, "no mask"], None, [None], 5, "", b"x", {"text": ONE}], [{}]),
    ((), {}),
    ((f"{ONE} and every scene" + " and every scene" * 60,), {"tokenizer_kwargs": {"truncation": True}}),
    (
        (f"{ONE} and every scene" + " and every scene" * 60,),
        {"tokenizer_kwargs": {"truncation": True, "add_special_tokens": False}},
    ),
]


@pytest.mark.parametrize("case", MASKS, ids=shown)
def test_fill_mask(both: Any, case: Case) -> None:
    assert_alike(*both("fill-mask"), *case[0], **case[1])


def test_a_text_without_a_mask_is_the_pipelines_own_exception(both: Any) -> None:
    from transformers.pipelines import PipelineException

    ours, _ = both("fill-mask")
    with pytest.raises(PipelineException, match="no mask token") as caught:
        ours("no mask")
    assert isinstance(caught.value, PipelineError)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.status, caught.value.task, caught.value.model) == ("INVALID_ARGUMENT", "fill-mask", "tiny")


def test_fill_mask_as_it_was_exported(made: TinyPipelines) -> None:
    checkpoint = made.checkpoint("fill-mask")
    pair = made.client(checkpoint, "fill-mask", top_k=2), made.pipeline(checkpoint, "fill-mask", top_k=2)
    for options in ({}, {"top_k": 3}, {"targets": ["good"]}):
        assert_alike(*pair, ONE, **options)


def test_fill_mask_otherwise(both: Any) -> None:
    ours, _ = both("fill-mask")
    for top_k in (-1, 10**6):  # torch has a RuntimeError for it
        with pytest.raises(ValueError, match="option top_k must be"):
            ours(ONE, top_k=top_k)
    with pytest.raises(ValueError, match="at most 16 can be filled"):
        ours("[MASK] " * 17)
    assert_same(ours(ONE, truncation=True), ours(ONE))


# -- question answering --------------------------------------------------------------------------------------------------------

QUESTION, CONTEXT = "is the film good", "of course the film was superb and moving and every scene was a delight"
ROW = {"question": QUESTION, "context": CONTEXT}
ANSWERS: list[Case] = [
    *(
        ((), {**ROW, **options})
        for options in (
            {},
            {"top_k": 20},
            {"topk": 3},
            {"topk": 3, "top_k": 2},
            {"top_k": np.int64(2)},
            {"max_answer_len": 3},
            {"handle_impossible_answer": True},
            {"handle_impossible_answer": 1},
            {"align_to_words": 0},
            {"padding": True},
            {"padding": "longest"},
            {"padding": "max_length", "max_seq_len": 40},
            {"doc_stride": 5, "max_seq_len": 20},
            {"max_question_len": 1},
            {"top_k": None, "max_seq_len": None},
            {"max_seq_length": 50},  # no option: the pipeline passes over it
            {"truncation": True},
            {"foo": 1},
            # refused
            {"top_k": 0},
            {"top_k": -1},
            {"top_k": "3"},
            {"top_k": 2.0},
            {"max_answer_len": 0},
            {"padding": "foo"},
            {"doc_stride": 50, "max_seq_len": 20},
            {"doc_stride": "x"},
        )
    ),
    ((), {"data": ROW}),
    ((), {"X": ROW}),
    ((), {"data": [ROW, ROW]}),
    ((), {"X": [ROW]}),
    ((), {"data": [ROW, ROW], "X": ROW}),
    ((), {"question": [QUESTION], "context": CONTEXT, "top_k": 2}),
    ((), {"question": [QUESTION, QUESTION], "context": CONTEXT}),
    ((), {"question": [QUESTION, QUESTION], "context": [CONTEXT, "a"]}),
    ((), {"question": [], "context": []}),
    ((), {"question": QUESTION, "context": "a"}),
    ((), {"question": QUESTION, "context": CONTEXT * 20}),
    ((), {"question": QUESTION, "context": CONTEXT * 20, "top_k": 4, "handle_impossible_answer": True}),
    (([],), {}),
    (([ROW, ROW],), {"top_k": 2}),
    ((ROW, ROW), {}),
    ((QUESTION, CONTEXT), {}),
    (({"question": [QUESTION], "context": [CONTEXT]},), {}),
    # refused
    *(((), {"question": question, "context": context}) for question, context in (("", "b"), (None, "b"), ("a", None), ("a", ""))),
    ((), {"question": [QUESTION, ""], "context": CONTEXT}),
    ((), {"question": [QUESTION, None], "context": CONTEXT}),
    ((), {"question": [QUESTION], "context": [CONTEXT, CONTEXT]}),
    ((), {"question": QUESTION, "context": [CONTEXT]}),
    ((), {"question": 5, "context": 5}),
    ((), {"question": QUESTION}),
    ((), {"context": CONTEXT}),
    ((), {}),
    *each(
        [{}, {"question": "a"}, {"question": "a", "context": None}, {**ROW, "id": 1}, "a", 5, None, [5], [{"question": "a"}]],
        [{}],
    ),
    *(((question, context), {}) for question, context in ((None, CONTEXT), ("", CONTEXT), (QUESTION, None), (QUESTION, ""))),
    ((), {"question": {"This": "is weird"}, "context": CONTEXT}),
    ((), {"Y": None}),
    ((QUESTION, CONTEXT, CONTEXT), {}),
]


@pytest.mark.parametrize("case", ANSWERS, ids=shown)
def test_question_answering(both: Any, case: Case) -> None:
    assert_alike(*both("question-answering"), *case[0], **case[1])


def test_question_answering_as_it_was_exported(made: TinyPipelines) -> None:
    """The pipeline takes options of its construction, and passes over the config's ``task_specific_params``."""
    task = "question-answering"
    checkpoint = made.checkpoint(task, task_specific_params={task: {"handle_impossible_answer": True, "top_k": 3}})
    assert_alike(made.client(checkpoint, task), made.pipeline(checkpoint, task), **ROW)
    settings = {"top_k": 2, "handle_impossible_answer": True}
    pair = made.client(checkpoint, task, **settings), made.pipeline(checkpoint, task, **settings)
    for options in ({}, {"top_k": 1}, {"handle_impossible_answer": False}):
        assert_alike(*pair, **ROW, **options)


@pytest.fixture(scope="module")
def padded_left(made: TinyPipelines) -> tuple[TritonPipeline, Any]:
    """A client and the pipeline of a checkpoint whose tokenizer pads on the left."""
    task = "question-answering"
    checkpoint = random_checkpoint(made.folder / "left", "bert", task_class(task))
    file = checkpoint / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"padding_side": "left"}), encoding="utf-8")
    pair = made.client(checkpoint, task), made.pipeline(checkpoint, task)
    assert pair[1].tokenizer.padding_side == "left"
    return pair


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"align_to_words": False, "top_k": 3}, {"handle_impossible_answer": True}])
@pytest.mark.parametrize(
    ("question", "context"),
    [
        (QUESTION, CONTEXT),
        (QUESTION, CONTEXT * 20),
        ("is the [CLS] film café", "a 한국어 film [SEP]"),
        (CONTEXT, "a"),
        (CONTEXT * 9, "a"),
        ("is [PAD] the film [PAD]", CONTEXT),
        (QUESTION, f"[PAD] {CONTEXT} café" * 6),
    ],
    ids=range(7),
)
def test_a_tokenizer_that_pads_on_the_left_wants_the_text_first(
    padded_left: Any, question: str, context: str, options: dict[str, Any]
) -> None:
    """The pipeline then takes words of the question for answers too."""
    ours, theirs = padded_left
    if question == CONTEXT * 9:
        with pytest.raises(ValueError, match="row 0: a window of 64 tokens has no room for the question"):
            ours(question=question, context=context, **options)
    else:
        assert_alike(ours, theirs, question=question, context=context, **options)
        assert_alike(ours, theirs, question=question, context=context, doc_stride=3, **options)


def test_question_answering_otherwise(both: Any) -> None:
    ours, theirs = both("question-answering")
    with pytest.warns(UserWarning, match="question-answering has no option max_seq_length; it has .* is ignored"):
        ours(**ROW, max_seq_length=50)
    with pytest.raises(TypeError, match="must be true or false"):
        ours(**ROW, handle_impossible_answer="yes")
    for options in ({"doc_stride": -1}, {"max_seq_len": 0}, {"max_seq_len": 8}, {"top_k": 1001}):
        with pytest.raises(ValueError, match=r"option|no room for the question"):
            ours(**ROW, **options)
    few = {"question": QUESTION, "context": "a", "top_k": 5}
    assert [answer["score"] == 0 for answer in theirs(**few)] == [False, True], (
        "the pipeline fills up with answers of no probability"
    )
    assert_same(ours(**few), theirs(**few)[0])


# -- zero-shot classification --------------------------------------------------------------------------------------------------

LABELS = ["good", "dull story", "cold"]
ZERO_SHOT: list[Case] = [
    *each(
        [ONE, [ONE], [ONE, "a mess"], []],
        [
            {"candidate_labels": LABELS},
            {"candidate_labels": "good, bad"},
            {"candidate_labels": "good"},
            {"candidate_labels": ("good", "bad")},
            {"candidate_labels": LABELS, "multi_label": True},
            {"candidate_labels": LABELS, "multi_class": True},
            {"candidate_labels": LABELS, "multi_class": False, "multi_label": True},
            {"candidate_labels": LABELS, "multi_label": 1},
            {"candidate_labels": LABELS, "hypothesis_template": "It is {}"},
            {"candidate_labels": LABELS, "hypothesis_template": "{{}} is {0}!"},
        ],
    ),
    *each(
        [ONE],
        [
            {"candidate_labels": LABELS, "multi_label": None},
            {"candidate_labels": LABELS, "foo": 1},
            {"candidate_labels": LABELS, "truncation": True},
            {"candidate_labels": ["a", "a"]},
            {"candidate_labels": ["", "a"]},
            # refused
            {},
            {"candidate_labels": ""},
            {"candidate_labels": []},
            {"candidate_labels": None},
            {"candidate_labels": 5},
            {"candidate_labels": {"a"}},
            {"candidate_labels": LABELS, "hypothesis_template": "none"},
            {"candidate_labels": LABELS, "hypothesis_template": None},
            {"candidate_labels": LABELS, "hypothesis_template": 5},
            {"candidate_labels": LABELS, "hypothesis_template": "{"},
        ],
    ),
    ((ONE, LABELS), {}),
    ((), {"sequences": ONE, "candidate_labels": LABELS}),
    ((ONE * 60, LABELS), {}),
    # refused
    ((ONE, LABELS, "x"), {}),
    ((ONE, LABELS), {"candidate_labels": LABELS}),
    ((), {"candidate_labels": LABELS}),
    *(((inputs, LABELS), {}) for inputs in (None, "", ["", ONE], 5, [5], [None])),
]


@pytest.mark.parametrize("case", ZERO_SHOT, ids=shown)
def test_zero_shot_classification(both: Any, case: Case) -> None:
    assert_alike(*both("zero-shot-classification"), *case[0], **case[1])


def test_zero_shot_classification_as_it_was_exported(made: TinyPipelines) -> None:
    task, settings = "zero-shot-classification", {"multi_label": True, "hypothesis_template": "So {}"}
    checkpoint = made.checkpoint(task)
    pair = made.client(checkpoint, task, **settings), made.pipeline(checkpoint, task, **settings)
    for options in ({}, {"multi_label": False}, {"hypothesis_template": "It {}"}):
        assert_alike(*pair, ONE, LABELS, **options)


def test_zero_shot_classification_otherwise(both: Any) -> None:
    ours, _ = both("zero-shot-classification")
    with pytest.raises(TypeError, match="candidate_labels must be a list of strings"):
        ours(ONE, [1, 2])
    assert_same(ours(ONE, np.array(["good", "bad"])), ours(ONE, ["good", "bad"]))
    for template in ("{} {}", "{x}", "{0.upper}"):
        with pytest.raises(ValueError, match=r"hypothesis_template must contain \{\}"):
            ours(ONE, LABELS, hypothesis_template=template)


# -- token classification ------------------------------------------------------------------------------------------------------

SPLIT = ["the", "film", "(café)", "", "unbelievably"]
TAGS: list[Case] = [
    *each(
        [TEXTS[0], [TEXTS[0]], [TEXTS[0], "a"], []],
        [
            {},
            {"aggregation_strategy": "simple"},
            {"aggregation_strategy": "FIRST"},
            {"aggregation_strategy": None},
            {"ignore_labels": []},
            {"ignore_labels": ("O", "film"), "aggregation_strategy": "average"},
            {"grouped_entities": True},
            {"grouped_entities": True, "ignore_subwords": True},
            {"grouped_entities": False, "aggregation_strategy": "max"},
            {"ignore_subwords": True},
        ],
    ),
    *each(
        [TEXTS[0]],
        [
            {"ignore_labels": None},
            {"ignore_labels": {"O"}},
            {"stride": 4},
            {"stride": 4, "aggregation_strategy": "simple"},
            {"stride": None},
            {"is_split_into_words": False},
            {"delimiter": "_"},
            {"offset_mapping": None},
            # refused
            {"aggregation_strategy": "best"},
            {"ignore_labels": "O"},
            {"ignore_labels": 5},
            {"stride": 4, "aggregation_strategy": "none"},
            {"stride": 100, "aggregation_strategy": "simple"},
            {"stride": "4"},
            {"is_split_into_words": True},
            {"offset_mapping": [[(0, 1)], [(0, 1)]]},
            {"top_k": 1},
        ],
    ),
    *each(
        [SPLIT, [SPLIT, ["a"]], ["the"] * 200],
        [
            {"is_split_into_words": True},
            {"is_split_into_words": True, "delimiter": "_", "aggregation_strategy": "simple"},
            {"is_split_into_words": True, "delimiter": "", "aggregation_strategy": "max", "ignore_labels": []},
        ],
    ),
    *each([None, 5, [None], ["a", 5], b"x", {"text": "a"}, [["a", "b"]]], [{}, {"aggregation_strategy": "simple"}]),
    *each(["", [""], TEXTS[0] * 20], [{}, {"aggregation_strategy": "max"}]),
    ((), {}),
    ((["a", 5],), {"is_split_into_words": True}),
    ((), {"inputs": TEXTS[0]}),
]


@pytest.mark.parametrize("case", TAGS, ids=shown)
def test_token_classification(both: Any, case: Case) -> None:
    assert_alike(*both("token-classification"), *case[0], **case[1])


def test_words_of_a_tokenizer_without_marks(made: TinyPipelines) -> None:
    """RoBERTa's, whose words the pipeline tells apart by spaces of the text."""
    checkpoint = tiny_tagger(made.folder / "roberta", "roberta")
    pair = made.client(checkpoint, "token-classification"), made.pipeline(checkpoint, "token-classification")
    for words in (SPLIT, [SPLIT, ["a"]]):
        for strategy in ("none", "simple", "first"):
            assert_alike(*pair, words, is_split_into_words=True, aggregation_strategy=strategy, ignore_labels=[])


@pytest.mark.parametrize("strategy", ["max", "none", "simple"])
def test_token_classification_as_it_was_exported(made: TinyPipelines, strategy: str) -> None:
    task = "token-classification"
    checkpoint = made.checkpoint(task)
    pair = (
        made.client(checkpoint, task, aggregation_strategy=strategy, ignore_labels='["film"]'),
        made.pipeline(checkpoint, task, aggregation_strategy=strategy, ignore_labels=["film"]),
    )
    for options in ({}, {"aggregation_strategy": "first"}, {"ignore_labels": ["O"]}, {"stride": 5}, {"grouped_entities": True}):
        assert_alike(*pair, TEXTS[0], **options)


def test_numbers_as_labels_of_tokens_stay_numbers(made: TinyPipelines) -> None:
    pair = with_number_labels(made, "token-classification")
    assert_alike(*pair, WORDS)
    assert {token["entity"] for token in pair[0](WORDS)} == {7}
    assert_alike(*pair, WORDS, ignore_labels=[7])
    assert pair[0](WORDS, ignore_labels=[7]) == []
    assert {entity["entity_group"] for entity in pair[0](WORDS, aggregation_strategy="simple")} == {"7"}, "the pipeline fails"


def test_token_classification_otherwise(both: Any) -> None:
    ours, _ = both("token-classification")
    with pytest.raises(ValueError, match="offset_mapping is not served"):
        ours(TEXTS[0], offset_mapping=[(0, 1)])
    with pytest.raises(ValueError, match="words are not read in windows"):
        ours(SPLIT, is_split_into_words=True, stride=3)
    with pytest.raises(ValueError, match="option stride must be 0 or more"):
        ours(TEXTS[0], stride=-1)
    assert_same(ours(TEXTS[0], truncation=True), ours(TEXTS[0]))


# -- feature extraction --------------------------------------------------------------------------------------------------------

VECTORS: list[Case] = [
    *each(
        [ONE, [ONE], [ONE, "a"]],
        [
            {},
            {"truncation": True},
            {"tokenize_kwargs": None},
            {"tokenize_kwargs": {"max_length": 3}},
            {"tokenize_kwargs": {"truncation": True, "max_length": 4, "padding": False}},
            {"truncation": True, "tokenize_kwargs": {"max_length": 4}},
            {"truncation": False, "tokenize_kwargs": {"max_length": 4}},
            {"tokenize_kwargs": {"add_special_tokens": False}},
            {"return_tensors": False},
            {"max_length": 3},  # no option here: the pipeline passes over it
            {"truncation": True, "max_length": 3},
            {"foo": 1},
            # refused
            {"truncation": True, "tokenize_kwargs": {"truncation": True}},
            {"tokenize_kwargs": {"foo": 1}},
            {"tokenize_kwargs": 5},
            {"truncation": "foo"},
        ],
    ),
    *each([None, [None], 5, {"text": "a"}, ["a", 5], "", [""], []], [{}]),
    ((ONE * 40,), {"truncation": True}),
    ((ONE * 40,), {"truncation": True, "tokenize_kwargs": {"max_length": 5}}),
]


@pytest.mark.parametrize("case", VECTORS, ids=shown)
def test_feature_extraction(both: Any, case: Case) -> None:
    """The mean of the vectors that the pipeline gives."""
    ours, theirs = both("feature-extraction")

    def pooled(*arguments: Any, **options: Any) -> Any:
        found = theirs(*arguments, **options)
        means = [np.mean(one[0], axis=0).tolist() for one in (found if isinstance(arguments[0], list) else [found])]
        return means if isinstance(arguments[0], list) else means[0]

    assert_alike(ours, pooled, *case[0], **case[1])


def test_feature_extraction_otherwise(both: Any) -> None:
    ours, theirs = both("feature-extraction")
    array = ours(ONE, return_tensors=True)
    assert (type(array), array.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(array, theirs(ONE, return_tensors=True)[0].mean(axis=0).numpy(), atol=1e-5)
    with pytest.raises(TypeError, match="return_tensors must be true"):
        ours(ONE, return_tensors="pt")
    with pytest.warns(UserWarning, match="feature-extraction has no option max_length; it has"):
        ours(ONE, max_length=3)
