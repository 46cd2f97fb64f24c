"""What the models that generate have in common in Triton's process: how they begin, take requests, and end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import triton_python_backend_utils as pb_utils

from ..refusals import refused
from .engine import Engine, QueueFullError
from .engine_metrics import EngineMetrics
from .engine_request import GenerationRequest
from .engine_settings import EngineSettings
from .outbox import Outbox, Part
from .process_life import end_process, end_with_parent
from .recipient import Recipient
from .responses import error_response
from .step_graph import StepGraph


class GenerationService(Generic[Part]):
    """The engine of one model, whose thread generates, and its outbox, whose thread answers.

    If one of the two cannot go on, the process ends. It also ends with its server.

    Args:
        graph: The graph with its cache.
        settings: How the engine works.
        args: What Triton hands to ``initialize``.

    Attributes:
        outbox: Sends the parts of answers.
    """

    def __init__(self, graph: StepGraph, settings: EngineSettings, args: Mapping[str, str]) -> None:
        self.outbox: Outbox[Part] = Outbox(_end)
        self._engine = Engine(graph, chunk=settings.chunk, max_waiting=settings.max_waiting, on_failure=_end, ask=self.outbox.ask)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = EngineMetrics(self._engine, labels, run=self.outbox.run)
        self._engine.start()
        end_with_parent()

    def take(self, requests: Iterable[Any], read: Callable[[Any, Recipient], Sequence[GenerationRequest]]) -> None:
        """Let requests of Triton wait for their turn. One that cannot be used is answered at once.

        If the queue is full, a request is not read.

        Args:
            requests: What Triton hands to the model.
            read: Makes of one of them what the engine computes for its recipient, which gets the answer.
        """
        for request in requests:
            recipient = Recipient(request.get_response_sender())
            try:
                self._engine.require_room()
                self._engine.submit(*read(request, recipient))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
                _refuse(recipient, error)

    def close(self) -> None:
        """End what still runs, then tell what was counted, then send what is there: each comes from the one before."""
        if not self._engine.close():
            pb_utils.Logger.log_error("the engine has not ended its round: requests that run may be left without an answer")
        self._metrics.close()
        if not self.outbox.close():
            pb_utils.Logger.log_error("the answers are not sent yet: the last ones may be lost")


def read_model(args: Mapping[str, str]) -> tuple[Path, dict[str, Any], EngineSettings]:
    """Return the version folder of a model, its ``settings.json``, and those of its engine.

    Args:
        args: What Triton hands to ``initialize``.

    Raises:
        ValueError: A setting of the engine is missing, unknown or wrong.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
    folder = Path(args["model_repository"]) / args["model_version"]
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return folder, settings, EngineSettings.from_settings(settings)


def deadline_of(request: Any, timeout: int = 0) -> float | None:
    """Return when a request of Triton is given up, as :func:`time.monotonic` counts; None: never.

    Args:
        request: The request.
        timeout: Microseconds that it may take where Triton does not know it; 0: Triton does, or there is no limit.
    """
    microseconds = request.timeout() or timeout
    return time.monotonic() + microseconds / 1e6 if microseconds else None


def _refuse(recipient: Recipient, error: BaseException) -> None:
    response = error_response if isinstance(error, QueueFullError) else refused
    recipient.send(lambda: response(error), is_last=True)


def _end(error: BaseException) -> None:
    end_process(error, pb_utils.Logger.log_error)
