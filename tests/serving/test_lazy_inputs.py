"""Inputs of every kind and defaults of the constructor, against ``transformers.pipeline`` on the same tiny checkpoint.

The served task runs in this process; its requests are counted there. What the client does otherwise on purpose stands at the end.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import copy
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from transformers import SquadExample
from transformers.pipelines.pt_utils import KeyDataset, KeyPairDataset

from serving.async_client import OVERTAKING
from serving.client import AsyncTritonPipeline, TritonPipeline
from tests.helpers.in_process import InProcess
from tests.helpers.parity import assert_same
from tests.helpers.tiny_pipelines import TinyPipelines

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
    pytest.mark.filterwarnings("ignore:Passing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning"),
]
LABELS = {"candidate_labels": ["good", "a dull mess"]}
QUESTION = {"question": "of course", "context": "the film was superb and moving"}
OTHER_QUESTION = {"question": "a film", "context": "a dull mess of a story"}
TASKS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "text-classification": (["the film", "a dull mess", ""], {}),
    "token-classification": (["the film", "a dull mess", ""], {"aggregation_strategy": "simple"}),
    "fill-mask": (["the [MASK]", "a [MASK] of [MASK]", "[MASK] mess"], {"top_k": 2}),
    "zero-shot-classification": (["the film", "a dull mess"], LABELS),
    "question-answering": ([QUESTION, OTHER_QUESTION], {}),
}
"""Three rows or two of each task, and options."""


class ByPosition(torch.utils.data.Dataset[Any]):
    """A data set that is read by position."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


class Endless(ByPosition):
    """A data set that has an item at any position, and ends only because of its length."""

    def __getitem__(self, place: int) -> Any:
        return self.items[place % len(self.items)]


class OneByOne(torch.utils.data.IterableDataset[Any]):
    """A data set that can only be iterated."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


STREAMED: dict[str, Callable[[list[Any]], Any]] = {
    "generator": lambda rows: (row for row in rows),
    "empty generator": lambda _: (row for row in ()),
    "torch data set": ByPosition,
    "torch iterable data set": OneByOne,
    "KeyDataset": lambda rows: KeyDataset(cast("Any", [{"column": row} for row in rows]), "column"),
}
"""Inputs for which the pipeline returns an iterator, by kind."""
EXTENDED: dict[str, Callable[[list[Any]], Any]] = {
    "iterator": iter,
    "map": lambda rows: map(copy, rows),
    "values of a dict": lambda rows: dict(enumerate(rows)).values(),
    "DataLoader without batches": lambda rows: torch.utils.data.DataLoader(ByPosition(rows), batch_size=None),
}
"""Inputs that can be iterated, for which most pipelines raise an error."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPipelines]:
    with ExitStack() as stack:
        yield TinyPipelines(tmp_path_factory.mktemp("inputs"), stack)


def requests_of(client: TritonPipeline) -> int:
    return len(cast("InProcess", client._pipeline._connection).asked)


def caught(call: Callable[[], Any]) -> BaseException | None:
    """The error of a call whose answers are read to the end."""
    try:
        found = call()
        if hasattr(found, "__next__"):
            list(found)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("task", TASKS)
def test_items_are_answered_as_by_the_pipeline(tiny: TinyPipelines, task: str, kind: str) -> None:
    client, pipeline = tiny.both(task)
    rows, options = TASKS[task]
    ours, theirs = client(STREAMED[kind](rows), **options), pipeline(STREAMED[kind](rows), **options)
    assert hasattr(ours, "__next__") and hasattr(theirs, "__next__")
    for found in (ours, theirs):
        if hasattr(STREAMED[kind](rows), "__len__"):
            assert len(found) == len(rows)
        else:
            with pytest.raises(TypeError):
                len(found)
    expected = list(theirs)
    assert_same(list(ours), expected)
    assert len(expected) == (0 if kind == "empty generator" else len(rows))


@pytest.mark.parametrize("kind", EXTENDED)
@pytest.mark.parametrize("task", TASKS)
def test_other_iterables_are_answered_in_the_same_form(tiny: TinyPipelines, task: str, kind: str) -> None:
    client, pipeline = tiny.both(task)
    rows, options = TASKS[task]
    ours = client(EXTENDED[kind](rows), **options)
    if task == "question-answering":  # this pipeline takes them, and returns a list
        assert_same(ours, pipeline(EXTENDED[kind](rows), **options))
    else:
        assert caught(lambda: pipeline(EXTENDED[kind](rows), **options)) is not None
        assert hasattr(ours, "__next__")
        assert_same(list(ours), list(pipeline((row for row in rows), **options)))


