"""Checks of this machine and of both environments, each with a hint how to fix what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serving.errors import SetupError, TritonizeError
from serving.front.envoy import find_envoy
from serving.install import (
    PROJECT,
    Install,
    check_numpy,
    find_install,
    numpy_version,
    prepare_backends,
    server_environment,
    stub_version,
)
from serving.isolation import SHARED_MEMORY
from serving.machine import cores, has_gpu
from serving.options import ServerAddress, ServerPort
from serving.probe import find_probes
from serving.server import check_ports
from serving.server_naming import naming_server
from serving.server_record import Running, find_running, log_file

MINIMUM_PYTHON = (3, 11)
DISK_GIB = 5
SHM_MIB = 64
PACKAGES = ("export", "serving", "benchmarks")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS_SCRIPT = "import json, onnxruntime; print(json.dumps([onnxruntime.__version__, onnxruntime.get_available_providers()]))"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: The name of the check.
        ok: Whether the check passed.
        found: What the check found.
        hint: What to do if the check failed.
    """

    check: str
    ok: bool
    found: str
    hint: str = ""


def examine(options: ServerAddress) -> Iterator[Finding]:
    """Run every check, the cheapest first. A check that cannot run is reported as a failed one."""
    yield _python()
    yield _import_names(Path.cwd())
    yield from _toolchain()
    try:
        install = find_install()
    except TritonizeError as error:
        yield Finding(check="tritonserver", ok=False, found=error.message, hint=error.hint)
    else:
        yield Finding(check="tritonserver", ok=True, found=str(install.binary))
        yield from _server(install)
    running = find_running(options.http_port)
    if running is not None:
        yield _running(running)
    yield _attempt("ports", lambda: _ports(options, running))
    yield _disk(Path.cwd())
    yield _attempt("shared memory", _shared_memory)


def _attempt(check: str, run: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, ok=True, found=run())
    except TritonizeError as error:
        return Finding(check=check, ok=False, found=error.message, hint=error.hint)
    except OSError as error:
        return Finding(check=check, ok=False, found=str(error), hint="create the environments again with: make setup")


def _python() -> Finding:
    return Finding(
        check="Python",
        ok=sys.version_info >= MINIMUM_PYTHON,
        found=".".join(map(str, sys.version_info[:3])),
        hint="tritonize needs Python 3.11 or later",
    )


def _import_names(folder: Path) -> Finding:
    """Look for folders and files that Python, started in this folder, would import in place of tritonize's packages."""
    candidates = [folder / name for package in PACKAGES for name in (f"{package}/__init__.py", f"{package}.py")]
    hiding = [path for path in candidates if path.exists() and folder.resolve() != PROJECT.resolve()]
    return Finding(
        check="import names",
        ok=not hiding,
        found=", ".join(map(str, hiding)) or f"{', '.join(PACKAGES)}: nothing in {folder} hides them",
        hint="Python started in this folder imports these in place of tritonize's packages: rename them, or start it elsewhere",
    )


def _toolchain() -> Iterator[Finding]:
    installed = {}
    for name in RUNTIMES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    found = ", ".join(f"{name} {number}" for name, number in installed.items()) or "none"
    yield Finding(
        check="onnxruntime in .venv",
        ok=len(installed) == 1,
        found=found,
        hint="install exactly one of onnxruntime and onnxruntime-gpu: rm -r .venv && make setup",
    )
    if len(installed) == 1:
        yield _providers("providers in .venv", sys.executable)


def _providers(check: str, python: str) -> Finding:
    run = subprocess.run([python, "-c", PROVIDERS_SCRIPT], capture_output=True, text=True, check=False)
    if run.returncode:
        return Finding(
            check=check,
            ok=False,
            found=(run.stderr.strip().splitlines() or ["no error message"])[-1],
            hint="create the environment again with: make setup",
        )
    number, providers = json.loads(run.stdout.splitlines()[-1])
    wanted = "CUDAExecutionProvider" if has_gpu() else "CPUExecutionProvider"
    return Finding(
        check=check,
        ok=wanted in providers,
        found=f"{number}: {', '.join(providers)}",
        hint=f"this machine needs {wanted}: rm -r .venv .triton && make setup",
    )


def _server(install: Install) -> Iterator[Finding]:
    if install.wheel is not None:
        yield _attempt("numpy in .triton", lambda: _triton_numpy(install))
        yield _attempt("onnxruntime in .triton", lambda: _triton_runtime(install))
        yield _attempt("Python backend", lambda: _backends(install))
    yield _attempt("server starts", lambda: _starts(install))
    yield _attempt("proxy", _proxy)


def _triton_numpy(install: Install) -> str:
    check_numpy(install)
    return numpy_version(install) or ""


def _triton_runtime(install: Install) -> str:
    assert install.environment is not None
    finding = _providers("", str(install.environment / "bin" / "python"))
    if not finding.ok:
        raise TritonizeError(finding.found, hint=finding.hint)
    return finding.found


def _backends(install: Install) -> str:
    with tempfile.TemporaryDirectory(prefix="tritonize-doctor-") as folder:
        prepare_backends(install, Path(folder))
    return f"stub for Python {stub_version(install)}"


def _starts(install: Install) -> str:
    run = subprocess.run([install.binary, "--help"], env=server_environment(install), capture_output=True, text=True, check=False)
    text = run.stdout + run.stderr
    if "--model-repository" not in text:
        raise TritonizeError(
            f"it does not run: {(text.strip().splitlines() or ['no output'])[-1]}",
            hint="install the missing library with: make setup",
        )
    return "all its libraries are installed"


def _proxy() -> str:
    envoy = find_envoy()
    run = subprocess.run([envoy, "--version"], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SetupError(f"{envoy} does not run: {run.stderr.strip()[-200:]}", hint="install it with: make setup")
    return f"Envoy {run.stdout.rsplit('/', 4)[1]}"


def _running(running: Running) -> Finding:
    """Report what a server of this user serves."""
    if not running.ready:
        return Finding(
            check="server",
            ok=False,
            found=f"process {running.pid} is not ready",
            hint=f"see its log: {log_file(running.http_port)}",
        )
    served = ", ".join(probe.ensemble for probe in find_probes(Path(running.served)))
    left_out = "; ".join(f"{name}: {reason}" for name, reason in running.left_out.items())
    found = f"it serves {served}" + (f"; left out: {', '.join(running.left_out)}" if left_out else "")
    return Finding(
        check="server", ok=not left_out, found=found, hint=naming_server(left_out, ServerPort(http_port=running.http_port))
    )


def _ports(options: ServerAddress, running: Running | None) -> str:
    if running is not None:
        return f"used by your server (process {running.pid})"
    check_ports(options)
    return f"{options.http_port}, {options.grpc_port}, {options.metrics_port} on {options.host} are free"


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    return Finding(
        check="disk",
        ok=free > DISK_GIB,
        found=f"{free:.0f} GiB free",
        hint=f"artifacts and environments need {DISK_GIB} GiB: free some space",
    )


def _shared_memory() -> str:
    free = shutil.disk_usage(SHARED_MEMORY).free / 2**20
    wanted = SHM_MIB * (2 + cores())
    if free < wanted:
        hint = f"Triton passes tensors between its processes there and needs {wanted} MiB: docker run --shm-size=1g"
        raise TritonizeError(f"{free:.0f} MiB free", hint=hint)
    return f"{free:.0f} MiB free"
