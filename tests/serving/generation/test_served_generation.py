"""Text generation on a real Triton: streams and whole answers are those of transformers, whatever happens to the neighbours."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import tritonclient.grpc as grpcclient

from export.generation.decoder_graph import export_decoder
from export.rowwise_int8 import quantize_rowwise
from serving.runtime.digest import row_digests
from serving.runtime.generation.process_life import STUCK_SECONDS
from serving.runtime.generation.step_graph import DecoderGraph, PromptChunk
from tests.helpers.front_requests import ask
from tests.helpers.generation_server import GenerationServer, generation_server, write_model
from tests.helpers.shared import SHARED, needs_shared
from tests.serving.generation.conftest import Generating

STORIES = SHARED / "checkpoints" / "stories260K-hf"
CAPACITY, SLOTS, WAITING = 256, 16, 24
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
TEXTS = ("Once upon a time", "The dog", "Tom and Lily went to the park. They saw a big tree. " * 6, "", "Lily said: «好» 🎉")

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_shared(STORIES)]


@dataclass
class Stories:
    """The model that is served, in transformers."""

    model: Any
    tokenizer: Any

    def answer(self, text: str, **options: Any) -> tuple[list[int], str]:
        """The generated tokens and text."""
        prompt = self.tokenizer(text, return_tensors="pt").input_ids
        return self.tokens(prompt, **options)

    def tokens(self, prompt: Any, **options: Any) -> tuple[list[int], str]:
        with torch.no_grad():
            whole = self.model.generate(prompt, do_sample=False, pad_token_id=0, **{"max_new_tokens": 40} | options)[0].tolist()
        before = self.tokenizer.decode(prompt[0], skip_special_tokens=True)
        return whole[prompt.shape[1] :], self.tokenizer.decode(whole, skip_special_tokens=True)[len(before) :]


@pytest.fixture(scope="module")
def stories() -> Stories:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return Stories(AutoModelForCausalLM.from_pretrained(STORIES).eval(), AutoTokenizer.from_pretrained(STORIES))


@pytest.fixture(scope="module")
def repository(stories: Stories, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    export_decoder(stories.model, folder / "model.onnx")
    settings = {
        "task": "text-generation",
        "settings": {
            "generation": {"max_new_tokens": 40, "eos_token_id": 2},
            "vocab_size": stories.model.config.vocab_size,
            "bos_token_id": 1,
            "special_tokens": {"bos_token": "<s>"},
            "chat": True,
        },
        "split_special_tokens": False,
        "engine": {"slots": SLOTS, "capacity": CAPACITY, "threads": 1, "chunk": 64, "max_waiting": WAITING},
    }
    write_model(folder / "models", "stories", graph=folder / "model.onnx", checkpoint=STORIES, settings=settings, template=TEMPLATE)
    return folder / "models"


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenerationServer]:
    with generation_server(repository, tmp_path_factory.mktemp("server")) as running:
        yield running


@dataclass
class Streamed:
    """What one request got over a gRPC stream."""

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    counted: int = 0
    digests: set[int] = field(default_factory=set)
    error: Any = None


def inputs_of(text: str | bytes, **more: Any) -> list[Any]:
    made = []
    for name, value in {"text_input": text, **more}.items():
        is_flag = isinstance(value, bool)
        tensor = grpcclient.InferInput(name, [1], "BOOL" if is_flag else "BYTES")
        raw = value if is_flag else value.encode() if isinstance(value, str) else value
        tensor.set_data_from_numpy(np.array([raw], dtype=np.bool_ if is_flag else np.object_))
        made.append(tensor)
    return made


class Client:
    """One gRPC stream with many requests in flight."""

    def __init__(self, server: GenerationServer, *, model: str = "stories") -> None:
        self._model = model
        self._results: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client = grpcclient.InferenceServerClient(server.grpc)
        self.client.start_stream(lambda result, error: self._results.put((result, error)))
        self._sent = 0

    def send(self, text: str | bytes, *, stream: bool = True, timeout: int | None = None, **options: Any) -> str:
        self._sent += 1
        flags = {"stream": stream, "return_finish_reason": True, "return_num_output_tokens": True}
        given = {name: json.dumps(value) if isinstance(value, list) else value for name, value in options.items()}
        self.client.async_stream_infer(
            self._model, inputs_of(text, **flags), request_id=str(self._sent), parameters=given, timeout=timeout
        )
        return str(self._sent)

    def collect(self, count: int) -> dict[str, Streamed]:
        """The answers of so many requests, by their number."""
        found: dict[str, Streamed] = {}
        while count:
            result, error = self._results.get(timeout=60)
            if error is not None:
                found[f"error {len(found)}"] = Streamed(error=error)
                count -= 1
                continue
            response = result.get_response()
            one = found.setdefault(response.id, Streamed())
            one.texts.append(result.as_numpy("text_output")[0].decode())
            one.tokens += result.as_numpy("token_ids").tolist()
            one.digests |= set(result.as_numpy("DIGEST").tolist())
            one.counted += int(result.as_numpy("num_output_tokens")[0])
            one.reason = result.as_numpy("finish_reason")[0].decode()
            count -= response.parameters["triton_final_response"].bool_param
        return found


@pytest.fixture
def client(server: GenerationServer) -> Iterator[Client]:
    made = Client(server)
    yield made
    made.client.stop_stream(cancel_requests=True)
    made.client.close()


def post(server: GenerationServer, path: str, body: Any, *, model: str = "stories") -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server.http}/v2/models/{model}/{path}", raw)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            status, text = reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read().decode()
    if path == "generate":
        return status, json.loads(text)
    return status, [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 5, "suppress_tokens": [426]},
    {"bad_words_ids": [[432], [261, 376]]},
    {"eos_token_id": [2, 426]},
]


def test_many_streams_at_once_are_those_of_transformers(client: Client, stories: Stories) -> None:
    asked, pieces = {}, []
    for number in range(60):
        text, options = TEXTS[number % len(TEXTS)], OPTIONS[number % len(OPTIONS)] | {"max_new_tokens": 5 + number % 40}
        asked[client.send(text, **options)] = (text, options)
        if number % 20 == 19:  # as many as may wait
            answers = client.collect(20)
            for sent, one in answers.items():
                tokens, whole = stories.answer(asked[sent][0], **asked[sent][1])
                assert (one.tokens, "".join(one.texts), one.counted) == (tokens, whole, len(tokens))
                ends = asked[sent][1].get("eos_token_id", [2])
                assert one.reason == ("stop" if tokens[-1] in ends else "length")
                assert one.digests == set(row_digests({"text_input": [asked[sent][0].encode()]}).tolist())
                pieces.append(len(one.texts))
    assert max(pieces) > 2, "parts that wait together are sent as one, but not all parts of every answer wait"


@pytest.mark.parametrize(
    ("precision", "threads"),
    [("fp32", 1), *(pytest.param(*way, marks=pytest.mark.long) for way in (("int8", 1), ("fp32", 2), ("int8", 2)))],
)
def test_logits_are_bit_equal_alone_and_among_others(repository: Path, tmp_path: Path, precision: str, threads: int) -> None:
    path = repository / "stories/1/model.onnx"
    if precision == "int8":
        quantize_rowwise(path, tmp_path / "model.onnx")
        path = tmp_path / "model.onnx"
    generator = np.random.default_rng(1)
    sizes = [*generator.integers(1, 60, SLOTS - 3), 1, 128, 200]
    prompts = [generator.integers(3, 500, size) for size in sizes]

    def logits(rows: list[Any]) -> list[Any]:
        graph = DecoderGraph(path, slots=SLOTS, capacity=CAPACITY, threads=threads)
        found = [graph.prefill(0, [PromptChunk(row) for row in rows]).copy()]
        lengths = np.array([len(row) for row in rows])
        for step in range(5):
            found.append(graph.step(np.full(len(rows), 300 + step), lengths + step).copy())
        return found

    together = logits(prompts)
    for row, prompt in enumerate(prompts):
        for alone, among in zip(logits([prompt]), together, strict=True):
            np.testing.assert_array_equal(alone[0], among[row])


def test_whole_answers_and_streams_over_http(server: GenerationServer, stories: Stories) -> None:
    tokens, text = stories.answer("The dog", max_new_tokens=20)
    prompt = stories.tokenizer("The dog").input_ids
    status, plain = post(server, "generate", {"text_input": "The dog", "parameters": {"max_new_tokens": 20}})
    assert status == 200 and plain["text_output"] == "The dog" + text and plain["token_ids"] == prompt + tokens
    assert "finish_reason" not in plain and "num_output_tokens" not in plain
    asked = {
        "text_input": "The dog",
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_output_tokens": True,
    }
    status, alone = post(server, "generate", asked | {"sampling_parameters": json.dumps({"max_tokens": 20})})
    assert status == 200 and alone["text_output"] == text and alone["token_ids"] == tokens
    assert (alone["finish_reason"], alone["num_output_tokens"]) == ("length", 20)
    assert post(server, "generate", asked | {"id": "good-1", "max_tokens": 20}) == (200, alone | {"id": "good-1"})
    streamed = {"text_input": "The dog", "stream": True, "max_new_tokens": 20, "id": "good-2"}
    status, parts = post(server, "generate_stream", streamed)
    assert status == 200 and "".join(part["text_output"] for part in parts) == text and len(parts) > 2
    status, chat = post(
        server,
        "generate",
        {"text_input": json.dumps([{"role": "user", "content": "The dog"}]), "messages": True, "max_new_tokens": 9},
    )
    encoded = stories.tokenizer("<s>The dog", add_special_tokens=False, return_tensors="pt").input_ids
    assert status == 200 and chat["text_output"] == stories.tokens(encoded, max_new_tokens=9)[1]


def test_beams_stop_strings_and_samples(client: Client, server: GenerationServer, stories: Stories) -> None:

    status, found = post(
        server, "generate", {"text_input": "The dog", "exclude_input_in_output": True, "num_beams": 3, "num_return_sequences": 2}
    )
    tokens = stories.tokenizer("The dog", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = stories.model.generate(
            tokens, num_beams=3, num_return_sequences=2, do_sample=False, max_new_tokens=40, pad_token_id=0
        )
    assert status == 200 and found["text_output"] == [
        stories.tokenizer.decode(row, skip_special_tokens=True)[len("The dog") :] for row in expected
    ]
    _, whole = stories.answer("Once upon a time")
    stopped = client.send("Once upon a time", stop=["little girl", "nothing"])
    included = client.send("Once upon a time", stop_strings=["little g"])
    answers = client.collect(2)
    assert "".join(answers[stopped].texts) == whole[: whole.index("little girl")] and answers[stopped].reason == "stop"
    expected_tokens, expected_text = stories.answer("Once upon a time", stop_strings=["little g"], tokenizer=stories.tokenizer)
    assert (answers[included].tokens, "".join(answers[included].texts)) == (expected_tokens, expected_text)
    end = {"eos_token_id": [], "forced_eos_token_id": stories.tokenizer.eos_token_id, "max_new_tokens": 5}
    special = client.send("The dog", stop_strings=[stories.tokenizer.eos_token], **end)
    unseen = client.send("The dog", stop=[stories.tokenizer.eos_token], **end)
    answers = client.collect(2)
    assert answers[special].tokens == answers[unseen].tokens and answers[special].tokens[-1] == stories.tokenizer.eos_token_id
    assert (answers[special].reason, answers[unseen].reason) == ("stop", "length"), "special tokens are not in an answer"
    assert "".join(answers[special].texts) == "".join(answers[unseen].texts)
    samples = []
    for others in (0, 12):
        sent = client.send("Once", do_sample=True, seed=5, top_p=0.9, temperature=1.5)
        for other in range(others):
            client.send("The dog", do_sample=True, seed=other)
        samples.append(client.collect(others + 1)[sent].tokens)
    assert samples[0] == samples[1], "a seed gives the same tokens alone and among others"
    assert samples[0] != stories.answer("Once")[0]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 10_000}, "max_new_tokens asks for 10000 tokens"),
    ({"top_p": 2.0}, "top_p"),
    ({"eos_token_id": "[9999]"}, "eos_token_id"),
    ({"nothing": 1}, "nothing"),
    ({"sampling_parameters": "{"}, "sampling_parameters"),
    ({"stream": True, "num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
    ({"messages": True}, "text_input is not JSON"),
    ({"text_input": "Tom " * 5000}, "text_input has"),
    ({"text_input": "Tom " * 400}, "holds 256"),
    ({"num_beams": 17}, "needs 17 rows"),
    ({"suppress_tokens": str(list(range(512))), "do_sample": True}, "forbid all tokens"),
]


def test_a_bad_request_is_refused_by_name_and_leaves_its_neighbours_alone(
    client: Client, server: GenerationServer, stories: Stories
) -> None:
    good = [client.send("The dog", max_new_tokens=200, ignore_eos=True) for _ in range(4)]
    for body, named in BAD:
        status, reply = post(server, "generate", {"text_input": "The dog"} | body)
        assert status == 400 and named in reply["error"], (sorted(body), reply)
        assert "Traceback" not in reply["error"] and "/" not in reply["error"]
    status, reply = post(server, "generate_stream", {"text_input": "The dog", "stream": True, "top_k": "five"})
    assert status == 400 and "top_k" in reply[0]["error"]
    client.send(b"ab\xff")
    answers = client.collect(5)
    assert ["byte 2 is not valid UTF-8" in str(one.error) for one in answers.values() if one.error] == [True]
    expected = stories.answer("The dog", max_new_tokens=200, eos_token_id=None)[0]
    assert all(answers[sent].tokens == expected for sent in good)


def test_a_full_queue_refuses_at_once_and_what_is_late_ends(client: Client, server: GenerationServer) -> None:
    slow = {"max_new_tokens": 230, "ignore_eos": True, "stream": False}
    for _ in range(SLOTS):
        client.send("The dog", **slow)
    client.send("The dog", timeout=1_000, **slow)
    for _ in range(2 * WAITING):
        client.send("The dog", **slow)
    answers = client.collect(SLOTS + 1 + 2 * WAITING)
    errors = [one.error for one in answers.values() if one.error is not None]
    messages = [error.message() for error in errors]
    assert messages.count("the time that this request allows is over") == 1
    assert (
        0 < messages.count("this model has more requests than may wait: try again later") <= WAITING + 1
    )  # the late one waits too
    status, _ = post(server, "generate", {"text_input": "The dog", "max_new_tokens": 1})
    assert status == 200


def test_a_client_that_leaves_frees_its_slot(generating: Generating) -> None:
    """Four requests of 300 tokens, each 20 ms, would hold all four slots for 24 s."""
    server, options = generating.server, {"max_new_tokens": 300, "ignore_eos": True}

    def steps() -> int:
        return generating.steps.stat().st_size if generating.steps.exists() else 0

    def is_idle() -> bool:
        before = steps()
        time.sleep(0.3)
        return steps() == before

    assert eventually(is_idle)
    leaver = Client(server, model="slow")
    for _ in range(3):
        leaver.send("The dog", **options)
    host, port = server.http.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    body = {"text_input": "The dog", "stream": True, **options}
    connection.request("POST", "/v2/models/slow/generate_stream", json.dumps(body))
    connection.getresponse().read(20)
    leaver._results.get(timeout=20)
    before = steps()
    time.sleep(0.5)
    assert steps() > before + 10, "they run while their clients are there"
    leaver.client.stop_stream(cancel_requests=True)
    connection.close()
    leaver.client.close()
    began = time.monotonic()
    status, _ = post(server, "generate", {"text_input": "The dog", "max_new_tokens": 1}, model="slow")
    assert status == 200 and time.monotonic() - began < 2, "a slot is free"
    assert eventually(is_idle, 2)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_a_timeout_ends_what_runs_for_a_client_of_generate_that_left(generating: Generating, options: dict[str, Any]) -> None:
    before = generating.steps.stat().st_size if generating.steps.exists() else 0
    host, port = generating.server.http.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    body = {"text_input": "The dog", "max_new_tokens": 300, "ignore_eos": True, "timeout": 1_000_000, "do_sample": False, **options}
    connection.request("POST", "/v2/models/slow/generate", json.dumps(body))
    assert eventually(lambda: generating.steps.exists() and generating.steps.stat().st_size > before + 3)
    connection.close()
    time.sleep(1.2)
    ended = generating.steps.stat().st_size
    time.sleep(0.3)
    assert generating.steps.stat().st_size == ended < before + 70
    status, reply = post(generating.server, "generate", body | {"timeout": 200_000}, model="slow")
    assert status == 400 and reply["error"] == "the time that this request allows is over"


@pytest.mark.long
def test_the_process_ends_with_its_server_though_it_waits_for_it(repository: Path, tmp_path: Path) -> None:
    with generation_server(repository, tmp_path) as running:
        client = Client(running)
        for _ in range(8):
            client.send("The dog", max_new_tokens=240, ignore_eos=True)
        stubs = running.stubs()
        assert len(stubs) == 1
        os.kill(running.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(stubs, timeout=STUCK_SECONDS + 5)
        assert not [stub for stub in alive if stub.status() != psutil.STATUS_ZOMBIE]
        client.client.close()


def test_the_page_of_metrics_tells_tokens_and_requests(server: GenerationServer) -> None:
    def metric(name: str, state: str = "") -> float:
        page = ask(server.metrics)[1]
        labels = re.escape('model="stories",') + (f'state="{state}",' if state else "")
        (value,) = re.findall(rf"^{name}{{{labels}version=\"1\"}} (\S+)$", page, re.MULTILINE)
        return float(value)

    def settled() -> float:
        before = -1.0
        while (now := metric("tritonize_generated_tokens_total")) != before:
            before = now
            time.sleep(2.5)  # it is told once a second
        return now

    names = ("tritonize_prompt_tokens_total", "tritonize_time_to_first_token_seconds_count")
    tokens, (prompts, requests) = settled(), map(metric, names)
    body = {"text_input": TEXTS[0], "return_num_output_tokens": True}
    answer = json.loads(ask(f"http://{server.http}/v2/models/stories/generate", json.dumps(body).encode())[1])
    assert settled() == tokens + answer["num_output_tokens"] > tokens + 5
    assert metric(names[0]) > prompts and metric(names[1]) == requests + 1
    assert metric("tritonize_time_to_first_token_seconds_sum") > 0
    assert metric("tritonize_generation_requests", "running") == metric("tritonize_generation_requests", "waiting") == 0
