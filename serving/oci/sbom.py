"""The list of what an image contains, its software bill of materials, as CycloneDX 1.6."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path

from serving.artifact import MANIFEST, sha256
from serving.errors import ArtifactError
from serving.integrity import CheckedEnsemble

Component = dict[str, object]

DPKG_STATUS = "var/lib/dpkg/status"


def bill_of_materials(name: str, digest: str, components: Sequence[Component], *, created: datetime) -> dict[str, object]:
    """Return the list.

    Args:
        name: Name of the image.
        digest: Its digest.
        components: What it contains.
        created: The time of the image.
    """
    purl = f"pkg:oci/{name}@{digest.replace(':', '%3A')}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, purl)}",
        "version": 1,
        "metadata": {
            "timestamp": created.isoformat(),
            "component": {"type": "container", "bom-ref": purl, "name": name, "version": digest, "purl": purl},
        },
        "components": sorted(components, key=lambda component: str(component["bom-ref"])),
    }


def debian_components(base: Path) -> Iterator[Component]:
    """Yield the Debian packages in a file system.

    Args:
        base: The file system, as a tar file.

    Raises:
        ArtifactError: The file is not a file system of Debian.
    """
    try:
        with tarfile.open(base) as archive:
            names = {member.name.removeprefix("./"): member for member in archive}
            status = archive.extractfile(names[DPKG_STATUS])
            assert status is not None
            text = io.TextIOWrapper(status, encoding="utf-8").read()
    except (tarfile.TarError, KeyError) as error:
        raise ArtifactError(f"{base} holds no file system of Debian", hint="delete it, and it is made again") from error
    for paragraph in text.strip().split("\n\n"):
        fields = HeaderParser().parsestr(paragraph)
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={fields['Architecture']}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def python_components(*folders: Path) -> Iterator[Component]:
    """Yield the Python packages that are installed in folders."""
    for found in distributions(path=list(map(str, folders))):
        name = found.metadata["Name"].lower().replace("_", "-")
        purl = f"pkg:pypi/{name}@{found.version}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": found.version, "purl": purl}


def model_component(ensemble: CheckedEnsemble, manifest: Path) -> Component:
    """Describe a packaged model by the checksum of its manifest, which has those of all its files."""
    version = ensemble.manifest.created.isoformat()
    return {
        "type": "machine-learning-model",
        "bom-ref": f"{ensemble.name}@{version}",
        "name": ensemble.name,
        "version": version,
        "description": f"{ensemble.manifest.task}, {ensemble.manifest.precision}",
        "hashes": [{"alg": "SHA-256", "content": sha256(manifest / MANIFEST)}],
    }
