"""Question answering through a real server, against ``transformers.pipeline`` on the same checkpoint."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import evaluate
import pytest

from export.cli import main
from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.connection import Connection
from serving.errors import InvalidArgumentError, RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers import answering
from tests.helpers.digests import assert_digests_are_right
from tests.helpers.parity import assert_same
from tests.helpers.servers import running, serve_options

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
    pytest.mark.filterwarnings("ignore:Passing a list of SQuAD examples:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
ROW = {"question": answering.QUESTION, "context": "of course the film was superb and moving and every scene was a delight"}


def url(server: ServeOptions, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.base_url.removeprefix("http://")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOptions]:
    """The tiny model, ragged and alone."""
    repository = tmp_path_factory.mktemp("answering") / "model_repository"
    for batching in ("ragged", "off"):
        package(
            PackageOptions(
                bundle=answering.bundle(), repository=repository, name=batching, precision="fp32", device="cpu", batching=batching
            )
        )
    with running(serve_options(repository)) as options:
        yield options


@pytest.fixture(scope="module")
def pipe(server: ServeOptions) -> Iterator[TritonPipeline]:
    with TritonPipeline("ragged", url=url(server, "grpc")) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pipeline() -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)  # the server wants the other core
    found = transformers.pipeline("question-answering", model=str(answering.trained()), tokenizer=str(answering.trained()))
    found.tokenizer.model_max_length = answering.LONGEST
    return found


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Of one window and of several, in all scripts."""
    long = [{"question": answering.QUESTION, "context": row["context"] + " the film" * 400} for row in answering.texts(3, seed=8)]
    strange = [{"question": "is the film [CLS]", "context": text} for text in answering.STRANGE_TEXTS]
    return [*answering.texts(30, seed=7), *long, *strange]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ragged", "off"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_equals_the_pipeline(
    server: ServeOptions, pipeline: Any, rows: list[dict[str, str]], name: str, protocol: str, batch_size: int
) -> None:
    with TritonPipeline(name, url=url(server, protocol), protocol=protocol, batch_size=batch_size) as pipe:  # type: ignore[arg-type]
        assert_same(pipe(rows), pipeline(rows))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 3},
        {"top_k": 1, "max_answer_len": 1},
        {"doc_stride": 8, "max_seq_len": 24, "handle_impossible_answer": True, "top_k": 2},
        {"align_to_words": False, "max_question_len": 2},
        {"top_k": None, "doc_stride": None},
    ],
    ids=str,
)
def test_options(server: ServeOptions, pipeline: Any, given: dict[str, Any], protocol: str) -> None:
    rows = [row for row in answering.texts(12, seed=9) if len(row["context"].split()) > 6]
    with TritonPipeline("ragged", url=url(server, protocol), protocol=protocol) as pipe:  # type: ignore[arg-type]
        assert_same(pipe(rows, **given), pipeline(rows, **given))


QUESTION, CONTEXT = ROW["question"], ROW["context"]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ((), ROW),
        ((), {**ROW, "top_k": 2}),
        ((), {"question": [QUESTION, "is it"], "context": CONTEXT}),
        ((), {"question": [QUESTION, "is it"], "context": [CONTEXT, "the film was superb"]}),
        ((), {"question": [QUESTION], "context": [CONTEXT]}),
        ((QUESTION, CONTEXT), {}),
        ((ROW,), {}),
        ((ROW, ROW), {}),
        (([ROW],), {"top_k": 2}),
        (([ROW, ROW],), {"top_k": 2}),
        (({"question": [QUESTION], "context": [CONTEXT]},), {}),
        (({"question": [QUESTION, "is it"], "context": [CONTEXT, CONTEXT]},), {}),
        (([],), {}),
    ],
    ids=str,
)
def test_forms_of_calls(pipe: TritonPipeline, pipeline: Any, arguments: Any, given: Any) -> None:
    assert_same(pipe(*arguments, **given), pipeline(*arguments, **given))