def test_a_data_set_ends_because_of_its_length(tiny: TinyPipelines) -> None:
    client, pipeline = tiny.both("text-classification")
    assert_same(list(client(Endless(["a film", "b"]))), list(pipeline(Endless(["a film", "b"]))))


def test_data_sets_of_the_library(tiny: TinyPipelines) -> None:
    client, pipeline = tiny.both("text-classification")
    texts = ["the film", "a dull mess"]
    rows = datasets.Dataset.from_dict({"text": texts})
    for inputs in (rows, rows["text"], rows.to_iterable_dataset(), np.array(texts)):
        assert_same(list(client(inputs)), pipeline(texts))
    answering, original = tiny.both("question-answering")
    questions = datasets.Dataset.from_list([QUESTION | {"id": "1"}, OTHER_QUESTION | {"id": "2"}])
    assert type(caught(lambda: answering(questions))) is type(caught(lambda: original(questions))) is TypeError
    questions = questions.remove_columns("id")
    assert_same(answering(questions), original(questions))
    assert_same(answering(questions.select([0])), original(questions.select([0])))


def test_items_may_be_dicts_and_examples(tiny: TinyPipelines) -> None:
    client, pipeline = tiny.both("text-classification", pair=True)
    pairs = [{"first": "the film", "second": "a mess"}, {"first": "a story", "second": ""}]
    for make in (lambda: KeyPairDataset(cast("Any", pairs), "first", "second"), lambda: (row for row in [[["a", "b"]]])):
        assert_same(list(client(make())), list(pipeline(make())))
    client, pipeline = tiny.both("question-answering")
    example = SquadExample(None, *QUESTION.values(), None, None, None)
    empty = {"question": "", "context": "a film"}
    for items in ([example, OTHER_QUESTION], [QUESTION | {"id": 1}], [empty]):  # a list of the last two is refused
        for kind in ("generator", "torch data set"):
            assert_same(list(client(STREAMED[kind](items))), list(pipeline(STREAMED[kind](items))))
    assert_same(list(client((row for row in [QUESTION]), top_k=2)), list(pipeline((row for row in [QUESTION]), top_k=2)))
    assert_same(list(client(data=(row for row in [QUESTION]))), list(pipeline(data=(row for row in [QUESTION]))))


def test_a_batch_of_a_data_loader_is_answered_by_a_list(tiny: TinyPipelines) -> None:
    client, pipeline = tiny.both("text-classification", pair=True)
    rows = [{"text": f"film {number}", "text_pair": "a mess"} for number in range(5)]
    answers = client(torch.utils.data.DataLoader(ByPosition(rows), batch_size=2))
    assert len(answers) == 3
    assert_same(list(answers), [pipeline(rows[:2]), pipeline(rows[2:4]), pipeline(rows[4:])])
    single, pipeline = tiny.both("text-classification")
    texts = [row["text"] for row in rows]
    loader = torch.utils.data.DataLoader(ByPosition(texts), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert_same(list(single(loader)), [pipeline(texts[:2]), pipeline(texts[2:4]), pipeline(texts[4:])])
    answering, original = tiny.both("question-answering")
    both = [original(QUESTION), original(OTHER_QUESTION)]
    assert_same(list(answering(torch.utils.data.DataLoader(ByPosition([QUESTION, OTHER_QUESTION]), batch_size=2))), [both])


def test_a_data_set_is_read_again_and_a_generator_goes_on(tiny: TinyPipelines) -> None:
    client, pipeline = tiny.both("text-classification")
    texts = ["the film", "a dull mess", "a story"]
    for answers in (client(ByPosition(texts)), pipeline(ByPosition(texts))):
        assert len([*answers]) == len([*answers]) == 3
        first = next(iter(answers))
        assert [first] == [*answers][:1]
    answers = client(text for text in texts)
    assert [next(answers), *answers] == client(texts)
    assert next(answers, None) is None
    assert_same([*client(text for text in texts)], pipeline(texts))


def test_inputs_are_read_as_far_as_requests_need_them(tiny: TinyPipelines) -> None:
    client = tiny.client_of("text-classification", concurrency=3)
    read: list[int] = []

    def rows() -> Iterator[str]:
        for number in range(1000):
            read.append(number)
            yield "a film"

    answers = client(rows(), batch_size=2)
    assert read == []
    next(answers)
    answers.close()
    assert 2 <= len(read) <= 2 * (3 * OVERTAKING + 1)


def test_an_item_that_cannot_be_answered_raises_when_it_is_reached(tiny: TinyPipelines) -> None:
    client, pipeline = tiny.both("text-classification")
    for pipe in (client, pipeline):
        answers = iter(pipe(row for row in ["the film", None, "a mess"]))
        assert next(answers)["label"]
        with pytest.raises(ValueError, match=r"must be a string|specify either"):
            next(answers)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, ZeroDivisionError])
