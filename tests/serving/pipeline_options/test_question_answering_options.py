"""Every option and form of a call of question answering: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from export.tasks import task_class
from serving.client import TritonPipeline
from tests.helpers.graphs import random_checkpoint
from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.tiny_pipelines import TinyPipelines
from tests.serving.pipeline_options.cases import Case, each, shown

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]


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
    with pytest.warns(UserWarning, match=r"^ignored, as .* no option max_seq_length; did you mean max_seq_len\?$"):
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