def test_squad_examples_and_streams(pipe: TritonPipeline, pipeline: Any) -> None:
    from transformers import SquadExample

    example = SquadExample(None, QUESTION, CONTEXT, None, None, None)
    expected = pipeline([example])
    assert_same(pipe([example]), expected)
    assert_same(list(pipe.stream([example, ROW, ROW])), [expected] * 3)


@pytest.mark.parametrize(("question", "context"), [("", "b"), ("a", "")])
def test_empty_texts_are_refused_as_the_pipeline_does_and_answered_by_the_server(
    pipe: TritonPipeline, pipeline: Any, question: str, context: str
) -> None:
    for one in (pipe, pipeline):
        with pytest.raises(ValueError, match="cannot be empty"):
            one(question=question, context=context)
    (answer,) = pipe.tensors([(question, context)])
    assert answer["ANSWER"].item().decode() == context


def test_a_document_of_ten_thousand_words(pipe: TritonPipeline, pipeline: Any) -> None:
    choose = random.Random(1)
    words = [choose.choice(("the", "film", "was", "this", "story", "café")) for _ in range(10_000)]
    words[6_000] = "superb"
    document = {"question": answering.QUESTION, "context": " ".join(words)}
    found = pipe(**document)
    assert found["answer"] == "superb"
    assert_same(found, pipeline(**document))


def infer(server: ServeOptions, rows: list[tuple[bytes, bytes]], options: dict[str, Any] | None = None) -> Any:
    async def ask() -> Any:
        connection = Connection(url(server, "grpc"), protocol="grpc", concurrency=1, timeout=60, retries=0)
        try:
            columns = {"QUESTION": [row[0] for row in rows], "CONTEXT": [row[1] for row in rows]}
            return await connection.infer("ragged", columns, options or {})
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_every_answer_says_whose_it_is(server: ServeOptions) -> None:
    """Texts of one window and of several; the same text of another question."""
    contexts = [*answering.STRANGE_TEXTS[:4], CONTEXT + " the film" * 700, CONTEXT]
    rows = [{"QUESTION": QUESTION, "CONTEXT": context} for context in contexts]
    assert_digests_are_right(server, ["ragged", "off"], [*rows, {"QUESTION": "film", "CONTEXT": CONTEXT}])


def test_tensors(server: ServeOptions, pipeline: Any) -> None:
    texts = [(QUESTION.encode(), CONTEXT.encode()), (b"film", "한국어 🎬 superb".encode())]
    found = infer(server, texts, {"top_k": 2})
    for row, (question, context) in enumerate(texts):
        best, second = pipeline(question=question.decode(), context=context.decode(), top_k=2)
        assert found.as_numpy("ANSWER")[row, 0].decode() == best["answer"]
        assert found.as_numpy("SCORE")[row, 0] == pytest.approx(best["score"], abs=1e-3)
        assert (found.as_numpy("START")[row, 0], found.as_numpy("END")[row, 0]) == (best["start"], best["end"])
        assert_same(json.loads(found.as_numpy("ANSWERS")[row, 0]), [best, second])
    types = {name: found.as_numpy(name).dtype.name for name in ("SCORE", "START", "END")}
    assert types == {"SCORE": "float32", "START": "int64", "END": "int64"}
    assert found.as_numpy("ANSWER").shape == found.as_numpy("END").shape == (2, 1)


