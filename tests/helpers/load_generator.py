"""Clients in a process of their own, at a fixed rate or as fast as they are answered: ``python -m tests.helpers.load_generator``.

Each request is one attempt. What became of it is recorded, and whether an answer is that of its text.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import aiohttp
import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.helpers.good_traffic import RAW, TOLERANCE, Answer, json_request
from tests.helpers.raw_wire import bytes_of, text_message

CHANNELS = 4
ANSWERED = "answered"


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What the clients do.

    Attributes:
        protocol: ``grpc`` or ``http``.
        url: ``host:port`` of the server.
        name: The ensemble.
        texts: Texts and their scores; a text without scores is not compared.
        seconds: How long requests are sent.
        rate: Requests a second. None: each client sends the next one when it is answered.
        clients: Number of clients without a rate.
        give_up: Time after which a client goes away, in seconds.
        path: Path of HTTP requests. None: that of the ensemble.
    """

    protocol: str
    url: str
    name: str
    texts: Sequence[tuple[str, Answer]]
    seconds: float
    rate: float | None = None
    clients: int = 1
    give_up: float | None = None
    path: str | None = None


@dataclass(frozen=True)
class Sent:
    """A request: when it was due to be sent and when it ended, by the clock of all processes, and what became of it."""

    due: float
    ended: float
    result: str

    @property
    def seconds(self) -> float:
        return self.ended - self.due


class Generator:
    """A process that follows a plan while the block runs."""

    def __init__(self, plan: LoadPlan, folder: Path) -> None:
        self._results = folder / f"load-{time.monotonic_ns()}.json"
        self._plan = self._results.with_suffix(".plan")
        self._plan.write_text(json.dumps(asdict(plan)), encoding="utf-8")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([sys.executable, "-m", __name__, self._plan, self._results])
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def results(self) -> list[Sent]:
        """Wait for the end of the plan and return all requests."""
        assert self._process.wait() == 0
        return [Sent(*entry) for entry in json.loads(self._results.read_text(encoding="utf-8"))]


def generate(plan: LoadPlan, folder: Path) -> list[Sent]:
    """Follow a plan in another process and return all its requests."""
    with Generator(plan, folder) as generator:
        return generator.results()


def percentile(sent: Sequence[Sent], percent: float) -> float:
    """Return a percentile of the requests' times in milliseconds."""
    return float(np.percentile([one.seconds for one in sent], percent)) * 1000 if sent else float("nan")


def by_window(sent: Sequence[Sent], begun: float, seconds: float, width: float) -> list[float]:
    """Return the answers a second in each window of a span of time."""
    counts = Counter(int((one.ended - begun) // width) for one in sent if one.result == ANSWERED)
    return [counts[index] / width for index in range(int(seconds / width))]


async def _run(plan: LoadPlan) -> list[Sent]:
    found: list[Sent] = []
    async with _Http(plan) if plan.protocol == "http" else _Grpc(plan) as client:
        if plan.rate is None:
            await asyncio.gather(*(_closed(plan, client.ask, found, number) for number in range(plan.clients)))
        else:
            await _open(plan, client.ask, found)
    return found


Ask = Callable[[int], Awaitable[str]]


async def _closed(plan: LoadPlan, ask: Ask, found: list[Sent], number: int) -> None:
    ends = time.monotonic() + plan.seconds
    while time.monotonic() < ends:
        await _attempt(plan, ask, found, number, time.monotonic())
        number += plan.clients


async def _open(plan: LoadPlan, ask: Ask, found: list[Sent]) -> None:
    assert plan.rate is not None
    begun, running = time.monotonic(), set[asyncio.Task[None]]()
    for number in range(int(plan.seconds * plan.rate)):
        due = begun + number / plan.rate
        await asyncio.sleep(due - time.monotonic())
        task = asyncio.create_task(_attempt(plan, ask, found, number, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def _attempt(plan: LoadPlan, ask: Ask, found: list[Sent], number: int, due: float) -> None:
    try:
        async with asyncio.timeout(plan.give_up):
            result = await ask(number)
    except TimeoutError:
        result = "gave up"
    found.append(Sent(due, time.monotonic(), result))


def _judge(scores: Sequence[float], expected: Answer) -> str:
    if expected and max(abs(one - two) for one, two in zip(scores, expected, strict=True)) > TOLERANCE:
        return "WRONG"
    return ANSWERED


class _Http:
    def __init__(self, plan: LoadPlan) -> None:
        self._texts = [(json.dumps(json_request(text)).encode(), scores) for text, scores in plan.texts]
        self._url = f"http://{plan.url}{plan.path or f'/v2/models/{plan.name}/infer'}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, number: int) -> str:
        body, expected = self._texts[number % len(self._texts)]
        try:
            async with self._session.post(self._url, data=body, headers={"Content-Type": "application/json"}) as answer:
                text = await answer.read()
                if answer.status != 200:
                    return str(answer.status)
        except aiohttp.ClientError as error:
            return type(error).__name__
        outputs = {output["name"]: output["data"] for output in json.loads(text)["outputs"]}
        return _judge(outputs["SCORES"], expected)


class _Grpc:
    def __init__(self, plan: LoadPlan) -> None:
        parameters = {key: {"string_param": value} for key, value in RAW.items()}
        self._texts = [
            (
                text_message(plan.name, raw_input_contents=[bytes_of(text.encode())], parameters=parameters).SerializeToString(),
                scores,
            )
            for text, scores in plan.texts
        ]
        self._url = plan.url

    async def __aenter__(self) -> Self:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channels = [grpc.aio.insecure_channel(self._url, options=options) for _ in range(CHANNELS)]
        self._calls = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer") for channel in self._channels]
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def ask(self, number: int) -> str:
        message, expected = self._texts[number % len(self._texts)]
        try:
            answer = service_pb2.ModelInferResponse.FromString(await self._calls[number % CHANNELS](message))
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        index = [output.name for output in answer.outputs].index("SCORES")
        return _judge(np.frombuffer(answer.raw_output_contents[index], np.float32).tolist(), expected)


def main() -> None:
    """Follow the plan in the first file and write the requests into the second."""
    plan = LoadPlan(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    found = asyncio.run(_run(plan))
    Path(sys.argv[2]).write_text(json.dumps([[one.due, one.ended, one.result] for one in found]), encoding="utf-8")


if __name__ == "__main__":
    main()
