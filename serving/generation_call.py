"""Calls of a model that generates text: a whole answer, or its text in pieces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from serving.connection import Connection
from serving.errors import RequestError
from serving.generation_request import TEXT_INPUT, TextRequest
from serving.generation_responses import GrpcResponses, HttpResponses, Responses
from serving.infer_client import InferClient
from serving.own_answers import require_own_answer
from serving.pipeline_call import PipelineCall
from serving.runtime.digest import DIGEST
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.tasks._clean_up import TextCleaner
from serving.runtime.tasks.text_generation import TENSORS, TextGeneration
from serving.runtime.types import Arrays

CANCELLED = "cancelled"
"""Finish reason of a text that the server ended early."""


def whole_request(model: str, call: PipelineCall, rows: Sequence[tuple[str, ...]]) -> TextRequest:
    """Return the request for the whole answer to one row.

    Args:
        model: The name of the model.
        call: The call.
        rows: The one row, as the task's ``parse_inputs`` gave it.

    Raises:
        DataError: The text cannot be encoded as UTF-8.
    """
    tensors, parameters = call.request(rows)
    (texts,) = tensors.values()
    return TextRequest.of(model, texts, parameters, keeps_input=call.formatting.get("return_type") == TENSORS)


async def whole_answer(connection: Connection, request: TextRequest, options: GenerationOptions) -> Arrays:
    """Return the tensors of the answer to ``request``, which is retried as any other request.

    Over HTTP, Triton notices that a client has left when it sends the next piece. So the answer comes in pieces where it can, and
    elsewhere the server is told how long the client waits.

    Args:
        connection: The connection.
        request: The request.
        options: Its options, and the model's defaults of the others.

    Raises:
        RequestError: The server refused it, is not there, did not answer in time, or ended before the text was complete.
    """
    has_pieces = options.num_beams == options.num_return_sequences == 1 and not request.keeps_input
    is_http = connection.protocol == "http"
    sent = request.streamed() if has_pieces and is_http else request
    end = time.monotonic() + connection.timeout

    async def ask(client: InferClient) -> list[Arrays]:
        timed = sent.within(end - time.monotonic()) if is_http else sent
        async with contextlib.aclosing(_opened(connection, client, timed)) as responses:
            return [answer async for answer in responses]

    answers = await connection.ask(ask)
    for answer in answers:
        _check(answer, request)
    if not answers or (len(answers) > 1 and not sent.stream):
        raise RequestError(f"{request.model} sent {len(answers)} responses instead of one", status="INTERNAL")
    return _joined(answers) if sent.stream else answers[0]


def _joined(pieces: Sequence[Arrays]) -> Arrays:
    """Return the one answer that pieces are: that of one sequence. vLLM gives no tokens."""
    text = b"".join(piece["text_output"][0] for piece in pieces)
    tokens = {"token_ids": np.concatenate([piece["token_ids"] for piece in pieces])} if "token_ids" in pieces[-1] else {}
    return (
        pieces[-1]
        | tokens
        | {
            "text_output": np.array([text], dtype=np.object_),
            "num_output_tokens": np.sum([piece["num_output_tokens"] for piece in pieces], axis=0),
        }
    )


def text_request(model: str, call: PipelineCall, inputs: object) -> tuple[TextRequest, TextCleaner | None]:
    """Return the request for a stream of text, and what cleans up its spaces.

    Args:
        model: The name of the model.
        call: The call.
        inputs: One text or one chat.

    Raises:
        TypeError: The model does not generate text piece by piece, or there are several inputs.
        ValueError: The inputs have a form that the pipeline does not take.
    """
    task = call.task
    if not isinstance(task, TextGeneration):
        raise TypeError(f"{model} serves {task.name}, whose answers do not come in pieces: call the client")
    rows = task.parse_inputs(inputs)
    if len(rows) != 1:
        raise TypeError(f"stream_text takes one text or one chat, not {len(rows)}")
    return whole_request(model, call, rows).streamed(), task.cleaner(rows[0], **call.formatting)


async def text_pieces(connection: Connection, request: TextRequest, cleaner: TextCleaner | None) -> AsyncGenerator[str, None]:
    """Yield the text that answers ``request``, as it is generated. Closing the generator cancels the request.

    Raises:
        RequestError: As for :func:`answer_parts`.
    """
    async with contextlib.aclosing(answer_parts(connection, request)) as parts:
        async for part in parts:
            piece = b"".join(part["text_output"].reshape(-1).tolist()).decode()
            if piece := piece if cleaner is None else cleaner.clean(piece, final=False):
                yield piece
        if cleaner is not None and (rest := cleaner.clean("", final=True)):
            yield rest


async def answer_parts(connection: Connection, request: TextRequest) -> AsyncGenerator[Arrays, None]:
    """Yield the tensors of each response to ``request`` as it arrives. Closing the generator cancels the request.

    The request is retried until its first response has come. The time limit of a request holds for each response.

    Raises:
        RequestError: As for :func:`whole_answer`.
    """

    async def begin(client: InferClient) -> tuple[Arrays | None, AsyncGenerator[Arrays, None]]:
        responses = _opened(connection, client, request)
        try:
            return await anext(responses, None), responses
        except BaseException:
            await responses.aclose()
            raise

    response, responses = await connection.ask(begin)
    async with contextlib.aclosing(responses):
        while response is not None:
            _check(response, request)
            yield response
            response = await connection.once(anext(responses, None))


async def _opened(connection: Connection, client: InferClient, request: TextRequest) -> AsyncGenerator[Arrays, None]:
    """Yield the responses to ``request`` over tritonclient's ``client``."""
    responses: Responses
    if connection.protocol == "grpc":
        responses = GrpcResponses(client, request, connection.headers)
    else:
        responses = HttpResponses(await client.post_generation(request, connection.headers), stream=request.stream)
    try:
        while (response := await responses.read()) is not None:
            yield response
    finally:
        await responses.close()


def _check(response: Arrays, request: TextRequest) -> None:
    """Check that a response belongs to the request, and that the server did not give up.

    Raises:
        RequestError: It does not, or the server ended.
    """
    if DIGEST in response:  # a proxy may have compared and removed it
        require_own_answer(response[DIGEST], {TEXT_INPUT: [request.text]})
    if CANCELLED.encode() in response.get("finish_reason", ()):
        raise RequestError("the server ended before the text was complete", status="UNAVAILABLE", hint="send the request again")
