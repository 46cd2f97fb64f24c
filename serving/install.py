"""Find tritonserver on this machine, and prepare the environment and the backends that it runs with."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from serving.errors import SetupError
from serving.huge_pages import with_huge_pages

PROJECT = Path(__file__).parents[1]
OVERLAY = "environment"
"""Folder in the backend directory with the environment that the stubs run in."""
STAND_IN = tuple(Path(__file__).parent / path for path in ("backends/onnxruntime/model.py", "runtime/model_session.py"))
"""The modules of the replacement for the ``onnxruntime`` backend."""
IMPORTS = Path(__file__).parent / "backends" / "imports.py"
ENVIRONMENT_VARIABLE = "TRITONIZE_TRITON_ENV"
IMAGE_VERSION = "NVIDIA_TRITON_SERVER_VERSION"
"""Environment variable that holds the version of the NGC image."""
RECORDED = ("nvidia_pytriton", "onnxruntime", "onnxruntime_gpu", "numpy")
"""Packages of the embedded server's environment whose versions are recorded: the server, ONNX Runtime and numpy."""


@dataclass(frozen=True, kw_only=True)
class Install:
    """A tritonserver that can be started.

    Attributes:
        binary: The executable.
        environment: The virtual environment whose Python the stubs use. None for a system-wide installation.
        wheel: The folder ``pytriton/tritonserver`` of the wheel that contains the server. None for a system-wide installation.
    """

    binary: Path
    environment: Path | None = None
    wheel: Path | None = None


WEIGHTS_FOLDER = "TRITONIZE_WEIGHTS"
"""Environment variable with the folder for the weights that the instances of a model share."""
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
"""Turns off the usage reports that recent releases of ONNX Runtime send to its makers."""


def triton_environment() -> Path:
    """Return the embedded server's virtual environment: ``$TRITONIZE_TRITON_ENV``, or ``.triton`` in the project folder."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE, PROJECT / ".triton"))


def site_packages(environment: Path) -> Path:
    """Return the ``site-packages`` folder of a virtual environment.

    Raises:
        SetupError: There is no virtual environment.
    """
    found = sorted(environment.glob("lib/python3*/site-packages"))
    if not found:
        raise SetupError(f"no virtual environment at {environment}", hint="create it with: make setup")
    return found[0]


def find_install() -> Install:
    """Find tritonserver on PATH (as in the NGC image), or else in the ``.triton`` environment.

    Raises:
        SetupError: There is no tritonserver.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Install(binary=Path(on_path).resolve())
    environment = triton_environment()
    wheel = site_packages(environment) / "pytriton" / "tritonserver"
    binary = wheel / "bin" / "tritonserver"
    if not binary.is_file():
        raise SetupError("no tritonserver on PATH or in the .triton environment", hint="install it with: make setup")
    return Install(binary=binary, environment=environment, wheel=wheel)


def stub_version(install: Install) -> str:
    """Return the Python version, such as ``3.11``, that the stubs run with: the first ``python3`` on the server's PATH."""
    assert install.environment is not None
    return site_packages(install.environment).parent.name.removeprefix("python")


def numpy_version(install: Install) -> str | None:
    """Return the version of numpy that the stubs will import, from its metadata, or None if it is not installed."""
    assert install.environment is not None
    return _version(install.environment, "numpy")