def test_whatever_ends_the_reading_reaches_the_caller(tiny: TinyPipelines, error: type[BaseException]) -> None:
    client, _ = tiny.both("text-classification")

    def rows() -> Iterator[str]:
        yield "the film"
        raise error("no more")

    answers = client(rows())
    assert next(answers)["label"]
    with pytest.raises(ZeroDivisionError if error is ZeroDivisionError else RuntimeError, match="no more"):
        next(answers)
    assert client("the same client goes on")


# -- batch_size and num_workers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constructor", "call", "requests"),
    [({}, {}, 7), ({"batch_size": 3}, {}, 3), ({"batch_size": 3}, {"batch_size": 7}, 1),
     ({"batch_size": 3}, {"batch_size": None}, 3), ({"batch_size": None}, {"batch_size": 1000}, 1),
     ({"batch_size": 2, "num_workers": 1}, {"num_workers": 0}, 4)],
)  # fmt: skip
def test_the_batch_size_is_the_rows_of_a_request(
    tiny: TinyPipelines, constructor: dict[str, Any], call: dict[str, Any], requests: int
) -> None:
    texts = ["a film"] * 7
    client = tiny.client_of("text-classification", **constructor)
    pipeline = tiny.pipeline(tiny.checkpoint("text-classification"), "text-classification", **constructor)
    expected = pipeline(texts, **call)
    for inputs in (texts, (text for text in texts)):
        before = requests_of(client)
        assert_same([*client(inputs, **call)], expected)
        assert requests_of(client) - before == requests


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": "x"}, {"batch_size": 1.5}, {"batch_size": True}, {"num_workers": -1}]
)
def test_other_batch_sizes_are_refused_as_by_the_pipeline(tiny: TinyPipelines, wrong: dict[str, Any]) -> None:
    client, pipeline = tiny.both("text-classification")
    before = requests_of(client)
    assert type(caught(lambda: client(["a film"], **wrong))) is type(caught(lambda: pipeline(["a film"], **wrong))) is ValueError
    assert requests_of(client) == before
    with pytest.raises(ValueError, match="must be a whole number of"):
        TritonPipeline("x", **wrong)


# -- options of the constructor ------------------------------------------------------------------------------------------------

TEXT = "the film was good, its cast a delight"
DEFAULTS: list[tuple[str, dict[str, Any], Any, list[dict[str, Any]]]] = [
    ("text-classification", {"top_k": 2}, TEXT, [{}, {"top_k": 1}, {"top_k": None}, {"function_to_apply": "none"}]),
    ("text-classification", {"top_k": 1}, [TEXT], [{}, {"top_k": 2}]),
    ("text-classification", {"top_k": None}, {"text": TEXT}, [{}, {"top_k": 1}]),
    ("text-classification", {"function_to_apply": "none"}, TEXT,
     [{}, {"function_to_apply": "sigmoid"}, {"function_to_apply": None}]),
    ("text-classification", {"return_all_scores": True}, TEXT, [{}, {"return_all_scores": False}, {"return_all_scores": None}]),
    ("text-classification", {"max_length": 4, "truncation": True}, TEXT, [{}, {"max_length": 6}]),
    ("token-classification", {}, TEXT, [{}, {"stride": 2, "aggregation_strategy": "first"}]),
    ("token-classification", {"aggregation_strategy": "simple", "ignore_labels": []}, TEXT,
     [{}, {"aggregation_strategy": "none"}, {"aggregation_strategy": None}, {"ignore_labels": ["film"]}, {"stride": 2},
      {"grouped_entities": False}]),
    ("token-classification", {"grouped_entities": True}, TEXT, [{}, {"aggregation_strategy": "first"}]),
    ("fill-mask", {"top_k": 2, "targets": ["film", "good"]}, "the [MASK]",
     [{}, {"top_k": 1}, {"top_k": None}, {"targets": "story"}]),
    ("zero-shot-classification", LABELS | {"multi_label": True}, TEXT, [{}, {"candidate_labels": "a, b"}, {"multi_label": False}]),
    ("question-answering", {"top_k": 2, "max_answer_len": 3}, QUESTION, [{}, {"top_k": 1}, {"handle_impossible_answer": True}]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "defaults", "inputs", "calls"), DEFAULTS, ids=lambda value: str(value)[:40])
