"""Triton's OpenTelemetry traces: the flags that switch them on.

Each request has a span, with one for each model that it passes and one for each computation. Triton sends them from a thread of
its own; if the collector does not answer, they are dropped.
"""

from __future__ import annotations

from serving.watch_options import WatchOptions

SERVICE = "tritonize"
"""The name of the service in the traces."""
NEVER = 2**31 - 1
"""Triton traces one request of so many, and those whose client traces them. Its rate 0 would be taken as 1."""


def trace_flags(options: WatchOptions) -> list[str]:
    """Return tritonserver's flags; none without ``--trace``."""
    if options.trace is None:
        return []
    settings = (
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        f"rate={round(1 / options.trace_rate) if options.trace_rate else NEVER}",
        f"opentelemetry,url={options.trace}",
        f"opentelemetry,resource=service.name={SERVICE}",
    )
    return [f"--trace-config={setting}" for setting in settings]