@pytest.mark.parametrize(
    ("question", "context", "options", "message"),
    [
        (b"is it", b"caf\xe9", {}, "CONTEXT, row 1: byte 3 is not valid UTF-8"),
        (b"\xff", b"the film", {}, "QUESTION, row 1: byte 0 is not valid UTF-8"),
        (b"the film " * 500, b"superb", {}, "row 1: a window of 384 tokens has no room for the question, 128 tokens of overlap"),
        (b"is it", b"superb", {"top_k": 0}, "option top_k must be 1 or more, not 0"),
        (b"is it", b"superb", {"top_k": "3"}, "option top_k must be a whole number, not '3'"),
        (b"is it", b"superb", {"max_seq_len": 600}, "max_seq_len is 600, and the model takes 512 tokens at most"),
        (b"is it", b"superb", {"doc_stride": 400}, "doc_stride (400) is larger than max_seq_len (384)"),
        (b"is it", b"superb", {"threshold": 0.5}, "question-answering has no option threshold; it has top_k, doc_stride"),
        (b"is it", b"the film " * 9000, {"max_seq_len": 32}, "rows for the model, which takes 256 at most: send shorter text"),
    ],
)
def test_bad_input_is_refused_in_words(
    server: ServeOptions, question: bytes, context: bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        infer(server, [(b"is it", b"fine"), (question, context)], options)
    assert refusal.value.status == "INVALID_ARGUMENT"
    assert message in str(refusal.value)
    assert "Traceback" not in str(refusal.value) and "/" not in str(refusal.value)


def test_neighbours_of_bad_requests_are_answered(server: ServeOptions, pipeline: Any, rows: list[dict[str, str]]) -> None:
    """Short and long, with options and without, good and bad, all at once."""
    bad = {"question": "the film " * 500, "context": "superb"}

    async def ask() -> list[Any]:
        async with AsyncTritonPipeline("ragged", url=url(server, "grpc")) as pipe:
            calls = [call for row in rows[20:40] for call in (pipe(row), pipe(bad), pipe(row, max_answer_len=2))]
            return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(ask())
    assert_same(found[::3], [pipeline(row) for row in rows[20:40]])
    assert_same(found[2::3], [pipeline(row, max_answer_len=2) for row in rows[20:40]])
    assert {type(error) for error in found[1::3]} == {InvalidArgumentError}


def test_predict(server: ServeOptions, pipeline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["predict", "ragged", "--url", url(server, "grpc")]
    assert main([*ask, "--json", json.dumps(ROW)]) == 0
    assert_same(json.loads(capsys.readouterr().out), pipeline(**ROW))
    assert main([*ask, CONTEXT]) == 1
    error = capsys.readouterr().err
    assert "text 1 is not JSON" in error and 'write {"question": "…", "context": "…"}' in error
    files = ["--input", str(answering.write(tmp_path / "rows.jsonl", answering.rows(5, seed=3))), "--output", str(tmp_path / "out")]
    assert main([*ask, *files]) == 0
    answered = [json.loads(line) for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines()]
    assert [list(line) for line in answered] == [["question", "context", "answers", "answer"]] * 5
    assert_same([line["answer"] for line in answered], pipeline(answering.texts(5, seed=3)))


def test_empty_texts_are_refused_except_in_a_generator(pipe: TritonPipeline, pipeline: Any) -> None:
    rows = [{"question": "", "context": ROW["context"]}, {"question": ROW["question"], "context": ""}]
    for row in rows:
        for ask in (pipe, pipeline):
            with pytest.raises(ValueError, match="cannot be empty"):
                ask(row)
    for answers in (pipe(row for row in rows), pipe.stream(rows)):
        assert_same(list(answers), list(pipeline(row for row in rows)))


class Exact(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """What SQuAD's own, which is on the Hub, calls exact match."""

    def _info(self) -> evaluate.MetricInfo:
        answers = datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})
        text = datasets.Value("string")
        features = {"predictions": {"id": text, "prediction_text": text}, "references": {"id": text, "answers": answers}}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"exact": sum(one["prediction_text"] in other["answers"]["text"] for one, other in pairs) / len(predictions)}


def test_an_evaluator_finds_the_same_metric_as_with_the_pipeline(pipe: TritonPipeline, pipeline: Any) -> None:
    texts = answering.texts(20, seed=9)
    answers = [pipeline(**row)["answer"] for row in texts[:10]] + ["no such words"] * 10
    data = datasets.Dataset.from_list(
        [
            {**row, "id": str(number), "answers": {"text": [answer], "answer_start": [0]}}
            for number, (row, answer) in enumerate(zip(texts, answers, strict=True))
        ]
    )
    arguments = {"data": data, "metric": Exact(), "squad_v2_format": False}
    served, original = (
        evaluate.evaluator("question-answering").compute(model_or_pipeline=each, **arguments) for each in (pipe, pipeline)
    )
    assert served["exact"] == original["exact"] == 0.5
