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
class GenerationJob:
    """What one worker process generates with. All answers are greedy and have ``new_tokens`` tokens.

    Attributes:
        backend: ``served``, ``onnx``, ``pytorch``, ``exported`` or ``ctranslate2``.
        source: The file or folder that is loaded; of a server the file that it serves.
        bundle: The bundle whose task and tokenizer apply.
        engine: Settings of the engine, as packaged.
        special_tokens: Whether the tokenizer adds special tokens to a prompt.
        precision: Precision that a library is asked to convert to; empty: that of the source.
        server: The model to ask; None: in process.
        labelled: Prompts answered before anything is timed: their answers are compared, and they warm up the model.
    """

    backend: str
    source: Path
    bundle: Path
    engine: EngineSettings
    new_tokens: int
    special_tokens: bool
    precision: str = ""
    server: ServerTarget | None = None
    labelled: list[str]

    def without_labelled(self) -> Self:
        """Return the job of a process that answers no labelled rows."""
        return replace(self, labelled=[])

    @property
    def options(self) -> dict[str, JsonValue]:
        """Options of a request: greedy, and as long as all answers are, whatever the model would like."""
        return greedy(self.new_tokens) | {"add_special_tokens": self.special_tokens}


def greedy(new_tokens: int) -> dict[str, JsonValue]:
    """Return the options of a greedy answer of ``new_tokens`` tokens, which no end-of-sequence token ends."""
    return {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "ignore_eos": True}
