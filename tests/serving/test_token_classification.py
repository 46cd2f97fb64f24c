"""Token classification through a real server, held against ``transformers.pipeline``."""

from __future__ import annotations

import asyncio
import json
import random
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
from tritonclient import grpc, http

from export.cli import main
from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.digests import assert_digests_are_right
from tests.helpers.exporting import export_bundle
from tests.helpers.parity import assert_same
from tests.helpers.servers import running, serve_options
from tests.helpers.tagging import LABELS, STRATEGIES, TEXTS, tiny_tagger

pytestmark = pytest.mark.server
WORDS = [
    *["the", "film", "and", "this", "story", "its", "cast", "is", "a", "delight"],
    "xylophone",
    "unbelievably",
    "(good)",
    "café",
]


@dataclass(frozen=True, kw_only=True)
class Taggers:
    """A server with the tagger packaged ``ragged`` and ``off``, and the pipeline."""

    options: ServeOptions
    pipeline: Any

    def url(self, protocol: str) -> str:
        return self.options.grpc_url if protocol == "grpc" else self.options.base_url.removeprefix("http://")

    def open(self, name: str = "ragged", protocol: str = "grpc", **arguments: Any) -> TritonPipeline:
        return TritonPipeline(name, url=self.url(protocol), protocol=protocol, **arguments)

    def wanted(self, texts: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.pipeline(texts, **options)


@pytest.fixture(scope="module")
def taggers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taggers]:
    import torch
    from transformers import pipeline

    folder = tmp_path_factory.mktemp("tagger")
    checkpoint = tiny_tagger(folder / "roberta", "roberta")
    choose = random.Random(1)
    rows = [[choose.choice(WORDS) for _ in range(choose.randint(1, 30))] for _ in range(70)]
    sentences = ["".join(f"{word} {choose.choice(LABELS)}\n" for word in row) for row in rows]
    (folder / "rows.txt").write_text("\n".join(sentences), encoding="utf-8")
    only = ("--task", "token-classification", "--precision", "fp32", "--max-length", "64")
    bundle = export_bundle(folder, checkpoint, folder / "rows.txt", *only)
    repository = folder / "model_repository"
    for batching in ("ragged", "off"):
        plan = {"device": "cpu", "batching": batching, "precision": "fp32"}
        package(PackageOptions(name=batching, repository=repository, bundle=bundle, max_batch_size=8, **plan))
    torch.set_num_threads(1)  # the server wants the other core
    with running(serve_options(repository)) as served:
        yield Taggers(options=served, pipeline=pipeline("token-classification", model=str(checkpoint), device="cpu"))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ragged", "off"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_the_pipeline(taggers: Taggers, name: str, protocol: str, strategy: str) -> None:
    options = {"aggregation_strategy": strategy, "ignore_labels": ["O", "film"]}
    with taggers.open(name, protocol) as pipe:
        assert_same(pipe(TEXTS, **options), taggers.wanted(TEXTS, **options))


@pytest.mark.parametrize("inputs", ["the film", ["the film"], ["the film", "", "a delight"], ""])
@pytest.mark.parametrize("options", [{}, {"grouped_entities": True}, {"stride": 3}, {"ignore_labels": []}])
def test_gives_the_same_structure(taggers: Taggers, inputs: Any, options: dict[str, Any]) -> None:
    with taggers.open() as pipe:
        ours, theirs = pipe(inputs, **options), taggers.wanted(inputs, **options)
    assert_same(*((ours, theirs) if isinstance(inputs, list) else ([ours], [theirs])))


def test_long_documents_are_read_in_windows_or_cut(taggers: Taggers) -> None:
    text = " ".join(random.Random(2).choices(WORDS, k=400))
    with taggers.open() as pipe:
        for options in ({"aggregation_strategy": "first"}, {"aggregation_strategy": "first", "stride": 16}):
            ours = pipe(text, **options)
            assert_same([ours], [taggers.wanted(text, **options)])
        assert ours[-1]["end"] > len(text) / 2
        assert pipe("the film " * 20_000) == pipe("the film " * 1000)


def test_every_answer_says_whose_it_is(taggers: Taggers) -> None:
    """Read in one window, and in several."""
    rows = [{"TEXT": text} for text in TEXTS[:7]] + [{"TEXT": TEXTS[0] * 8}]
    for parameters in (None, {"stride": 4}):
        assert_digests_are_right(taggers.options, ["ragged", "off"], rows, parameters)


def test_a_document_of_too_many_windows_is_refused_alone(taggers: Taggers) -> None:
    with taggers.open(concurrency=8) as pipe:
        with pytest.raises(RequestError, match=r"makes \d+ or more rows for the model, which takes 32 at most") as caught:
            pipe("the film " * 2000, stride=10)
        assert caught.value.status == "INVALID_ARGUMENT"
        assert pipe("the film", stride=10)


