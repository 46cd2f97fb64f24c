"""The list of what an image contains, its software bill of materials, as CycloneDX 1.6."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path

from serving.artifact import MANIFEST, sha256
from serving.errors import ArtifactError
from serving.integrity import CheckedEnsemble
from serving.oci.licenses import License, debian_licenses, python_licenses

Component = dict[str, object]

DPKG_STATUS = "var/lib/dpkg/status"
DOCUMENTATION = "usr/share/doc"
LINKS = 4
"""Packages of one source share a folder there, by a link or by a link to a link; no more of them are followed."""


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
    """Yield the Debian packages in a file system, with the licenses of their copyright files.

    Args:
        base: The file system, as a tar file.

    Raises:
        ArtifactError: The file is not a file system of Debian.
    """
    try:
        with tarfile.open(base) as archive:
            names = {member.name.removeprefix("./"): member for member in archive}
            packages = [HeaderParser().parsestr(one) for one in _read(archive, names[DPKG_STATUS]).strip().split("\n\n")]
            licenses = [debian_licenses(_copyright(archive, names, fields["Package"])) for fields in packages]
    except (tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{base} holds no file system of Debian", hint="delete it, and it is made again") from error
    for fields, stated in zip(packages, licenses, strict=True):
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={fields['Architecture']}"
        yield _library(name, version, purl, stated)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, errors: str = "strict") -> str:
    content = archive.extractfile(member)
    assert content is not None
    return io.TextIOWrapper(content, encoding="utf-8", errors=errors).read()


def _copyright(archive: tarfile.TarFile, names: Mapping[str, tarfile.TarInfo], package: str) -> str:
    """Return the copyright file of a package, or an empty text if it has none or a link that leads nowhere.

    Its folder may be a link to that of another package. The file need not be UTF-8.
    """
    for _ in range(LINKS):
        folder = names.get(f"{DOCUMENTATION}/{package}")
        if folder is None or not folder.issym():
            break
        package = folder.linkname
    found = names.get(f"{DOCUMENTATION}/{package}/copyright")
    if found is None:
        return ""
    try:
        return _read(archive, found, errors="replace")
    except KeyError:  # a link to what the archive does not hold
        return ""


def python_components(*folders: Path) -> Iterator[Component]:
    """Yield the Python packages that are installed in folders, with the licenses that their metadata has."""
    for found in distributions(path=list(map(str, folders))):
        name = found.metadata["Name"].lower().replace("_", "-")
        purl = f"pkg:pypi/{name}@{found.version}"
        yield _library(name, found.version, purl, python_licenses(found.metadata))


def _library(name: str, version: str, purl: str, licenses: list[License]) -> Component:
    stated = {"licenses": licenses} if licenses else {}
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, **stated}


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
