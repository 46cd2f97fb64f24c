"""The two Python steps of an ensemble without a server: what goes around the model, who gets what, and whose request is refused."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Sequence, Split

from serving.runtime import answering, row_preparation
from serving.runtime.digest import DIGEST, MODEL_DIGEST, REQUEST_DIGEST
from serving.runtime.metadata import METADATA, pack, unpack
from serving.runtime.tasks.text_classification import TextClassification
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Arrays, Features, Origins, TextColumns
from tests.helpers.digests import expected_digest
from tests.helpers.triton_steps import INTERNAL, INVALID_ARG, Request, backend, initialized

# Notes


def test_notes_survive_the_way_around_the_model() -> None:
    first = pack(np.array([0, 0, 1, 2]), np.array([7, 7, 2**52 - 1, 0]), [b"a", b"", b"\x00\xff" * 500, "é".encode()])
    second = pack(np.array([0]), np.array([9]), [b"alone"])
    third = pack(np.array([0, 1, 1]), np.array([1, 2, 2]), [b"x", b"y", b"z"])
    assert (first.shape, first.dtype) == ((4, 1), np.object_)
    assert all(isinstance(note, bytes) for note in first[:, 0]), "what a BYTES tensor holds"
    unpacked = unpack([first, second, third])
    origins = unpacked.origins
    assert origins.sample_mapping.tolist() == [0, 0, 1, 2, 3, 4, 5, 5]
    assert origins.sample_mapping.dtype == np.int64
    assert list(origins.metadata) == [b"a", b"", b"\x00\xff" * 500, "é".encode(), b"alone", b"x", b"y", b"z"]
    assert (unpacked.request_rows, unpacked.model_rows) == ([3, 1, 2], [4, 1, 3])
    assert unpacked.digests.tolist() == [7, 7, 2**52 - 1, 0, 9, 1, 2, 2]
    assert origins.count == 6


@pytest.mark.parametrize("owners", [[1], [0, 2], [0, 2**31 - 1], [-1], [0, 1, 0], []], ids=str)
def test_notes_that_nobody_packed_are_refused(owners: list[int]) -> None:
    """The last step may be asked by itself, with any of them."""
    made = np.array([[struct.pack("<iq", owner, 0)] for owner in owners], dtype=np.object_).reshape(-1, 1)
    with pytest.raises(ValueError, match="the sample mapping"):
        unpack([made])


def test_as_many_notes_as_rows() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack(np.array([0, 1]), np.array([1, 1]), [b"one only"])


def test_origins_count_requests() -> None:
    assert Origins(np.array([0, 0, 1, 4])).count == 5
    assert Origins(np.array([], dtype=np.int64)).count == 0


# The steps


class Windowed(TextClassification):
    """Long text is several rows for the model, and its answer is the best that one of them gives. "boom" cannot be taken, and "bug"
    breaks what would take it."""

    carries_metadata: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        for row, text in enumerate(columns[0]):
            if text == "boom":
                raise ValueError(f"row {row} is boom")
            if text == "bug":
                raise RecursionError(f"in {__file__}")
        windows, owners = encoder.windows(columns[0], stride=0)
        metadata = [str(window.offsets[1]).encode() for window in windows]
        return Features(windows, Origins(owners, metadata), windows=True)

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        assert len(origins.metadata) == len(origins.sample_mapping) == len(outputs["logits"])
        firsts = np.searchsorted(origins.sample_mapping, np.arange(origins.count))
        best = np.maximum.reduceat(outputs["logits"], firsts)
        return super().postprocess({"logits": best}, Origins(np.arange(len(best))))


Steps = Callable[..., tuple[Any, Any]]
Answered = Callable[..., list[Any]]


@pytest.fixture
def steps(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Task class → both steps, ready; the model takes 8 tokens and 6 rows."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend())
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
    settings = {
        "task": "text-classification",
        "settings": TextClassification(labels=("few", "many"), function_to_apply="softmax").to_settings(),
        "max_length": 8,
        "model_inputs": ["input_ids"],
        "split_special_tokens": False,
        "max_model_rows": 6,
        "parallel": True,
    }
    (folder / "settings.json").write_text(json.dumps(settings))

    def make(task: type[TextClassification] = TextClassification) -> tuple[Any, Any]:
        for module in (row_preparation, answering):
            monkeypatch.setattr(module, "load_encoder", lambda _, given: task.from_settings(given))
        before, after = (initialized(name, tmp_path) for name in ("preprocess", "postprocess"))
        return before, after

    return make


def run_model(names: list[str], feed: Arrays) -> list[Any]:
    """What a session of the model of :func:`modelled` gives."""
    outputs = {"logits": word_logits(feed["input_ids"]), MODEL_DIGEST: feed[REQUEST_DIGEST]}
    return [outputs[name] for name in names]


@pytest.fixture(params=["ensemble", "fused"])
def answered(request: pytest.FixtureRequest, steps: Steps, tmp_path: Path) -> Answered:
    """Requests and the task class → the responses of the whole model, in each layout."""

    def answer(requests: list[Request], task: type[TextClassification] = TextClassification) -> list[Any]:
        both = steps(task)
        if request.param == "ensemble":
            return asked(both, requests)
        opened = SimpleNamespace(run=run_model)
        return list(initialized("fused", tmp_path, _open=lambda *_: opened).execute(requests))

    return answer


def text_request(*rows: str | bytes, **options: Any) -> Request:
    encoded = [row if isinstance(row, bytes) else row.encode() for row in rows]
    return Request({"TEXT": np.array(encoded, dtype=np.object_)[:, None]}, options)


def word_logits(ids: Any) -> Any:
    return np.stack([np.full(len(ids), 2.5), (ids >= 0).sum(axis=1) - 2], axis=1).astype(np.float32)


def modelled(response: Any, request: Request) -> Request:
    """A model that counts the words of each row: the second logit is their number, the first is 2.5."""
    ids = response.tensors["input_ids"]
    logits = word_logits(ids)
    around = {METADATA: response.tensors[METADATA]} if METADATA in response.tensors else {}
    return Request({"logits": logits, MODEL_DIGEST: response.tensors[REQUEST_DIGEST]} | around, request.options)


def asked(steps: tuple[Any, Any], requests: list[Request]) -> list[Any]:
    """Responses of the whole ensemble to a batch of requests."""
    before, after = steps
    responses = before.execute(requests)
    taken = [index for index, response in enumerate(responses) if response.error is None]
    for index, answer in zip(taken, after.execute([modelled(responses[i], requests[i]) for i in taken]), strict=True):
        responses[index] = answer
    return responses


def labels(response: Any) -> list[str]:
    return [label.decode() for label in response.tensors["LABEL"][:, 0]]


def test_each_request_gets_its_own_unpadded_ids(steps: Steps) -> None:
    before, _ = steps()
    responses = before.execute([text_request("good"), text_request("good film but dull", "cast"), text_request("bad " * 30)])
    shapes = [response.tensors["input_ids"].shape for response in responses]
    assert shapes == [(1, 3), (2, 6), (1, 8)]
    assert (responses[1].tensors["input_ids"] == -1).sum() == 3, "rows of one request are padded to each other"
    assert all(set(response.tensors) == {"input_ids", REQUEST_DIGEST} for response in responses), "nothing goes around this model"


def test_neighbours_of_bad_requests_are_answered(answered: Answered) -> None:
    requests = [
        text_request("good film"),
        text_request("fine", b"ab\xff"),
        text_request("good film with every scene again"),
        text_request("good", function_to_apply="relu"),
        text_request("good", colour="red"),
        text_request("bad " * 30, truncation=False),
        text_request("of course with every scene", "good"),
    ]
    responses = answered(requests)
    assert [response.error and response.error.message for response in responses] == [
        None,
        "TEXT, row 1: byte 2 is not valid UTF-8",
        None,
        "option function_to_apply must be one of softmax, sigmoid, none, not 'relu'",
        f"text-classification has no option colour; it has {', '.join(TextClassification.options)}",
        "row 0 is longer than the 8 tokens the model takes, and truncation is off",
        None,
    ]
    assert {response.error.code for response in responses if response.error} == {INVALID_ARG}
    assert [labels(responses[index]) for index in (0, 2, 6)] == [["few"], ["many"], ["many", "few"]]


def test_a_row_that_cannot_be_taken_is_counted_within_its_request(answered: Answered) -> None:
    requests = [
        text_request("good", "film", truncation=False),
        text_request("cast", "bad " * 30, truncation=False),
        text_request("dull", truncation=False),
    ]
    responses = answered(requests)
    assert [response.error and response.error.message for response in responses] == [
        None,
        "row 1 is longer than the 8 tokens the model takes, and truncation is off",
        None,
    ]
    assert [len(labels(responses[index])) for index in (0, 2)] == [2, 1]


def test_requests_of_one_batch_may_ask_for_different_things(answered: Answered) -> None:
    ways = [
        {},
        {"function_to_apply": "none"},
        {"function_to_apply": "sigmoid"},
        {},
        {"function_to_apply": "none", "truncation": True},
    ]
    texts = ["good", "bad film", "good film but", "dull", "cold cast"]
    responses = answered([text_request(text, **way) for text, way in zip(texts, ways, strict=True)])
    logits = np.array([[2.5, 1], [2.5, 2], [2.5, 3], [2.5, 1], [2.5, 2]])
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [softmax[0], logits[1], 1 / (1 + np.exp(-logits[2])), softmax[3], logits[4]]
    for response, wanted in zip(responses, expected, strict=True):
        np.testing.assert_allclose(response.tensors["SCORES"][0], wanted, rtol=1e-6)


def test_only_the_request_whose_outputs_are_no_numbers_fails(steps: Steps) -> None:
    _, after = steps()
    given = [np.array([[1, 2]], np.float32), np.array([[0, 0], [0, np.nan]], np.float32), np.array([[3, 2]], np.float32)]
    responses = after.execute([Request({"logits": logits, MODEL_DIGEST: np.zeros((len(logits), 1), np.int64)}) for logits in given])
    assert [response.error and (response.error.code, response.error.message) for response in responses] == [
        None,
        (INTERNAL, "the model gave values that are not finite for this input"),
        None,
    ]
    assert [labels(responses[index]) for index in (0, 2)] == [["many"], ["few"]]


LONG = "good film but dull cast again"
"""As many words as the model takes."""


def test_rows_that_become_several_are_answered_as_one(steps: Steps) -> None:
    requests = [
        text_request("good"),
        text_request(f"{LONG} {LONG} cold", "good film", f"{LONG} bad"),
        text_request("boom"),
        text_request("", f"{LONG} {LONG}", function_to_apply="none"),
        text_request("bad cast", function_to_apply="none"),
    ]
    before, after = steps(Windowed)
    responses = before.execute(requests)
    rows = [response.tensors["input_ids"].shape[0] if response.error is None else 0 for response in responses]
    assert rows == [1, 6, 0, 3, 1]
    unpacked = unpack([responses[1].tensors[METADATA]])
    assert (unpacked.origins.sample_mapping.tolist(), unpacked.request_rows) == ([0, 0, 0, 1, 2, 2], [3])
    assert unpacked.origins.metadata[1] == str((len(LONG) + 1, len(LONG) + 5)).encode(), "where the second window begins"
    answers = asked((before, after), requests)
    assert [response.error and response.error.message for response in answers] == [None, None, "row 0 is boom", None, None]
    assert [labels(answers[index]) for index in (0, 1, 3, 4)] == [["few"], ["many", "few", "many"], ["few", "many"], ["few"]]
    np.testing.assert_allclose(answers[3].tensors["SCORES"], [[2.5, 0], [2.5, 6]])
    np.testing.assert_allclose(answers[4].tensors["SCORES"], [[2.5, 2]])


def test_a_request_that_makes_too_many_rows_is_refused_alone(answered: Answered) -> None:
    requests = [text_request("good"), text_request(*[f"{LONG} cold"] * 3, "film"), text_request(*[f"{LONG} cold"] * 3)]
    responses = answered(requests, Windowed)
    assert responses[1].error.code == INVALID_ARG
    assert responses[1].error.message == (
        "this request makes 7 rows for the model, which takes 6 at most: send fewer rows at once, or shorter ones"
    )
    assert [labels(responses[index]) for index in (0, 2)] == [["few"], ["many"] * 3], "six rows are not too many"


def test_whoever_breaks_a_step_is_refused_alone_and_not_told_how(steps: Steps) -> None:
    texts = ["good", "bug", "boom", "bad cast"]
    before, after = steps(Windowed)
    responses = before.execute([text_request(text) for text in texts])
    assert [response.error and (response.error.code, response.error.message) for response in responses] == [
        None,
        (INTERNAL, "this request could not be prepared"),
        (INVALID_ARG, "row 0 is boom"),
        None,
    ]
    good = [modelled(responses[index], text_request(texts[index])) for index in (0, 3)]
    forged = [
        Request(good[0].tensors | {METADATA: np.array([[note]], dtype=np.object_)})
        for note in (b"", b"\xff\xff\xff\x7f", struct.pack("<iq", 1, 0))
    ]
    answers = after.execute([good[0], *forged, good[1]])
    told = (INTERNAL, "the answer could not be made of what the model gave")
    assert [answer.error and (answer.error.code, answer.error.message) for answer in answers] == [None, told, told, told, None]


def test_parameters_are_read_once_unless_they_are_long(steps: Steps) -> None:
    """Clients choose them: what is kept of them is bounded."""
    before, after = steps()
    for step in (before._preparation, after._answering):
        short, long = json.dumps({"top_k": 1}), json.dumps({"top_k": 1}) + " " * 5000
        assert step.with_parameters(short) is step.with_parameters(short)
        assert step.with_parameters(long) is not step.with_parameters(long)
        assert step.with_parameters(long) == step.with_parameters(short)
        assert step.with_parameters("") is step.task


def test_defaults_that_no_request_could_ask_for_stop_the_step(steps: Steps) -> None:
    class Refusing(TextClassification):
        def check_options(self) -> None:
            raise ValueError("option top_k must be less")

    with pytest.raises(ValueError, match="option top_k must be less"):
        steps(Refusing)


# The digest


def digests(*rows: str | bytes) -> list[list[int]]:
    """What the ensemble says of such rows."""
    return [[expected_digest({"TEXT": row if isinstance(row, bytes) else row.encode()})] for row in rows]


def test_every_answer_says_of_which_text_it_is(answered: Answered) -> None:
    rows = [("good", "bad film", "good"), ("é",), (f"{LONG} cold",), ("bad", b"ab\xff"), ("",)]
    for task in (TextClassification, Windowed):
        responses = answered([text_request(*row) for row in rows], task)
        assert [response.error is None for response in responses] == [True, True, True, False, True]
        for row, response in zip(rows, responses, strict=True):
            if response.error is None:
                assert response.tensors[DIGEST].dtype == np.int64
                assert response.tensors[DIGEST].tolist() == digests(*row)


def test_the_model_gets_the_digest_of_the_bytes_for_each_of_its_rows(steps: Steps) -> None:
    before, _ = steps(Windowed)
    alone, several = before.execute([text_request("good"), text_request(f"{LONG} {LONG} cold", "film")])
    assert alone.tensors[REQUEST_DIGEST].tolist() == digests("good")
    assert several.tensors[REQUEST_DIGEST].tolist() == digests(*[f"{LONG} {LONG} cold"] * 3, "film")


FOREIGN = (INTERNAL, "the answer belongs to another request")
MIXED = (("good",), (f"{LONG} cold", "bad"), ("film", f"{LONG} bad"), ("bad cast",))


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("source", range(4))
def test_an_old_reply_of_the_model_is_no_answer(steps: Steps, victim: int, source: int) -> None:
    """Its metadata went around the model, so one reply can be old and the other not."""
    before, after = steps(Windowed)
    requests = [text_request(*rows) for rows in MIXED]
    ready = [modelled(response, request) for response, request in zip(before.execute(requests), requests, strict=True)]
    stale = {name: ready[source].tensors[name] for name in ("logits", MODEL_DIGEST)}
    given = [Request(one.tensors | (stale if index == victim else {})) for index, one in enumerate(ready)]
    for index, (rows, answer) in enumerate(zip(MIXED, after.execute(given), strict=True)):
        if index == victim != source:
            assert (answer.error.code, answer.error.message) == FOREIGN
        else:
            assert answer.error is None and answer.tensors[DIGEST].tolist() == digests(*rows)
            assert labels(answer) == ["many" if "cold" in row or ("bad" in row and len(row) > 9) else "few" for row in rows]


def test_two_replies_that_are_swapped_are_both_no_answers(steps: Steps) -> None:
    """Of as many rows as the right ones, so that nothing but the digest can tell."""
    before, after = steps(Windowed)
    requests = [text_request(text) for text in ("good", "bad", "film")]
    ready = [modelled(response, request) for response, request in zip(before.execute(requests), requests, strict=True)]
    metadata = [one.tensors[METADATA] for one in ready]
    given = [Request(one.tensors | {METADATA: metadata[place]}) for one, place in zip(ready, (1, 0, 2), strict=True)]
    answers = after.execute(given)
    assert [answer.error and (answer.error.code, answer.error.message) for answer in answers] == [FOREIGN, FOREIGN, None]
    assert answers[2].tensors[DIGEST].tolist() == digests("film")


def test_model_rows_of_one_row_have_one_digest(steps: Steps) -> None:
    _, after = steps(Windowed)
    logits = np.ones((2, 2), np.float32)

    def forged(*found: int) -> Request:
        column = np.array(found)
        return Request({"logits": logits, MODEL_DIGEST: column[:, None], METADATA: pack(np.array([0, 0]), column, [b"0", b"1"])})

    answers = after.execute([forged(3, 3), forged(3, 4), forged(5, 5)])
    assert [answer.error and (answer.error.code, answer.error.message) for answer in answers] == [None, FOREIGN, None]


# Panics of the tokenizer


def panicking(folder: Path) -> None:
    """Replace the tokenizer by one whose expression backtracks without end on a row of x."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = Sequence([Split(Regex("(x+x+)+y"), "isolated"), tokenizer.pre_tokenizer])
    tokenizer.save(str(folder / "tokenizer.json"))


