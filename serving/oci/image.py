"""Make an image of the embedded server with packaged models: Debian, the server and the models are a layer each."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ArtifactError, SetupError
from serving.image_options import ImageOptions
from serving.install import NO_TELEMETRY
from serving.integrity import CheckedEnsemble, check_ensemble
from serving.layout import CONFIG, generation_folders
from serving.oci.archive import ImageArchive
from serving.oci.debian import make_debian
from serving.oci.installation import PACKAGES, SERVER, install_server
from serving.oci.sbom import Component, bill_of_materials, debian_components, model_component, python_components
from serving.options import ServeOptions
from serving.packages import find_packages
from serving.reporting import logger
from serving.writing import writing

MODELS = "models"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
USER = "1000:1000"


@dataclass(frozen=True, kw_only=True)
class MadeImage:
    """An image that was written.

    Attributes:
        path: The OCI archive.
        bill: The list of its contents.
        digest: The digest by which registries know it.
    """

    path: Path
    bill: Path
    digest: str


def make_image(names: Sequence[str], options: ImageOptions) -> MadeImage:
    """Write an image and the list of its contents.

    Args:
        names: The packaged models to put in.
        options: The options of ``tritonize image``.

    Raises:
        ArtifactError: A model is not packaged, is damaged, or is not signed with the private key of ``verify_key``. Or the base is
            no file system of Debian.
        SetupError: There is no mmdebstrap, pip failed, the server does not exist for this processor, or the key cannot be used.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise SetupError(f"there is no embedded server for processors of the kind {platform.machine()}")
    known = find_packages(options.repository, files=False).names
    for name in names:
        if name not in known:
            held = ", ".join(sorted(known)) or "none"
            raise ArtifactError(f"{options.repository} has no packaged model {name}", hint=f"it has: {held}")
    ensembles = [check_ensemble(options.repository, name, verify_key=options.verify_key) for name in dict.fromkeys(names)]
    created = max(ensemble.manifest.created for ensemble in ensembles)
    target = options.output.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        folder = Path(name)
        parts = folder / "parts"
        parts.mkdir()
        archive = ImageArchive(parts, created=created)
        components = [model_component(ensemble, ensemble.generation) for ensemble in ensembles]
        run: dict[str, object] = {"Labels": {"org.opencontainers.image.title": " ".join(sorted(names))}}
        if not options.repository_only:
            base = options.base or folder / "debian.tar"
            if not base.exists():
                logger.info("making the file system of Debian")
                make_debian(base.absolute(), created=created)
            components += debian_components(base)
            archive.add_tar(base)
            components += _add_server(archive, folder)
            run |= _run()
        _add_models(archive, folder, ensembles, options)
        digest = archive.write(folder / "image.tar", architecture=architecture, run=run)
        bill = target.with_name(f"{target.name.removesuffix('.tar')}.cdx.json")
        content = bill_of_materials(target.name.removesuffix(".tar"), digest, components, created=created)
        (folder / "bill").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / "bill").rename(bill)
        (folder / "image.tar").rename(target)
    _warn(ensembles, options)
    return MadeImage(path=target, bill=bill, digest=digest)


def _add_server(archive: ImageArchive, folder: Path) -> list[Component]:
    root, scratch = folder / "root", folder / "scratch"
    root.mkdir()
    scratch.mkdir()
    logger.info("installing the server")
    install_server(root, scratch)
    archive.add_folder(root, "")
    return list(python_components(root / PACKAGES, scratch / "wheel"))


def _add_models(archive: ImageArchive, folder: Path, ensembles: Sequence[CheckedEnsemble], options: ImageOptions) -> None:
    """Add the generations that were checked, and no others."""
    models = folder / MODELS
    models.mkdir()
    for ensemble in ensembles:
        manifest = ensemble.manifest
        for part in generation_folders(manifest.name, manifest.layout, manifest.generation):
            if (options.repository / part).is_dir():  # not every single model has warm-up requests
                shutil.copytree(options.repository / part, models / part, symlinks=True)
        shutil.copyfile(ensemble.generation / CONFIG, models / manifest.name / CONFIG)
        check_ensemble(models, manifest.name, verify_key=options.verify_key)  # files may have been changed or removed meanwhile
    archive.add_folder(models, MODELS)


def _run() -> dict[str, object]:
    """Return what a container of the image runs: the same command as the image of ``serving/docker/Dockerfile``."""
    options = ServeOptions()
    ports = (options.http_port, options.grpc_port, options.metrics_port, options.own_health_port)
    path = f"/{SERVER}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = {"PATH": path, "LD_LIBRARY_PATH": f"/{SERVER}/lib", "HOME": "/tmp", "LANG": "C.UTF-8", **NO_TELEMETRY}  # noqa: S108
    return {
        "User": USER,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "ExposedPorts": {f"{port}/tcp": {} for port in ports},
        "Entrypoint": ["tritonize", "serve", "--repository", f"/{MODELS}", "--host", "0.0.0.0", "--strict"],  # noqa: S104
    }


def _warn(ensembles: Sequence[CheckedEnsemble], options: ImageOptions) -> None:
    for ensemble in ensembles:
        if ensemble.manifest.device == "gpu" and not options.repository_only:
            logger.warning(
                f"{ensemble.name} is packaged for a GPU, and the server of the image runs on CPUs: serve it with another image"
            )