def server_versions() -> dict[str, str]:
    """Return the versions on the server's side that answers and their speed depend on, by name.

    For a system-wide server this is the checksum of its executable, and the version of the NGC image. Nothing is imported or
    started. The result is empty if there is no server.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        image = {"image": os.environ[IMAGE_VERSION]} if IMAGE_VERSION in os.environ else {}
        from serving.artifact import sha256

        return image | {"tritonserver": sha256(Path(on_path))}
    versions = {name: _version(triton_environment(), name) for name in RECORDED}
    return {name: version for name, version in versions.items() if version is not None}


def _version(environment: Path, package: str) -> str | None:
    """Return the version of a package in another virtual environment, or None if it is not installed there."""
    folders = list(map(str, environment.glob("lib/python3*/site-packages")))
    return next((found.version for found in distributions(name=package, path=folders)), None)


def check_numpy(install: Install) -> None:
    """Check that the stubs will import numpy 1, which they were built against.

    Raises:
        SetupError: There is no numpy, or a later one, with which every tensor would silently arrive as zeros.
    """
    version = numpy_version(install)
    if version is None:
        raise SetupError("the .triton environment has no numpy", hint="create it again with: rm -r .triton && make setup")
    if int(version.split(".")[0]) >= 2:
        raise SetupError(
            f"the .triton environment has numpy {version}; with numpy 2 or later its server reads every tensor as zeros",
            hint="create it again with: rm -r .triton && make setup",
        )


def prepare_backends(install: Install, folder: Path) -> Path | None:
    """Create a backend directory with the wheel's Python backend and the replacement for the onnxruntime backend.

    It also holds the environment that the stubs run in, see :func:`server_environment`.

    The files are copied, because Triton refuses backend libraries behind links that lead out of the directory.

    Args:
        install: The tritonserver to run.
        folder: The empty folder that becomes the backend directory.

    Returns:
        The directory, or None if the installation has its own backends.

    Raises:
        SetupError: The wheel has no stub for the environment's Python, or numpy is not version 1.
    """
    if install.wheel is None:
        return None
    check_numpy(install)
    version = stub_version(install)
    stub = install.wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise SetupError(
            f"the embedded server has no Python backend for Python {version}", hint="create .triton with Python 3.11 or 3.12"
        )
    shutil.copytree(install.wheel / "backends" / "python", folder / "python", ignore=shutil.ignore_patterns("__pycache__"))
    _write_overlay(install, folder.absolute() / OVERLAY)
    shutil.copy(stub, folder / "python")
    (folder / "onnxruntime").mkdir()
    for path in STAND_IN:
        shutil.copy(path, folder / "onnxruntime")
    return folder


def _write_overlay(install: Install, overlay: Path) -> None:
    """Create a virtual environment over that of the server, whose stubs read ``__pycache__`` of installed packages only.

    A stub ignores Python's environment variables, and it imports the model before anything else. But as every Python it first runs
    the ``.pth`` files of its environment, which is that of the first ``python3`` on its PATH.
    """
    assert install.environment is not None
    packages = site_packages(install.environment)
    python = install.environment / "bin" / "python3"
    (overlay / "bin").mkdir(parents=True)
    (overlay / "bin" / "python3").symlink_to(python.resolve())
    (overlay / "pyvenv.cfg").write_text(f"home = {python.resolve().parent}\n", encoding="utf-8")
    ours = overlay / packages.relative_to(install.environment)
    ours.mkdir(parents=True)
    shutil.copy(IMPORTS, ours / "tritonize_imports.py")
    installed = os.fspath(packages.absolute())
    line = f"import site, tritonize_imports; tritonize_imports.ignore_bytecode({installed!r}); site.addsitedir({installed!r})\n"
    (ours / "tritonize.pth").write_text(line, encoding="utf-8")


def server_environment(install: Install, backends: Path | None = None) -> dict[str, str]:
    """Return the environment variables that tritonserver is started with.

    Args:
        install: The tritonserver to run.
        backends: What :func:`prepare_backends` returned.
    """
    variables = with_huge_pages(os.environ) | NO_TELEMETRY
    if backends is not None:
        variables[WEIGHTS_FOLDER] = os.fspath(backends.absolute() / "weights")
    if install.environment is not None and install.wheel is not None:
        environment = install.environment if backends is None else backends.absolute() / OVERLAY
        variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
        libraries = site_packages(install.environment) / "nvidia_pytriton.libs"
        variables["LD_LIBRARY_PATH"] = f"{libraries}{os.pathsep}{variables.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep)
        variables.pop("PYTHONPATH", None)
        variables.pop("PYTHONHOME", None)
    return variables