PANIC = "x" * 40


@pytest.mark.parametrize("task", [TextClassification, Windowed])
def test_a_panic_of_the_tokenizer_refuses_its_own_request_alone(
    steps: Steps, tmp_path: Path, task: type[TextClassification], monkeypatch: pytest.MonkeyPatch
) -> None:
    panicking(tmp_path / "1")
    both = steps(task)
    with pytest.raises(BaseException, match="Onig") as caught:
        both[0]._preparation._encoder.encode([PANIC])
    assert not isinstance(caught.value, Exception), "what a panic is"
    logged: list[str] = []
    monkeypatch.setattr(sys.modules["triton_python_backend_utils"].Logger, "log_error", logged.append)
    rows = [("good film",), ("bad", PANIC), (f"{LONG} cold",), ("film",)]
    answers = asked(both, [text_request(*row) for row in rows])
    refused = (INTERNAL, "this request could not be prepared")
    assert [answer.error and (answer.error.code, answer.error.message) for answer in answers] == [None, refused, None, None]
    assert [answers[index].tensors[DIGEST].tolist() for index in (0, 2, 3)] == [digests(*rows[index]) for index in (0, 2, 3)]
    assert len(logged) == 1 and "retry-limit-in-match" in logged[0], "the log says why"
    again = asked(both, [text_request("film " * 30)])
    assert again[0].error is None, "it cuts as before"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_is_no_panic(steps: Steps, stop: type[BaseException]) -> None:
    class Ending(TextClassification):
        def preprocess(self, *_: Any) -> Features:
            raise stop

        def postprocess(self, *_: Any) -> Arrays:
            raise stop

    before, after = steps(Ending)
    with pytest.raises(stop):
        before.execute([text_request("good"), text_request("bad")])
    with pytest.raises(stop):
        after.execute([Request({"logits": np.ones((1, 2), np.float32), MODEL_DIGEST: np.zeros((1, 1), np.int64)})] * 2)


def test_a_panic_of_the_last_step_refuses_its_own_request_alone(steps: Steps) -> None:
    class Decoding(TextClassification):
        def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
            if (outputs["logits"] == 7).any():
                provoke_panic()
            return super().postprocess(outputs, origins)

    _, after = steps(Decoding)
    given = [Request({"logits": np.full((1, 2), value, np.float32), MODEL_DIGEST: np.array([[value]])}) for value in (1, 7, 2)]
    answers = after.execute(given)
    refused = (INTERNAL, "the answer could not be made of what the model gave")
    assert [answer.error and (answer.error.code, answer.error.message) for answer in answers] == [None, refused, None]
    assert [answers[index].tensors[DIGEST].tolist() for index in (0, 2)] == [[[1]], [[2]]]


def provoke_panic() -> None:
    """By an expression that backtracks without end."""
    Split(Regex("(x+x+)+y"), "isolated").pre_tokenize_str(PANIC)
