"""Entry point of the command ``tritonize``, which says what to install if only the client is installed."""

from __future__ import annotations

import sys

from serving.toolchain import toolchain


def main() -> int:
    """Run the command line. Without the toolchain it is one line on standard error.

    Returns:
        The exit code.
    """
    try:
        with toolchain("the command tritonize"):
            from export.cli import main as run
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return run()
