"""The file system of Debian 12 that images begin with, made with mmdebstrap."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path

from serving.errors import SetupError

RELEASE, PYTHON = "bookworm", "3.11"
"""The release of Debian and its version of Python."""
PACKAGES = (f"libpython{PYTHON}", "libstdc++6", "python3")
"""Packages that the server needs. The stubs of the Python backend load Python as a library."""
LEFT_OUT = ("doc", "info", "lintian", "locale", "man")
"""Folders of ``/usr/share`` that nothing in an image reads."""
INSTALL = "install it: apt-get install mmdebstrap debian-archive-keyring"


def make_debian(target: Path, *, created: datetime) -> None:
    """Make the file system, from the packages of Debian's mirrors.

    Args:
        target: The tar file to write. It appears when it is complete.
        created: The time that no file is later than.

    Raises:
        SetupError: mmdebstrap is not installed, or it failed.
    """
    program = shutil.which("mmdebstrap")
    if program is None:
        raise SetupError("an image needs mmdebstrap, which is not installed", hint=INSTALL)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".debian.") as folder:
        made = Path(folder) / "debian.tar"
        command = [
            program,
            "--variant=essential",
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            "--format=tar",
            RELEASE,
            os.fspath(made),
        ]
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(int(created.timestamp()))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
            reason = lines[0].removeprefix("E: ") if lines else f"exit code {done.returncode}"
            raise SetupError(f"mmdebstrap could not make the file system of Debian: {reason}", hint="see: man mmdebstrap")
        made.rename(target)
