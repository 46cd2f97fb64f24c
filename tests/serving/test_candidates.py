"""Zero-shot classification and multiple choice on the real server: requests that bring candidates, each of which is a model row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from export.cli import main
from export.tasks.multiple_choice import MultipleChoiceTask
from export.tasks.zero_shot_classification import ZeroShotClassificationTask
from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.digests import assert_digests_are_right
from tests.helpers.graphs import MAX_LENGTH, random_checkpoint
from tests.helpers.parity import assert_same
from tests.helpers.servers import STRANGE_TEXTS, running, serve_options

pytestmark = pytest.mark.server
NLI = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
LABELS = ["good", "dull story", "한국어", "a mess"]
MOST = 8


@dataclass(frozen=True, kw_only=True)
class Served:
    options: ServeOptions
    zero_shot: Path
    choice: Path

    def pipe(self, name: str, protocol: str = "grpc", **arguments: Any) -> TritonPipeline:
        url = self.options.grpc_url if protocol == "grpc" else self.options.base_url.removeprefix("http://")
        return TritonPipeline(name, url=url, protocol=protocol, **arguments)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One model of each task, with ragged batching; the first also without batching."""
    folder = tmp_path_factory.mktemp("candidates")
    zero_shot = random_checkpoint(folder / "nli", "bert", ZeroShotClassificationTask, **NLI)
    choice = random_checkpoint(folder / "choices", "bert", MultipleChoiceTask)
    named = [{"text": f"the film is {word}", "label": word} for word in ("good", "bad")] * 8
    chosen = [{"text": "the film is", "choices": ["good", "bad", "cold"][: 2 + place % 2], "label": 0} for place in range(16)]
    for name, checkpoint, task, rows in (
        ("zero", zero_shot, ZeroShotClassificationTask, named),
        ("choice", choice, MultipleChoiceTask, chosen),
    ):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        arguments = ["--name", name, "--artifacts", str(folder), "--checkpoint", str(checkpoint), "--test", str(file)]
        assert main(["export", *arguments, "--task", task.name, "--precision", "fp32", "--max-metric-drop", "100"]) == 0
    for name, bundle, batching in (("zero", "zero", "ragged"), ("alone", "zero", "off"), ("choice", "choice", "ragged")):
        package(
            PackageOptions(
                name=name,
                repository=folder / "models",
                bundle=folder / bundle / "bundle",
                precision="fp32",
                device="cpu",
                batching=batching,
                max_batch_size=MOST,
            )
        )
    with running(serve_options(folder / "models")) as options:
        yield Served(options=options, zero_shot=zero_shot, choice=choice)


@pytest.fixture(scope="module")
def pipeline(served: Served) -> Any:
    pipe = transformers.pipeline(
        "zero-shot-classification", model=str(served.zero_shot), tokenizer=str(served.zero_shot), device="cpu"
    )
    pipe.tokenizer.model_max_length = MAX_LENGTH
    return pipe


