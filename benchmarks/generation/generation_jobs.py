"""Messages between the benchmark and the worker processes that generate text (:mod:`benchmarks.generation.generation_worker`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from benchmarks.token_speed import TokenTimes
from serving.access_options import AccessOptions
from serving.options import WireProtocol
from serving.runtime.generation.engine_settings import EngineSettings
from serving.runtime.types import JsonValue

TimedRequest = tuple[list[str], int, float]
"""Prompts, requests in flight, and least duration in seconds of a slice of time."""
TimedReply = tuple[TokenTimes, float]
"""When the tokens came, and the processor time of the worker meanwhile, seconds."""
OWN_ANSWERS: dict[str, JsonValue] = {"do_sample": False, "num_return_sequences": 1, "truncation": True}
"""Options of a request to an encoder-decoder for the answer that it gives by default, but without sampling."""


@dataclass(frozen=True, kw_only=True)
class ServerTarget:
    """A model on a running server.

    Attributes:
        url: ``host:port`` without a scheme.
        access: API key and TLS of its clients.
    """

    name: str
    url: str
    protocol: WireProtocol
    access: AccessOptions


@dataclass(frozen=True, kw_only=True)
class AskedOptions:
    """Options of the requests of a benchmark.

    Attributes:
        timed: Of requests that are timed. All answers have equally many tokens.
        compared: Of requests whose answers are compared.
    """

    timed: dict[str, JsonValue]
    compared: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """What one worker process generates with.

    Attributes:
        backend: ``served``, ``onnx``, ``pytorch``, ``exported`` or ``ctranslate2``.
        source: The file or folder that is loaded; of a server the file that it serves.
        bundle: The bundle whose task and tokenizer apply.
        max_length: Maximum tokens of a source, as packaged; None: as exported.
        engine: Settings of the engine, as packaged.
        new_tokens: Tokens of every answer that is timed.
        options: Options of the requests.
        precision: Precision that a library is asked to convert to; empty: that of the source.
        server: The model to ask; None: in process.
        labelled: Prompts answered before anything is timed: their answers are compared, and they warm up the model.
    """

    backend: str
    source: Path
    bundle: Path
    max_length: int | None = None
    engine: EngineSettings
    new_tokens: int
    options: AskedOptions
    precision: str = ""
    server: ServerTarget | None = None
    labelled: list[str]

    def without_labelled(self) -> Self:
        """Return the job of a process that answers no labelled rows."""
        return replace(self, labelled=[])


def greedy(new_tokens: int) -> dict[str, JsonValue]:
    """Return the options of a greedy answer of ``new_tokens`` tokens, which no end-of-sequence token ends."""
    return {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "ignore_eos": True}


def continuing(new_tokens: int, *, special_tokens: bool) -> AskedOptions:
    """Return the options of requests to a model that continues texts: greedy, and as long as all answers are.

    Args:
        new_tokens: Tokens of every answer.
        special_tokens: Whether the tokenizer adds special tokens to a prompt.
    """
    asked = greedy(new_tokens) | {"add_special_tokens": special_tokens}
    return AskedOptions(timed=asked, compared=asked)


def rewriting(new_tokens: int) -> AskedOptions:
    """Return the options of requests to an encoder-decoder: the model's own, as its beams; timed answers are equally long."""
    return AskedOptions(timed=OWN_ANSWERS | {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}, compared=OWN_ANSWERS)
