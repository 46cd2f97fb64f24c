"""Clients whose every text has one right answer, known beforehand: none may ever get the answer to another text.

The clients of gRPC and HTTP are plain ones. They compare the scores, and know nothing of the digest that ``TritonPipeline`` checks.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.options import ServeOptions
from tests.helpers.reviews import BAD, FILLING, GOOD

TOLERANCE = 1e-3
"""Largest difference between two scores of one text: batches differ in their rounding."""
APART = 10 * TOLERANCE
"""Smallest difference between the scores of two texts."""
RAW = {"function_to_apply": "none"}
"""The scores are logits: those of a model that is sure of itself would all be 1."""
Answer = tuple[float, ...]


class NoAnswerError(Exception):
    """The server refused a request, or the connection broke."""


def known_answers(url: str, name: str, count: int) -> dict[str, Answer]:
    """Return texts and the scores of each; no two texts have nearly the same."""
    choose = random.Random(5)
    words = (*GOOD, *BAD, *FILLING)
    answers: dict[str, Answer] = {}
    with TritonPipeline(name, url=url, protocol="http") as pipe:
        while len(answers) < count:
            text = " ".join(choose.choices(words, k=choose.randint(4, 30)))
            scores = _pipeline_scores(pipe, text)
            if all(abs(scores[0] - other[0]) > APART for other in answers.values()):
                answers[text] = scores
    return answers


def _pipeline_scores(pipe: TritonPipeline, text: str) -> Answer:
    found = {entry["label"]: entry["score"] for entry in pipe([text], top_k=None, **RAW)[0]}
    return tuple(found[label] for label in sorted(found))


class PlainGrpc:
    """A client of gRPC that retries nothing."""

    def __init__(self, options: ServeOptions, name: str, timeout: float) -> None:
        self._client, self._name, self._timeout = InferenceServerClient(options.grpc_url), name, timeout

    def ask(self, text: str) -> Answer:
        tensor = InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        try:
            result = self._client.infer(self._name, [tensor], parameters=RAW, client_timeout=self._timeout)
        except InferenceServerException as error:
            raise NoAnswerError(f"{error.status()}: {error.message()}") from error
        return tuple(result.as_numpy("SCORES")[0].tolist())

    def close(self) -> None:
        self._client.close()


class PlainHttp:
    """A client of HTTP with JSON that retries nothing."""

    def __init__(self, options: ServeOptions, name: str, timeout: float) -> None:
        self._connection = http.client.HTTPConnection(options.base_url.removeprefix("http://"), timeout=timeout)
        self._path = f"/v2/models/{name}/infer"

    def ask(self, text: str) -> Answer:
        try:
            self._connection.request("POST", self._path, json.dumps(json_request(text)), {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NoAnswerError(type(error).__name__) from error
        if answer.status != 200:
            raise NoAnswerError(f"{answer.status}: {body.decode()}")
        outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
        return tuple(outputs["SCORES"])

    def close(self) -> None:
        self._connection.close()


def json_request(text: str) -> dict[str, Any]:
    """Return a request for the scores of a text as JSON."""
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [text]}], "parameters": RAW}


class Pipeline:
    """A client of the project with its defaults, which retries within its time limit."""

    def __init__(self, options: ServeOptions, name: str, protocol: Any) -> None:
        url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
        self._pipe = TritonPipeline(name, url=url, protocol=protocol)

    def ask(self, text: str) -> Answer:
        try:
            return _pipeline_scores(self._pipe, text)
        except RequestError as error:
            raise NoAnswerError(f"{error.status}: {error.message}") from error

    def close(self) -> None:
        self._pipe.close()


KINDS: dict[str, Callable[[ServeOptions, str, float], PlainGrpc | PlainHttp | Pipeline]] = {
    "grpc": PlainGrpc,
    "http": PlainHttp,
    "pipeline grpc": lambda options, name, _: Pipeline(options, name, "grpc"),
    "pipeline http": lambda options, name, _: Pipeline(options, name, "http"),
}
EIGHT = ("grpc", "grpc", "grpc", "http", "http", "http", "pipeline grpc", "pipeline http")
"""Eight clients: plain ones, and two of the project's own."""


@dataclass(frozen=True)
class Attempt:
    """What became of one request: its client, when it was sent and ended, and why there is no answer if there is none."""

    client: int
    sent: float
    ended: float
    failure: str | None = None


@dataclass
class GoodTraffic:
    """Clients that ask without a pause while the block runs. Each has texts of its own.

    Attributes:
        attempts: All requests that have ended.
        wrong: A line on each answer that was not that of its text.
    """

    options: ServeOptions
    name: str
    answers: dict[str, Answer]
    kinds: Sequence[str] = EIGHT
    timeout: float = 10.0
    pause: float = 0.0
    compared: bool = True
    attempts: list[Attempt] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[index, kind]) for index, kind in enumerate(self.kinds)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int, kind: str) -> None:
        client = KINDS[kind](self.options, self.name, self.timeout)
        own = list(self.answers.items())[index :: len(self.kinds)]
        for text, expected in itertools.cycle(own):
            if self._ended.is_set():
                break
            sent = time.monotonic()
            try:
                scores = client.ask(text)
            except NoAnswerError as error:
                self.attempts.append(Attempt(index, sent, time.monotonic(), str(error)))
                self._ended.wait(0.1)
                continue
            self.attempts.append(Attempt(index, sent, time.monotonic()))
            if self.compared and (
                len(scores) != len(expected) or max(abs(one - two) for one, two in zip(scores, expected, strict=True)) > TOLERANCE
            ):
                whose = [other for other, known in self.answers.items() if abs(known[0] - scores[0]) <= TOLERANCE]
                self.wrong.append(f"{kind}: {scores} instead of {expected}, which is the answer to {whose}")
            if self.pause:
                self._ended.wait(self.pause)
        client.close()

    def answered(self, since: float = 0.0) -> list[Attempt]:
        """Return the answered requests that were sent after a moment."""
        return [attempt for attempt in list(self.attempts) if attempt.failure is None and attempt.sent >= since]

    def failures(self, since: float = 0.0) -> Counter[str]:
        """Return the reasons why requests got no answer, and how often."""
        return Counter(attempt.failure[:110] for attempt in list(self.attempts) if attempt.failure and attempt.sent >= since)

    def wait_for_all(self, since: float, seconds: float = 90) -> tuple[float, float]:
        """Wait until every client has an answer to a request that it sent after a moment.

        Returns:
            How long after that moment the first client and the last one had it, in seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            first: dict[int, float] = {}
            for attempt in self.answered(since):
                first.setdefault(attempt.client, attempt.ended - since)
            if len(first) == len(self.kinds):
                return min(first.values()), max(first.values())
            assert time.monotonic() < deadline, (first, self.failures(since))
            time.sleep(0.05)

    def longest_gap(self, since: float = 0.0) -> float:
        """Return the longest time without an answer to anybody after a moment, in seconds."""
        ends = sorted(attempt.ended for attempt in self.answered() if attempt.ended >= since)
        return max(later - earlier for earlier, later in itertools.pairwise(ends))