@pytest.mark.parametrize("name", ["zero", "alone"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_are_the_pipelines(served: Served, pipeline: Any, name: str, protocol: str) -> None:
    texts = [text for text in STRANGE_TEXTS if text]  # the pipeline takes no empty one
    with served.pipe(name, protocol) as pipe:
        assert_same(pipe(texts, LABELS), pipeline(texts, LABELS))
        assert_same(pipe("a mess", "good, bad"), pipeline("a mess", "good, bad"))
        assert_same(pipe(["a mess"], ["good"]), pipeline(["a mess"], ["good"]))
        asked = {"multi_label": True, "hypothesis_template": "it is {}"}
        assert_same(pipe(texts, LABELS, **asked), pipeline(texts, LABELS, **asked))
        assert [row["labels"] for row in pipe.stream(texts, candidate_labels=LABELS)] == [
            row["labels"] for row in pipeline(texts, LABELS)
        ]


def test_many_requests_of_unlike_rows_labels_and_options(served: Served, pipeline: Any) -> None:
    """At once, so that they share executions; none gets another's labels."""
    calls = [
        (["word " * (1 + place * 7 % 50)] * (1 + place % 3), LABELS[: 1 + place % 4], {"multi_label": place % 5 == 0})
        for place in range(40)
    ]

    async def ask() -> list[Any]:
        async with AsyncTritonPipeline("zero", url=served.options.grpc_url, batch_size=3) as pipe:
            return await asyncio.gather(*(pipe(texts, labels, **options) for texts, labels, options in calls))

    for answer, (texts, labels, options) in zip(asyncio.run(ask()), calls, strict=True):
        assert_same(answer, pipeline(texts, labels, **options))


BAD: list[str | bytes] = ["", "[]", '["a"', "{}", '["a", 1]', b"\xff", '["\\ud800"]', json.dumps(["a"] * (4 * MOST + 1))]


def status_and_answer(client: Any, name: str, output: str, tensors: dict[str, bytes], **parameters: Any) -> tuple[str, Any]:
    inputs = [grpcclient.InferInput(key, [1, 1], "BYTES") for key in tensors]
    for tensor, value in zip(inputs, tensors.values(), strict=True):
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
    try:
        return "ok", client.infer(name, inputs, parameters=parameters).as_numpy(output).tolist()
    except InferenceServerException as error:
        return str(error.status()), error.message()


@pytest.mark.parametrize(("name", "key", "output"), [("zero", "CANDIDATE_LABELS", "LABELS"), ("choice", "CHOICES", "CHOICE")])
def test_bad_candidates_are_refused_and_their_neighbours_answered(served: Served, name: str, key: str, output: str) -> None:
    good = b'["good", "bad"]'
    given = [one if isinstance(one, bytes) else one.encode() for bad in BAD for one in (bad, good)]
    with grpcclient.InferenceServerClient(served.options.grpc_url) as client, ThreadPoolExecutor(len(given)) as pool:
        wanted = status_and_answer(client, name, output, {"TEXT": b"a film", key: good})
        assert wanted[0] == "ok"
        found = list(pool.map(lambda one: status_and_answer(client, name, output, {"TEXT": b"a film", key: one}), given))
    for one, (status, answer) in zip(given, found, strict=True):
        if one == good:
            assert (status, answer) == wanted
        else:
            assert status == "StatusCode.INVALID_ARGUMENT"
            assert "Traceback" not in answer


def test_every_answer_says_whose_it_is(served: Served) -> None:
    """Rows of one candidate and of many; what differs is the text, or only a candidate."""
    lists = [json.dumps(LABELS[: 1 + place % 4]) for place in range(6)]
    texts = ["a mess", "a mess", "한국어", "", "word " * 80, "a mes"]
    zero = [{"TEXT": text, "CANDIDATE_LABELS": labels} for text, labels in zip(texts, lists, strict=True)]
    assert_digests_are_right(served.options, ["zero", "alone"], zero)
    choice = [{"TEXT": text, "CHOICES": choices} for text, choices in zip(texts, lists, strict=True)]
    assert_digests_are_right(served.options, ["choice"], choice)


def test_options_that_are_none(served: Served) -> None:
    row = {"TEXT": b"a film", "CANDIDATE_LABELS": b'["a", "b"]'}
    with grpcclient.InferenceServerClient(served.options.grpc_url) as client:
        for parameters in (
            {"hypothesis_template": "nothing"},
            {"multi_label": "yes"},
            {"top_k": 1},
            {"hypothesis_template": "{x}"},
        ):
            status, message = status_and_answer(client, "zero", "LABELS", row, **parameters)
            assert status == "StatusCode.INVALID_ARGUMENT"
            assert next(iter(parameters)) in message
    with served.pipe("zero") as pipe:
        with pytest.warns(UserWarning, match="zero-shot-classification has no option top_k"):
            assert pipe("a film", ["a"], top_k=1) == pipe("a film", ["a"])
        with pytest.raises(RequestError, match=f"{MAX_LENGTH} tokens"):
            pipe("a film", ["a " * 100])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_choices_are_the_models(served: Served, protocol: str) -> None:
    model = transformers.AutoModelForMultipleChoice.from_pretrained(served.choice).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(served.choice)
    rows = [{"text": text, "choices": LABELS[place % 3 :]} for place, text in enumerate(STRANGE_TEXTS)]
    with served.pipe("choice", protocol, batch_size=3) as pipe:
        answers = pipe(rows)
        single = pipe(rows[2])
    assert single["choice"] == answers[2]["choice"]
    for row, answer in zip(rows, answers, strict=True):
        texts = [row["text"]] * len(row["choices"])
        encoded = tokenizer(texts, row["choices"], truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
        with torch.inference_mode():
            wanted = model(**{name: values[None] for name, values in encoded.items()}).logits.softmax(-1)[0].tolist()
        assert answer["scores"] == pytest.approx(wanted, abs=1e-3)
        assert answer["choice"] == int(np.argmax(wanted))


def test_predict_takes_rows_and_columns_of_choices(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"goal": "the film is", "sol1": "good", "sol2": "bad"}) + "\n", encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    files = ["--input", str(rows), "--output", str(output), "--text-column", "goal"]
    server = ["predict", "choice", "--url", served.options.grpc_url]
    assert main([*server, *files, "--choice-column", "sol1", "--choice-column", "sol2"]) == 0
    written = json.loads(output.read_text(encoding="utf-8"))
    assert main([*server, "--json", '{"text": "the film is", "choices": ["good", "bad"]}']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["choice"] == written["answer"]["choice"]
    assert answer["scores"] == pytest.approx(written["answer"]["scores"])
    assert main([*server, '{"text": "the film is", "choices": "good"}']) == 1
    assert "must be a list of strings" in capsys.readouterr().err
