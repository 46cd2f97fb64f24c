"""What is served: the package in the model repository, and the process of the server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.processes import listening_process
from serving.artifact import MANIFEST, read_manifest, sha256
from serving.errors import ArtifactError
from serving.layout import current_folder, weights_folder
from serving.manifests import RepositoryManifest
from serving.options import ServerAddress

LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - compared, not bound
_PACKAGE_AGAIN = "write it again with: tritonize package"
GRAPHS = ("model.onnx", "decoder.onnx")
"""Files of which a package has one: an encoder-decoder has the latter, with its encoder beside it."""


@dataclass(frozen=True, kw_only=True)
class ServedPackage:
    """A package in the repository.

    Attributes:
        file: The ONNX file that is served.
        manifest: The manifest that ``tritonize package`` wrote.
        sha256: Checksum of the ONNX file, which is still the packaged one.
    """

    name: str
    repository: Path
    file: Path
    precision: str
    manifest: RepositoryManifest
    sha256: str


def package_settings(package: ServedPackage) -> dict[str, str | int]:
    """Return the settings that a package has, without those of other kinds of models."""
    return {name: value for name, value in asdict(package.manifest.configuration).items() if value is not None}


def read_package(repository: Path, name: str) -> ServedPackage:
    """Read a package and check its ONNX file.

    Raises:
        ArtifactError: It is missing, or its ONNX file is not the one that was packaged.
    """
    manifest = read_manifest(current_folder(repository, name), RepositoryManifest)
    if manifest.layout == "vllm":
        raise ArtifactError(
            f"{repository / name} is packaged for vLLM, which is not measured here",
            hint="package it with --engine onnxruntime, or measure without a server: --in-process",
        )
    version = weights_folder(name, manifest.layout, manifest.generation)
    file = next((path for graph in GRAPHS if (path := f"{version}/{graph}") in manifest.files), None)
    if file is None:
        raise ArtifactError(f"the manifest of {repository / name} lists no graph in {version}", hint=_PACKAGE_AGAIN)
    packaged = manifest.files[file]
    found = sha256(repository / file)
    if found != packaged:
        raise ArtifactError(f"{repository / file} is not the file that was packaged: its checksum differs", hint=_PACKAGE_AGAIN)
    return ServedPackage(
        name=name, repository=repository, file=repository / file, precision=manifest.precision, manifest=manifest, sha256=found
    )


def require_same_bundle(package: ServedPackage, bundle: Path) -> None:
    """Check that a package was made from a bundle as it is now.

    Raises:
        ArtifactError: It was made from another bundle, so its answers would be compared with another original.
    """
    if package.manifest.inputs.files.get(MANIFEST) != sha256(bundle / MANIFEST):
        raise ArtifactError(f"{package.repository / package.name} was not packaged from {bundle} as it is now", hint=_PACKAGE_AGAIN)


def check_process(address: ServerAddress, package: ServedPackage) -> psutil.Process | None:
    """Find the server's process and check that it serves the package.

    Returns:
        The process whose tree is the server: the supervisor, with the proxy and Triton below it, or Triton where clients reach it
        directly. None if it is not visible from here (another machine, or a container).

    Raises:
        ArtifactError: It serves another repository, or was started before the package was written.
    """
    listening = listening_process(address.grpc_port) if address.host in LOCAL else None
    if listening is None:
        return None
    root, process = _server_of(listening)
    flag = "--model-repository="
    served = [process.cwd() / Path(word.removeprefix(flag)) for word in process.cmdline() if word.startswith(flag)]
    generations = {_generation(folder, package.name) for folder in served}
    is_served = _generation(package.repository, package.name) in generations
    older = not is_served and any(folder.parent == package.repository.resolve() / package.name for folder in generations)
    if generations and not is_served and not older:
        found = ", ".join(map(str, generations))
        raise ArtifactError(
            f"the server on port {address.grpc_port} serves {found}, not {package.repository / package.name}",
            hint="name the right repository with --repository, or the right server with --grpc-port",
        )
    reads_repository = any(folder.resolve() == package.repository.resolve() for folder in served)
    packaged = package.manifest.created.timestamp()
    # the manifest's time is in whole seconds
    if older or (process.create_time() < packaged - 1 and (reads_repository or not generations)):
        raise ArtifactError(
            f"the server on port {address.grpc_port} was started before {package.name} was packaged, so it serves an older package",
            hint=f"promote it with: tritonize promote {package.name}; or restart the server",
        )
    return root


def _generation(models: Path, name: str) -> Path:
    """Return the folder of the generation that a folder of models holds of a package."""
    return current_folder(models, name).resolve()


def _server_of(listening: psutil.Process) -> tuple[psutil.Process, psutil.Process]:
    """Return the root of the server's process tree, and Triton in it, by the process that listens for clients."""
    supervisor = listening.parent()
    if listening.name() == "envoy" and supervisor is not None:
        for process in supervisor.children():
            if process.name() == "tritonserver":
                return supervisor, process
    return listening, listening
