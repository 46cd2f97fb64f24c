"""What an image has besides Debian: Triton where the official image has it, Envoy, and the packages of ``tritonize serve``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from serving.errors import SetupError
from serving.install import PROJECT, STAND_IN
from serving.oci.debian import PYTHON

PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"
SERVER = "opt/tritonserver"
GLIBC = (36, 35, 34, 31, 28, 27, 17, 12, 5)
"""Versions of the C library whose wheels run on that of Debian 12, 2.36."""
COMMAND = """#!/usr/bin/python3
import sys

from export.entry import main

sys.exit(main())
"""


def install_server(root: Path, scratch: Path) -> None:
    """Install everything into a folder.

    Args:
        root: An empty folder, which becomes the root of the layer.
        scratch: An empty folder for what is needed meanwhile.

    Raises:
        SetupError: This is not a clone of the project, or pip failed.
    """
    constraints = PROJECT / ".constraints" / "triton.txt"
    if not constraints.is_file() or not (PROJECT / "pyproject.toml").is_file():
        raise SetupError("an image is made from a clone of the project", hint="clone it, and run make setup there")
    packages = root / PACKAGES
    _pip("wheel", "--no-deps", "--wheel-dir", os.fspath(scratch), os.fspath(PROJECT))
    (wheel,) = scratch.glob("tritonize-*.whl")
    pinned = ("--constraint", os.fspath(constraints))
    _pip("install", *_into(packages), *pinned, f"tritonize[server,signing] @ {wheel.as_uri()}")
    _pip("install", *_into(scratch / "wheel"), *pinned, "--no-deps", "nvidia-pytriton")
    shutil.rmtree(packages / "bin")  # of the Python that runs here, and the load generator of tritonclient
    _install_triton(scratch / "wheel", root / SERVER, packages)
    programs = root / "usr" / "local" / "bin"
    programs.mkdir(parents=True)
    (programs / "envoy").symlink_to(f"/{PACKAGES}/envoy/_bin/envoy")
    (programs / "tritonize").write_text(COMMAND, encoding="utf-8")
    (programs / "tritonize").chmod(0o755)


def _install_triton(wheel: Path, server: Path, packages: Path) -> None:
    """Arrange the server of the wheel as in the official image, where its backends are found without an option."""
    found = wheel / "pytriton" / "tritonserver"
    shutil.copytree(found / "bin", server / "bin")
    shutil.copytree(wheel / "nvidia_pytriton.libs", server / "lib")
    backend = server / "backends" / "python"
    shutil.copytree(found / "backends" / "python", backend, ignore=shutil.ignore_patterns("__pycache__"))
    stub = backend / "triton_python_backend_stub"
    shutil.copy(found / "python_backend_stubs" / PYTHON / stub.name, stub)
    for program in (stub, server / "bin" / "tritonserver"):
        program.chmod(0o755)  # zip files of wheels may have lost it
    (server / "backends" / "onnxruntime").mkdir()
    for path in STAND_IN:
        shutil.copy(packages / path.relative_to(PROJECT), server / "backends" / "onnxruntime")


def _into(target: Path) -> list[str]:
    """Return the options that make pip install wheels for the Python of the image, whatever Python runs here."""
    platforms = [f"manylinux_2_{minor}_{platform.machine()}" for minor in GLIBC] + [f"manylinux2014_{platform.machine()}"]
    chosen = [f"--platform={name}" for name in platforms]
    return ["--target", os.fspath(target), "--python-version", PYTHON, *chosen, "--only-binary=:all:", "--no-compile"]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[0].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        raise SetupError(f"pip could not install the packages of the image: {reason}", hint=f"run: {' '.join(command)}")
