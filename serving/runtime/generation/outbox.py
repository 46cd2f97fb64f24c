"""The thread that talks with Triton, so that the engine does not wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .engine_request import Addressee

Part = TypeVar("Part")
Part_contra = TypeVar("Part_contra", contravariant=True)


class OutgoingAnswer(Protocol[Part_contra]):
    """The answer to one request, which is sent in parts."""

    def send(self, parts: Sequence[Part_contra]) -> None:
        """Send the next parts, one or more; in the outbox's thread."""
        ...


@dataclass(frozen=True)
class _Question:
    recipients: Sequence[Addressee]
    answered: threading.Event = field(default_factory=threading.Event)


class Outbox(Generic[Part]):
    """Sends parts of answers, and asks whether clients have left, in a thread of its own.

    Parts of one answer that wait together are sent together.

    Args:
        on_failure: Is called in that thread if it cannot go on.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._entries: queue.SimpleQueue[tuple[OutgoingAnswer[Part], Part] | _Question | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, answer: OutgoingAnswer[Part], part: Part) -> None:
        """Send a part after those that were put before."""
        self._entries.put((answer, part))

    def ask(self, recipients: Iterable[Addressee]) -> threading.Event:
        """Have recipients asked, behind the parts that were put before; return what is set when all have answered."""
        question = _Question(list(recipients))
        self._entries.put(question)
        return question.answered

    def run(self, task: Callable[[], None]) -> None:
        """Have a function called that talks with Triton about something else."""
        self._entries.put(task)

    def close(self, timeout: float = 5.0) -> bool:
        """Send what was put, and end the thread; return whether it has ended.

        Args:
            timeout: Most seconds to wait for the thread.
        """
        self._entries.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except BaseException as error:
            self._on_failure(error)

    def _work(self) -> bool:
        """Do all that waits; return whether more may come."""
        waiting = [self._entries.get()]
        while not self._entries.empty():
            waiting.append(self._entries.get())
        parts: dict[OutgoingAnswer[Part], list[Part]] = {}
        questions: list[_Question] = []
        tasks: list[Callable[[], None]] = []
        for entry in waiting:
            if isinstance(entry, _Question):
                questions.append(entry)
            elif callable(entry):
                tasks.append(entry)
            elif entry is not None:
                parts.setdefault(entry[0], []).append(entry[1])
        for answer, own in parts.items():
            answer.send(own)
        for question in questions:
            for recipient in question.recipients:
                recipient.ask()
            question.answered.set()
        for task in tasks:
            task()
        return None not in waiting
