"""Prometheus metrics of a supervisor, on its health port: whether packages are ready, and how often it has restarted Triton."""

from __future__ import annotations

from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_page(packages: Mapping[str, bool], *, is_ready: bool, restarts: int) -> str:
    """Return the page.

    Args:
        packages: Whether each package is ready, by its name. Names of packages have no characters that need escapes.
        is_ready: Whether the server is ready.
        restarts: How often Triton was restarted.
    """
    lines = [
        "# HELP tritonize_ready 1 while every package that the server has loaded answers; 0 also while it stops.",
        "# TYPE tritonize_ready gauge",
        f"tritonize_ready {int(is_ready)}",
        "# HELP tritonize_restarts_total How often the supervisor has restarted Triton.",
        "# TYPE tritonize_restarts_total counter",
        f"tritonize_restarts_total {restarts}",
        "# HELP tritonize_package_ready 1 while the package answers; 0 if it does not, or is left out because it is damaged.",
        "# TYPE tritonize_package_ready gauge",
        *(f'tritonize_package_ready{{package="{name}"}} {int(ready)}' for name, ready in sorted(packages.items())),
    ]
    return "\n".join(lines) + "\n"