def test_requests_of_all_kinds_at_once(taggers: Taggers) -> None:
    """What differs in length, rows and options shares the server's batches and gets what it gets alone."""
    asked = [{"aggregation_strategy": strategy} for strategy in STRATEGIES] + [{"aggregation_strategy": "max", "stride": 9}]
    jobs = [(TEXTS[at % len(TEXTS) :][: 1 + at % 3], asked[at % len(asked)]) for at in range(60)]
    expected = [taggers.wanted(texts, **options) for texts, options in jobs]

    async def ask() -> list[Any]:
        async with AsyncTritonPipeline("ragged", url=taggers.url("grpc"), batch_size=3) as pipe:
            return list(await asyncio.gather(*(pipe(texts, **options) for texts, options in jobs)))

    for ours, theirs in zip(asyncio.run(ask()), expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation_strategy": "best"}, "option aggregation_strategy must be one of none, simple"),
        ({"ignore_labels": "[1]"}, "option ignore_labels must be a JSON list of strings"),
        ({"stride": 62}, "has no room for new text beside 62 tokens"),
        ({"stride": "4"}, "option stride must be a whole number"),
        ({"truncation": False}, "row 0 is longer than the 64 tokens"),
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_bad_options_are_refused_alone(taggers: Taggers, protocol: str, options: dict[str, Any], message: str) -> None:
    module: Any = grpc if protocol == "grpc" else http
    text = "the film " * 100

    def ask(parameters: dict[str, Any]) -> Any:
        with module.InferenceServerClient(taggers.url(protocol)) as client:
            tensor = module.InferInput("TEXT", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
            try:
                return client.infer("ragged", [tensor], parameters=parameters).as_numpy("ENTITIES")
            except module.InferenceServerException as error:
                return error

    with ThreadPoolExecutor(4) as pool:
        bad, *good = pool.map(ask, [options, {}, {"aggregation_strategy": "simple"}, {}])
    assert message in bad.message()
    assert "Traceback" not in bad.message()
    assert bad.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    for answer in good:  # and who asks for nothing gets entities
        assert_same([json.loads(answer[0, 0])], [taggers.wanted(text, aggregation_strategy="simple")])


def test_calls_that_the_pipeline_refuses(taggers: Taggers) -> None:
    with taggers.open() as pipe:
        with pytest.raises(ValueError, match="at least one input"):
            pipe([])
        with pytest.raises(ValueError, match="stride needs"):
            pipe("the film", aggregation_strategy="none", stride=3)
        for options in ({"top_k": 1}, {"stride": "4"}):
            with pytest.raises(TypeError, match="option"):
                pipe("the film", **options)
        with pytest.raises(KeyError, match="option"):
            pipe("the film", aggregation_strategy="best")
        with pytest.raises(ValueError, match="each row must be a string"):
            pipe([["the", "film"]])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_texts_that_are_words_already(taggers: Taggers, protocol: str) -> None:
    words = [["the", "film", "(café)"], ["a", "delight"] * 60]
    for options in ({}, {"aggregation_strategy": "first", "delimiter": "_"}):
        with taggers.open("ragged", protocol, batch_size=2) as pipe:
            assert_same(
                pipe(words, is_split_into_words=True, **options), taggers.wanted(words, is_split_into_words=True, **options)
            )


class Words(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """The share of right words, in the form in which seqeval, which is on the Hub, takes them."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("string"))
        features = datasets.Features({"predictions": row, "references": row})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        found, wanted = ([label for row in side for label in row] for side in (predictions, references))
        return {"right": sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)}


def test_an_evaluator_finds_the_same_metric_as_with_the_pipeline(taggers: Taggers) -> None:
    choose = random.Random(5)
    # without spaces, as the evaluator fails where a tokenizer's words begin with them, whoever answers
    rows = [[word for _ in range(choose.randint(1, 6)) for word in (choose.choice(WORDS[:10]), ",")] for _ in range(20)]
    data = datasets.Dataset.from_list([{"tokens": row, "ner_tags": [choose.choice(LABELS) for _ in row]} for row in rows])
    evaluator = evaluate.evaluator("token-classification")
    with taggers.open() as pipe:
        served = evaluator.compute(model_or_pipeline=pipe, data=data, metric=Words(), join_by="")
    original = evaluator.compute(model_or_pipeline=taggers.pipeline, data=data, metric=Words(), join_by="")
    assert served["right"] == original["right"] > 0


def test_a_conll_file_is_answered_with_all_of_its_columns(
    taggers: Taggers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.txt").write_text("the DT O\nfilm NN B-X\n\ncafé NN O\n", encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    files = ["--input", str(tmp_path / "rows.txt"), "--columns", "tokens,pos,ner", "--output", str(output)]
    ask = ["predict", "ragged", "--url", taggers.url("grpc"), *files, "--option", "ignore_labels=[]"]
    assert main([*ask, "--option", "aggregation_strategy=some"]) == 2
    assert "aggregation_strategy must be one of none, simple" in capsys.readouterr().err.replace("\n", " ")
    assert not output.exists()
    assert main([*ask, "--option", "aggregation_strategy=first"]) == 0
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    answers = [row.pop("answer") for row in found]
    assert found == [
        {"tokens": ["the", "film"], "pos": ["DT", "NN"], "ner": ["O", "B-X"]},
        {"tokens": ["café"], "pos": ["NN"], "ner": ["O"]},
    ]
    with taggers.open() as pipe:
        assert answers == pipe(["the film", "café"], ignore_labels=[], aggregation_strategy="first")
