"""Options of the health port and of the way a server stops. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from serving.option_fields import Option

WATCHED_DRAIN_SECONDS = 4.0
"""How long a server that is asked to stop goes on serving if somebody asks for its health: a proxy needs that time to notice."""
LONGEST_DRAIN_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class HealthOptions:
    """How a server tells whether it is ready, and how long it says that it stops before it does."""

    health_port: Annotated[
        int | None,
        Option(
            "Port of the health checks /livez, /startupz and /readyz.",
            minimum=1,
            maximum=65535,
            default_text="the metrics port + 1, 8003",
        ),
    ] = None
    drain_seconds: Annotated[
        float | None,
        Option(
            "Seconds for which a server that is asked to stop goes on serving while /readyz already says 503. A second SIGTERM or "
            "Ctrl-C ends them.",
            minimum=0,
            maximum=LONGEST_DRAIN_SECONDS,
            default_text=f"{WATCHED_DRAIN_SECONDS:g} if somebody asked for its health in the last minute, otherwise 0",
        ),
    ] = None
