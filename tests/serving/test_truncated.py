"""Every answer says whether the model read the whole text."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.tasks import task_class
from serving import TruncationWarning
from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.runtime.digest import mark_truncated, split_truncation
from serving.runtime.tasks import load_served
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Features, Origins
from tests.helpers.checkpoints import make_tokenizer
from tests.helpers.in_process import InProcess
from tests.helpers.tiny_pipelines import TinyPipelines

LENGTH = 12
"""Tokens that the model keeps of a row."""
SHORT, LONG = "good film", "good film " * LENGTH


def encoder(kind: str, length: int = LENGTH) -> TextEncoder:
    names = ("input_ids", "token_type_ids")
    return TextEncoder(make_tokenizer(kind).backend_tokenizer, max_length=length, names=names, padding={}, most_rows=64)


def truncated(task: str, *columns: Sequence[str], kind: str = "wordpiece", **settings: Any) -> list[bool]:
    made = task_class(task).from_config(
        {"id2label": {"0": "entailment", "1": "b"}, "vocab_size": 99, "hidden_size": 8}, pair=len(columns) == 2
    )
    served = load_served(task, made.served.to_settings() | settings)  # type: ignore[attr-defined]
    found = set(served.preprocess([list(column) for column in columns], encoder(kind)).truncated_rows)
    return [row in found for row in range(len(columns[0]))]


def test_the_bit_beside_a_digest() -> None:
    digests, flags = np.array([0, 7, 2**52 - 1, 2**52 - 1]), np.array([True, False, True, False])
    marked = mark_truncated(digests.copy(), [0, 2, 2])
    np.testing.assert_array_equal(mark_truncated(digests.copy(), ()), digests)
    assert marked.dtype == np.int64 and (marked >= 0).all() and len(set(marked.tolist())) == 4
    for found, expected in zip(split_truncation(marked), (digests, flags), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_row_is_truncated_if_it_has_more_tokens_than_are_kept(kind: str) -> None:
    whole = Tokenizer.from_str(make_tokenizer(kind).backend_tokenizer.to_str())
    whole.no_truncation()
    rng, made, seen = random.Random(3), encoder(kind), set()
    words = ["good", "film", "bad", "x", "é", "story,", "[SEP]", ""]
    sizes = [*range(14), 40, 3000]  # the last is cut before it is tokenized
    rows: list[Any] = [" ".join(rng.choices(words, k=size)) for size in sizes for _ in range(4)]
    pairs = [(one, rng.choice(rows)) for one in rows]
    for strategy, texts in (("longest_first", rows), ("longest_first", pairs), ("only_first", pairs), ("only_second", pairs)):
        for length in (LENGTH, 9):
            counts = [len(encoding) for encoding in whole.encode_batch_fast(texts)]
            for text, count in zip(texts, counts, strict=True):
                try:
                    encodings = made.encode([text], strategy=strategy, max_length=length)
                except ValueError:
                    assert count > length, "it fits, so it is no error"
                    continue
                found = bool(Features(encodings, Origins(np.arange(1))).truncated_rows)
                assert found == (count > length), (text[:50] if isinstance(text, str) else text[0][:50], strategy, length)
                seen.add(found)
    assert seen == {False, True}


def test_every_task_says_whether_it_read_all() -> None:
    assert truncated("text-classification", [SHORT, LONG, ""]) == [False, True, False]
    assert truncated("text-classification", [SHORT, SHORT, LONG], [SHORT, LONG, SHORT]) == [False, True, True]
    assert truncated("text-classification", [SHORT, LONG], max_length=3) == [True, True], "a request may keep less"
    assert truncated("feature-extraction", [SHORT, LONG]) == [False, True]
    assert truncated("feature-extraction", [SHORT], prompt=LONG) == [True]
    masks = {"mask_token": "[MASK]", "mask_token_id": make_tokenizer("wordpiece").mask_token_id}
    assert truncated("fill-mask", [f"[MASK] {SHORT}", f"[MASK] {LONG}"], **masks) == [False, True]


def test_every_candidate_counts() -> None:
    candidates = json.dumps(["good", "film"]), json.dumps(["good", "good film " * 3])
    assert truncated("multiple-choice", [SHORT, SHORT, LONG], [candidates[0], json.dumps(["good", LONG]), candidates[0]]) == [
        False,
        True,
        True,
    ]
    labels = {"entailment": 0, "contradiction": 1, "hypothesis_template": "{}"}
    found = truncated("zero-shot-classification", ["good film"] * 2 + ["good film " * 4] * 2, [*candidates] * 2, **labels)
    assert found == [False, False, False, True], "the longer hypothesis leaves the text less room"


def test_windows_read_all() -> None:
    assert truncated("question-answering", [SHORT, SHORT], [SHORT, LONG]) == [False, False]
    assert truncated("token-classification", [SHORT, LONG]) == [False, True]
    assert truncated("token-classification", [SHORT, LONG], stride=2) == [False, False]
    words = json.dumps(["good"] * 3), json.dumps(["good"] * 30)
    assert truncated("token-classification", [*words], is_split_into_words=True) == [False, True]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPipelines]:
    with ExitStack() as stack:
        yield TinyPipelines(tmp_path_factory.mktemp("tiny"), stack)


WARNING = "truncated: tiny keeps 64 tokens of a row"
LONGER = "good film " * 64


def test_a_client_warns_once(tiny: TinyPipelines) -> None:
    pipe = tiny.client_of("text-classification", batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = pipe([SHORT] * 3)
        assert [arrays["TRUNCATED"].tolist() for arrays in pipe.tensors([(SHORT,), (LONGER,), (SHORT,)])] == [
            [[False], [True]],
            [[False]],
        ]
    with pytest.warns(TruncationWarning, match=f"^2 rows were {WARNING}") as caught:
        found = pipe([LONGER, SHORT, LONGER])
    assert len(caught) == 1 and found[1] == short[0] and [set(one) for one in found] == [{"label", "score"}] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pipe(LONGER)[0] == found[0], "it has warned"
    with pytest.warns(TruncationWarning, match=f"^1 row was {WARNING}"):
        tiny.client_of("text-classification")(LONGER)


def test_a_filter_makes_it_an_error_every_time(tiny: TinyPipelines) -> None:
    pipe = tiny.client_of("text-classification")
    raised = []

    def ask() -> None:
        with pytest.raises(TruncationWarning):
            pipe(LONGER)
        raised.append(True)

    with warnings.catch_warnings():
        warnings.simplefilter("error", TruncationWarning)
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert raised == [True] * 3 and pipe(SHORT)
        answers = pipe.stream([SHORT, LONGER])
        assert next(answers)["label"]
        with pytest.raises(TruncationWarning):
            next(answers)
        with pytest.raises(TruncationWarning):
            [*pipe(text for text in [SHORT, LONGER])]


def test_streams_warn_or_mark(tiny: TinyPipelines) -> None:
    with pytest.warns(TruncationWarning, match=f"^1 row was {WARNING}") as caught:
        assert len([*tiny.client_of("text-classification").stream([LONGER, SHORT, LONGER])]) == 3
    assert len(caught) == 1
    pipe = tiny.client_of("text-classification", batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marked = [*pipe.stream_marked([SHORT, LONGER, SHORT])]
    assert [flag for _, flag in marked] == [False, True, False]
    assert [set(answer) for answer, _ in marked] == [{"label", "score"}] * 3


def test_the_asynchronous_client_warns(tiny: TinyPipelines) -> None:
    connection = tiny.connection("text-classification")

    async def ask() -> list[Any]:
        pipe = AsyncTritonPipeline("tiny")
        pipe._connection = connection
        return [await pipe(SHORT), await pipe([LONGER]), await pipe([LONGER])]

    with pytest.warns(TruncationWarning, match=WARNING) as caught:
        assert len(asyncio.run(ask())) == 3
    assert len(caught) == 1


def test_an_ensemble_that_was_packaged_before_the_output_is_answered(tiny: TinyPipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = InProcess.infer

    async def without(self: Any, model: str, inputs: Any, parameters: Any, **_: object) -> Any:
        result = await infer(self, model, inputs, parameters)
        result.get_output = lambda _: None
        return result

    monkeypatch.setattr(InProcess, "infer", without)
    pipe: TritonPipeline = tiny.client_of("text-classification")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pipe([LONGER])) == 1
        assert "TRUNCATED" not in pipe.tensors([(LONGER,)])[0]


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_the_example_is_whole(tiny: TinyPipelines, task: str) -> None:
    served = tiny.both(task)[0].served_task
    rows = [tuple(served.example.values())]
    assert tiny.client_of(task).tensors(rows)[0]["TRUNCATED"].tolist() == [[False]]
