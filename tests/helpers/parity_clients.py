"""Clients that send many requests at the same time to a model that generates, and return what they are answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import numpy as np
import tritonclient.grpc.aio as grpc_client

from serving.generation_request import TextRequest
from serving.options import ServeOptions
from tests.helpers.library_generation import Generated
from tests.helpers.parity_requests import ParityRequest

AT_ONCE = 32


def ask_all(options: ServeOptions, name: str, requests: Sequence[ParityRequest]) -> list[Generated]:
    """Send all requests, 32 at a time, and return the answers in their order."""
    return asyncio.run(_ask_all(options, name, requests))


async def _ask_all(options: ServeOptions, name: str, requests: Sequence[ParityRequest]) -> list[Generated]:
    room = asyncio.Semaphore(AT_ONCE)
    async with (
        aiohttp.ClientSession(options.base_url, connector=aiohttp.TCPConnector(limit=0)) as http,
        grpc_client.InferenceServerClient(options.grpc_url) as grpc,
    ):

        async def ask(request: ParityRequest) -> Generated:
            async with room:
                match request.way:
                    case "grpc stream" | "grpc whole":
                        return await _grpc_stream(grpc, _text_request(name, request))
                    case "http generate" | "http generate_stream":
                        return await _http_generate(http, _text_request(name, request))
                    case "grpc infer":
                        return await _grpc_infer(grpc, name, request)
                    case _:
                        return await _http_infer(http, name, request)

        return await asyncio.gather(*map(ask, requests))


def _parameters(request: ParityRequest) -> dict[str, Any]:
    """The options as request parameters, of which none can be a list."""
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in request.options.items()}


def _text_request(name: str, request: ParityRequest) -> TextRequest:
    text, parameters = request.text, {}
    if request.chat:
        text, parameters = json.dumps([{"role": "user", "content": text}]), {"messages": True}
    if request.as_parameters:
        parameters |= _parameters(request)
    return TextRequest(
        model=name,
        text=text.encode(),
        options={} if request.as_parameters else request.options,
        parameters=parameters,
        stream=request.way in ("grpc stream", "http generate_stream"),
    )


async def _grpc_stream(client: Any, request: TextRequest) -> Generated:
    async def requests() -> AsyncIterator[dict[str, object]]:
        yield request.for_grpc()

    parts = []
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise AssertionError(f"{request}: {error}")
        names = ("text_output", "token_ids", "num_output_tokens")
        parts.append(tuple(result.as_numpy(name).tolist() for name in names))
    return _joined(parts)


async def _http_generate(session: aiohttp.ClientSession, request: TextRequest) -> Generated:
    endpoint = "generate_stream" if request.stream else "generate"
    async with session.post(f"/v2/models/{request.model}/{endpoint}", data=request.as_json()) as reply:
        body = await reply.text()
        assert reply.status == 200, f"{request}: {body}"
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line] if request.stream else [body]
    parts = [json.loads(line) for line in lines]
    return _joined([tuple(_listed(part[name]) for name in ("text_output", "token_ids", "num_output_tokens")) for part in parts])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _joined(parts: Sequence[tuple[list[Any], list[int], list[int]]]) -> Generated:
    """One sequence in several parts, or several sequences in one."""
    first, *others = parts
    texts = [text.decode() if isinstance(text, bytes) else text for text in first[0]]
    tokens, rest = [], first[1]
    for count in first[2]:
        tokens.append(rest[:count])
        rest = rest[count:]
    assert not rest
    for (text,), more, (count,) in others:
        texts[0] += text.decode() if isinstance(text, bytes) else text
        assert len(more) == count
        tokens[0] += more
    return Generated(texts, tokens)


async def _grpc_infer(client: Any, name: str, request: ParityRequest) -> Generated:
    tensor = grpc_client.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[request.text.encode()]], np.object_))
    result = await client.infer(name, [tensor], parameters=_parameters(request))
    return Generated([text.decode() for text in result.as_numpy("GENERATED")[0].tolist()], None)


async def _http_infer(session: aiohttp.ClientSession, name: str, request: ParityRequest) -> Generated:
    tensor = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [request.text]}
    async with session.post(f"/v2/models/{name}/infer", json={"inputs": [tensor], "parameters": _parameters(request)}) as reply:
        body = await reply.json(content_type=None)
        assert reply.status == 200, f"{request}: {body}"
    return Generated(next(output["data"] for output in body["outputs"] if output["name"] == "GENERATED"), None)
