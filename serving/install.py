"""Where tritonserver lives on this machine, and the backend directory it is started with."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from serving.artifact import sha256
from serving.errors import SetupError

PROJECT = Path(__file__).parents[1]
STAND_IN = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
ENVIRONMENT_VARIABLE = "TRITONIZE_TRITON_ENV"
IMAGE_VERSION = "NVIDIA_TRITON_SERVER_VERSION"
"""Variable in which the NGC image has its version."""
RECORDED = ("nvidia_pytriton", "onnxruntime", "onnxruntime_gpu", "numpy")
"""In the embedded server's environment: the wheel that carries the server, what runs the models, what the stubs load."""


@dataclass(frozen=True, kw_only=True)
class Install:
    """A tritonserver that can be started.

    Args:
        binary: the executable.
        environment: virtual environment whose Python the stubs use; None for a system-wide install.
        wheel: ``pytriton/tritonserver`` of the wheel that carries the server; None for a system-wide install.
    """

    binary: Path
    environment: Path | None = None
    wheel: Path | None = None


QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""Recent releases of ONNX Runtime report their use to its makers unless they are told not to."""


def triton_environment() -> Path:
    """The embedded server's virtual environment: ``.triton`` beside this package, or where ``TRITONIZE_TRITON_ENV`` points."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE, PROJECT / ".triton"))


def site_packages(environment: Path) -> Path:
    """``site-packages`` of a virtual environment.

    Raises:
        SetupError: there is none.
    """
    found = sorted(environment.glob("lib/python3*/site-packages"))
    if not found:
        raise SetupError(f"no virtual environment at {environment}", hint="create it with: make setup")
    return found[0]


def find_install() -> Install:
    """tritonserver on PATH (as in the NGC image), else the one in the ``.triton`` environment.

    Raises:
        SetupError: neither is there.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Install(binary=Path(on_path).resolve())
    environment = triton_environment()
    wheel = site_packages(environment) / "pytriton" / "tritonserver"
    binary = wheel / "bin" / "tritonserver"
    if not binary.is_file():
        raise SetupError("no tritonserver on PATH, and none in the .triton environment", hint="create it with: make setup")
    return Install(binary=binary, environment=environment, wheel=wheel)


def stub_version(install: Install) -> str:
    """``3.11``: the Python whose packages the stubs load, the first ``python3`` on the server's PATH."""
    assert install.environment is not None
    return site_packages(install.environment).parent.name.removeprefix("python")


def numpy_version(install: Install) -> str | None:
    """Version of the numpy the stubs will load, read from its metadata; None where there is none."""
    assert install.environment is not None
    return _installed(install.environment).get("numpy")


def server_versions() -> dict[str, str]:
    """What answers depend on at the server's side, and their speed, by name: versions, of a system-wide server its checksum.

    Nothing is imported or started for it. Empty where there is no server.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        image = {"image": os.environ[IMAGE_VERSION]} if IMAGE_VERSION in os.environ else {}
        return image | {"tritonserver": sha256(Path(on_path))}
    return {name: version for name, version in _installed(triton_environment()).items() if name in RECORDED}


def _installed(environment: Path) -> dict[str, str]:
    """Versions of what is installed in a virtual environment, by name with underscores, read from the names of its metadata."""
    found = sorted(environment.glob("lib/python3*/site-packages/*.dist-info"))
    return dict(metadata.name.removesuffix(".dist-info").split("-", 1) for metadata in found)


def check_numpy(install: Install) -> None:
    """Refuse numpy 2 and later.

    Raises:
        SetupError: the stubs were built against numpy 1; with a newer one tensors arrive, silently, as zeros.
    """
    version = numpy_version(install)
    if version is None:
        raise SetupError("the .triton environment has no numpy", hint="create it anew with: make setup")
    if int(version.split(".")[0]) >= 2:
        raise SetupError(
            f"the .triton environment has numpy {version}; its server reads every tensor as zeros with numpy 2 or later",
            hint="create it anew with: rm -r .triton && make setup",
        )


def prepare_backends(install: Install, folder: Path) -> Path | None:
    """Lay out a backend directory in ``folder``: the wheel's Python backend, and the stand-in for the onnxruntime backend.

    Copies, because Triton refuses backend libraries behind links that lead out of the directory.

    Returns:
        The directory; None where the install has its own backends.

    Raises:
        SetupError: the wheel has no stub for the environment's Python, or numpy is too new.
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
    shutil.copy(stub, folder / "python")
    (folder / "onnxruntime").mkdir()
    shutil.copy(STAND_IN, folder / "onnxruntime")
    return folder


def server_environment(install: Install) -> dict[str, str]:
    """Environment variables tritonserver is started with."""
    variables = dict(os.environ) | QUIET
    if install.environment is not None and install.wheel is not None:
        variables["PATH"] = f"{install.environment / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
        libraries = site_packages(install.environment) / "nvidia_pytriton.libs"
        variables["LD_LIBRARY_PATH"] = f"{libraries}{os.pathsep}{variables.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep)
        variables.pop("PYTHONPATH", None)
        variables.pop("PYTHONHOME", None)
    return variables
