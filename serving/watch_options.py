"""Options of what a server tells about its work: traces and the log. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from serving.option_fields import Option

LogFormat = Literal["text", "json"]
"""How the lines of a server's log are written."""


def parse_collector(text: str) -> str:
    """Check the address of an OpenTelemetry collector.

    Args:
        text: The address.

    Returns:
        The address.

    Raises:
        ValueError: It is not one that Triton can send traces to.
    """
    example = "use one such as http://127.0.0.1:4318/v1/traces"
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise ValueError(f"{text!r} is not an address: {example}") from None
    if url.scheme != "http":
        raise ValueError(f"{text!r} does not begin with http://, the only protocol of Triton's traces: {example}")
    if (
        not url.hostname
        or url.path in {"", "/"}
        or url.query
        or url.fragment
        or "," in text
        or not text.isprintable()
        or " " in text
    ):
        raise ValueError(f"{text!r} is not the whole address of a collector: {example}")
    return text


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What a server tells about its work."""

    trace: Annotated[
        str | None,
        Option(
            "OpenTelemetry collector that gets the traces of requests (OTLP over HTTP). A request whose client traces it is always "
            "traced, as part of the client's trace.",
            metavar="URL",
            parse=parse_collector,
            default_text="no traces",
        ),
    ] = None
    trace_rate: Annotated[
        float, Option("Share of the other requests that are traced: 0.01 is one in 100.", minimum=0, maximum=1)
    ] = 0.01
    log_format: Annotated[
        LogFormat,
        Option(
            "Format of the log; text: lines for people; json: one JSON object a line, with time, level, source and message, and "
            "where they are known model and request_id."
        ),
    ] = "text"
