"""OCI images as one archive: layers of files, what to run, and the index. See the OCI image format specification, 1.1."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from serving.artifact import sha256

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file of the archive, named by its content.

    Attributes:
        path: The file.
        media_type: What it holds.
        digest: Its SHA-256 in hex.
        content_digest: SHA-256 in hex of what it holds, before compression.
    """

    path: Path
    media_type: str
    digest: str
    content_digest: str

    @property
    def descriptor(self) -> dict[str, object]:
        """How other files of the image refer to it."""
        return {"mediaType": self.media_type, "digest": f"sha256:{self.digest}", "size": self.path.stat().st_size}


class ImageArchive:
    """The parts of an image, in a folder, and the archive of them."""

    def __init__(self, folder: Path, *, created: datetime) -> None:
        """Begin without layers.

        Args:
            folder: An empty folder for the parts.
            created: The time that the image and its files get, so that the same contents make the same image.
        """
        self._folder = folder
        self._created = created
        self._layers: list[Blob] = []

    def add_folder(self, folder: Path, prefix: str) -> None:
        """Add a layer with the contents of a folder.

        Args:
            folder: The folder.
            prefix: Where its contents lie in the image, such as ``opt/tritonserver``; empty: at the root.
        """
        content = self._folder / "content.tar"
        with tarfile.open(content, "w", format=tarfile.PAX_FORMAT) as layer:
            for parent in reversed([Path(prefix), *Path(prefix).parents][:-1]):
                layer.addfile(self._directory(parent.as_posix()))
            for path in sorted(folder.rglob("*")):
                layer.add(path, (Path(prefix) / path.relative_to(folder)).as_posix(), recursive=False, filter=self._plain)
        self.add_tar(content)
        content.unlink()

    def add_tar(self, content: Path) -> None:
        """Add the files of a tar file as a layer, as they are."""
        path = self._folder / f"layer{len(self._layers)}"
        with (
            content.open("rb") as source,
            path.open("wb") as target,
            gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=6, mtime=0) as packed,
        ):
            shutil.copyfileobj(source, packed)
        self._layers.append(Blob(path=path, media_type=LAYER, digest=sha256(path), content_digest=sha256(content)))

    def write(self, target: Path, *, architecture: str, run: dict[str, object]) -> str:
        """Write the archive.

        Args:
            target: The file to write.
            architecture: Architecture of the processor, as Go names it.
            run: What a container of the image runs: the ``config`` of the OCI configuration.

        Returns:
            The digest of the image, by which registries know it.
        """
        config = {
            "created": self._created.isoformat(),
            "architecture": architecture,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.content_digest}" for layer in self._layers]},
        }
        configuration = self._add_json("config", CONFIG, config)
        layers = [layer.descriptor for layer in self._layers]
        content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": configuration.descriptor, "layers": layers}
        manifest = self._add_json("manifest", MANIFEST, content)
        named = {**manifest.descriptor, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
        index = self._add_json("index", INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]})
        layout = self._add_json("layout", "", {"imageLayoutVersion": "1.0.0"})
        with tarfile.open(target, "w") as archive:
            for name, blob in (("oci-layout", layout), ("index.json", index)):
                archive.add(blob.path, name, filter=self._plain)
            for blob in (*self._layers, configuration, manifest):
                archive.add(blob.path, f"blobs/sha256/{blob.digest}", filter=self._plain)
        return f"sha256:{manifest.digest}"

    def _directory(self, name: str) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        return self._plain(entry)

    def _plain(self, entry: tarfile.TarInfo) -> tarfile.TarInfo:
        """Give an entry the time of the image, and root as its owner, who alone may write it. Everybody may read it."""
        entry.mtime = int(self._created.timestamp())
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o111 else 0o644
        return entry

    def _add_json(self, name: str, media_type: str, content: Mapping[str, object]) -> Blob:
        text = json.dumps(content, indent=1).encode()
        path = self._folder / name
        path.write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        return Blob(path=path, media_type=media_type, digest=digest, content_digest=digest)
