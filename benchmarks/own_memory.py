"""Memory of this process. Imports nothing: it is measured where every import counts."""

from __future__ import annotations

from pathlib import Path


def peak_rss_mib() -> float:
    """Read the peak resident set of this process, MiB; ``ru_maxrss`` would be inherited from the parent process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