def test_options_of_the_constructor_hold_for_every_call(
    tiny: TinyPipelines, task: str, defaults: dict[str, Any], inputs: Any, calls: list[dict[str, Any]]
) -> None:
    client = tiny.client_of(task, **defaults)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = tiny.pipeline(tiny.checkpoint(task), task, **defaults)
        for options in calls:
            assert_same(client(inputs, **options), pipeline(inputs, **options))
            items = inputs if isinstance(inputs, list) else [inputs]
            lazy = [list(pipe((item for item in items), **options)) for pipe in (client, pipeline)]
            assert_same(*lazy)
    if task == "zero-shot-classification":
        assert_same(client(inputs, ["by position"]), pipeline(inputs, ["by position"]))


def test_wrong_options_of_the_constructor_are_refused(tiny: TinyPipelines) -> None:
    with pytest.raises(TypeError, match="token-classification has no option no_such_option"):
        tiny.client_of("token-classification", no_such_option=1)("a film")
    with pytest.raises(KeyError):
        tiny.client_of("text-classification", function_to_apply="relu")("a film")


# -- other ways to call --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_methods_of_scikit_learn(tiny: TinyPipelines, task: str) -> None:
    rows, options = TASKS[task]
    client = tiny.client_of(task, **options)
    pipeline = tiny.pipeline(tiny.checkpoint(task), task, **options)
    for inputs in (rows, rows[:1], rows[0]):
        assert_same(client.predict(inputs), pipeline.predict(inputs))
        assert_same(client.transform(inputs), pipeline.transform(inputs))
    assert_same([*client.predict(row for row in rows)], [*pipeline.predict(row for row in rows)])


def test_asynchronous_clients_take_them_too(tiny: TinyPipelines) -> None:
    _, pipeline = tiny.both("text-classification")
    texts = ["the film", "a dull mess"]
    expected = pipeline(texts)

    async def asynchronous() -> Any:
        for text in texts:
            yield text

    async def ask() -> list[Any]:
        client = AsyncTritonPipeline("tiny")
        client._connection = tiny.connection("text-classification")
        inputs = [(text for text in texts), ByPosition(texts), asynchronous()]
        return [[answer async for answer in await client(one, top_k=1)] for one in inputs]

    for found in asyncio.run(ask()):
        assert_same(found, [[answer] for answer in expected])


def test_no_thread_is_left(tiny: TinyPipelines) -> None:
    client, _ = tiny.both("text-classification")
    assert [*client(text for text in ["a film"])] == client(["a film"])
    answers = client(text for text in ["a film"] * 100)
    next(answers)
    answers.close()
    for thread in threading.enumerate():
        if thread.name == "TritonPipeline rows":
            thread.join(10)
    assert "TritonPipeline rows" not in {thread.name for thread in threading.enumerate()}


# -- otherwise on purpose ------------------------------------------------------------------------------------------------------


def test_the_length_is_that_of_the_inputs_with_batches_too(tiny: TinyPipelines) -> None:
    """The pipeline gives the number of batches, though it yields an answer to each item."""
    client, pipeline = tiny.both("text-classification")
    rows = ["a film"] * 5
    assert (len(client(ByPosition(rows), batch_size=2)), len(pipeline(ByPosition(rows), batch_size=2))) == (5, 3)
    assert len([*pipeline(ByPosition(rows), batch_size=2)]) == 5


def test_a_tuple_is_a_list(tiny: TinyPipelines) -> None:
    """The pipeline answers only the first text of a tuple, or fails."""
    client, pipeline = tiny.both("text-classification")
    assert_same(client(("a film", "a mess")), pipeline(["a film", "a mess"]))
    assert_same(pipeline(("a film",)), pipeline(["a film"])[0])


def test_a_list_within_a_list_is_refused(tiny: TinyPipelines) -> None:
    """This pipeline answers only the first text of the inner list."""
    client, pipeline = tiny.both("fill-mask")
    assert_same(pipeline([["a [MASK]", "the [MASK]"]]), pipeline("a [MASK]"))
    with pytest.raises(ValueError, match="each row must be a string, not"):
        client([["a [MASK]", "the [MASK]"]])
