"""Artifact folders: whatever moment is the last, one whole folder stands under the name."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from serving import artifact
from serving.artifact import (
    DIGEST_FIELD,
    MANIFEST,
    fingerprint,
    inputs_record,
    is_current,
    publish,
    read_manifest,
    sha256,
    staging_folder,
    write_manifest,
)
from serving.errors import ArtifactError
from serving.manifests import BundleManifest, CheckpointManifest, Manifest, RepositoryManifest, TuningManifest
from tests.helpers.manifests import (
    NOTHING,
    bundle_manifest,
    checkpoint_manifest,
    repository_manifest,
    tuning_manifest,
    variant_figures,
)
from tests.helpers.resealing import sealed

LAST_BREATH = """
import os, sys
from pathlib import Path
from serving import artifact

target, left, exchange, end = Path(sys.argv[1]), [int(sys.argv[2])], sys.argv[3] == "exchange", sys.argv[4]

class Stopped(BaseException):
    pass

def before(original):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0 and end == "killed":
            os._exit(9)
        if left[0] == -1:
            raise Stopped
        return original(*arguments, **options)
    return call

Path.rename = before(Path.rename)
artifact.exchange = before(artifact.exchange if exchange else lambda *_: False)
artifact.shutil.rmtree = before(artifact.shutil.rmtree) if end == "killed" else artifact.shutil.rmtree
try:
    with artifact.publish(target) as fresh:
        (fresh / "content").write_text("new")
except Stopped:
    sys.exit(9)
"""


def write(target: Path, content: str) -> None:
    with publish(target) as fresh:
        (fresh / "content").write_text(content)


def left_aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("end", ["killed", "raised"])
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_every_rename_may_be_the_last(tmp_path: Path, way: str, end: str) -> None:
    """Ends before the nth rename or removal, for every n."""
    seen = set()
    for limit in range(20):
        target = tmp_path / str(limit) / "target"
        write(target, "old")
        command = [sys.executable, "-c", LAST_BREATH, str(target), str(limit), way, end]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 9), done.stderr
        if way == "exchange" or end == "raised":
            assert (target / "content").exists(), "at no moment is there none"
        is_current(target, BundleManifest, NOTHING)  # what every stage asks first
        content = (target / "content").read_text()
        seen.add(content)
        assert left_aside(target.parent) == []
        if done.returncode == 0:
            assert content == "new"
            break
    assert limit >= 1
    assert seen == {"old", "new"}


def test_a_next_run_that_fails_leaves_what_the_killed_one_had_put_aside(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    aside = tmp_path / f".target.{killed.stdout.strip()}.abc.partial"
    (aside / "retired").mkdir(parents=True)
    (aside / "retired" / "content").write_text("old")
    foreign = tmp_path / f".target.more.{killed.stdout.strip()}.abc.partial"
    foreign.mkdir()
    with pytest.raises(RuntimeError), publish(tmp_path / "target"):
        raise RuntimeError
    assert (tmp_path / "target" / "content").read_text() == "old"
    assert left_aside(tmp_path) == [foreign.name], "that of another name is not this one's"


def test_a_running_process_keeps_what_it_put_aside(tmp_path: Path) -> None:
    with staging_folder(tmp_path, "target") as staging:
        (staging / "retired").mkdir()
        assert not is_current(tmp_path / "target", BundleManifest, NOTHING)
        assert (staging / "retired").exists()


def test_two_folders_change_places_or_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert artifact.exchange(one, other)
    assert (one / "other").exists() and (other / "one").exists()
    with pytest.raises(FileNotFoundError, match="absent"):
        artifact.exchange(one, tmp_path / "absent")
    for code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        monkeypatch.setattr(artifact, "RENAME_EXCHANGE", 1 << 20)  # a flag nobody knows
        monkeypatch.setattr(artifact.ctypes, "get_errno", lambda code=code: code)
        assert not artifact.exchange(one, other)
    assert (one / "other").exists()


MANIFESTS = {
    CheckpointManifest: (checkpoint_manifest, "tritonize finetune --name NAME"),
    BundleManifest: (bundle_manifest, "tritonize export --name NAME"),
    RepositoryManifest: (repository_manifest, "tritonize package"),
    TuningManifest: (tuning_manifest, "tritonize tune NAME --fresh"),
}
KINDS = pytest.mark.parametrize("model", MANIFESTS, ids=lambda model: model.artifact_kind)


@KINDS
def test_a_manifest_comes_back_as_it_was_written(model: type[Manifest], tmp_path: Path) -> None:
    (tmp_path / "content").write_text("content")
    written = write_manifest(tmp_path, MANIFESTS[model][0]())
    assert written.files == {"content": sha256(tmp_path / "content")}
    assert read_manifest(tmp_path, model) == written
    assert is_current(tmp_path, model, written.inputs)
    assert not is_current(tmp_path, model, inputs_record({"seed": 1}))
    (tmp_path / "content").write_text("changed")
    assert not is_current(tmp_path, model, written.inputs)


def test_figures_of_the_task_stand_beside_the_others(tmp_path: Path) -> None:
    write_manifest(tmp_path, bundle_manifest())
    content = json.loads((tmp_path / MANIFEST).read_text())
    figures = content["precisions"]["fp32"]["figures"]
    assert (figures["accuracy"], figures["throughput"]) == (0.9, {"1": 9.0, "16": 1.0})
    assert list(content)[-1] == "files"
    write_manifest(tmp_path, checkpoint_manifest())
    assert not {"test", "search", "peak_gpu_mib"} & json.loads((tmp_path / MANIFEST).read_text())["figures"].keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high"])
def test_what_is_no_number_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match="latency_ms"):
        variant_figures(latency_ms=value)
    with pytest.raises(ValueError, match="f1"):
        variant_figures(f1=value)


@KINDS
def test_a_manifest_that_is_missing_damaged_or_foreign_is_one_line_and_a_remedy(model: type[Manifest], tmp_path: Path) -> None:
    make, remedy = MANIFESTS[model]
    path = tmp_path / MANIFEST
    with pytest.raises(ArtifactError, match=rf"(?m)^no {model.artifact_kind} at .*{tmp_path.name}$") as raised:
        read_manifest(tmp_path, model)
    assert raised.value.hint == f"make one with: {remedy}"
    with pytest.raises(ArtifactError) as raised:
        read_manifest(tmp_path / "tickets" / model.artifact_kind, model)
    assert raised.value.hint == f"make one with: {remedy}".replace("NAME", "tickets"), "it can be copied"
    write_manifest(tmp_path, make())
    content = json.loads(path.read_text())
    foreign = next(other for other in MANIFESTS if other is not model).artifact_kind
    for text, message in (
        ("{", "is not readable as JSON: Expecting property name"),
        ("\xff", "is not readable as JSON"),
        ("[]", f"does not describe a {model.artifact_kind}: kind is null"),
        (json.dumps(content | {"kind": foreign}), f'does not describe a {model.artifact_kind}: kind is "{foreign}"'),
        (json.dumps(content | {"schema_version": 1}), ": schema_version is 1, this tritonize reads 5"),
        (json.dumps(content | {"schema_version": 9}), ": schema_version is 9, this tritonize reads 5"),
        (json.dumps(content | {"files": {"a": "0"}}), " was altered: it does not have the checksum that it records"),
        (json.dumps({key: value for key, value in content.items() if key != DIGEST_FIELD}), " was altered"),
        ("[" * 100_000, "is not readable as JSON: maximum recursion depth exceeded"),
        (
            json.dumps(sealed({key: value for key, value in content.items() if key != "versions"})),
            ": versions: Field required",
        ),
        (json.dumps(sealed(content | {"files": {"a": 1}})), ": files.a: Input should be a valid string"),
        (json.dumps(sealed(content | {"created": "yesterday"})), ": created: Input should be a valid datetime"),
        (json.dumps(sealed(content | {"extra": 1, "more": 2})), ": extra: Extra inputs are not permitted (and 1 more)"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ArtifactError) as raised:
            read_manifest(tmp_path, model)
        assert raised.value.message.startswith(f"{path}") and message in raised.value.message
        assert "\n" not in raised.value.message and raised.value.hint.endswith(f"with: {remedy}")
        assert not is_current(tmp_path, model, NOTHING)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("precisions", "fp32", "figures", "throughput", "16"), "fast", "precisions.fp32.figures.throughput.16: Input should be a"),
        (("precisions", "fp32", "figures", "f1"), "high", "precisions.fp32.figures.f1: Input should be a valid number"),
        (("precisions", "fp32", "verdict"), "maybe", "precisions.fp32.verdict: Input should be 'passed' or 'failed'"),
        (("precisions", "fp4"), {}, "precisions.fp4.[key]: Input should be 'fp32', 'fp16', 'int8' or 'int8_rowwise'"),
        (("max_length",), "64", "max_length: Input should be a valid integer"),
    ],
)
def test_the_message_names_the_field(keys: tuple[str, ...], value: object, message: str, tmp_path: Path) -> None:
    write_manifest(tmp_path, bundle_manifest())
    content = json.loads((tmp_path / MANIFEST).read_text())
    *outer, last = keys
    reduce(getitem, outer, content)[last] = value
    (tmp_path / MANIFEST).write_text(json.dumps(sealed(content)))
    with pytest.raises(ArtifactError, match=re.escape(message)):
        read_manifest(tmp_path, BundleManifest)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("metrics/translation.py", "tasks/translation.py", "tasks/__pycache__/translation.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = fingerprint([tmp_path / "metrics" / "translation.py", tmp_path / "tasks"], root=tmp_path)
    assert set(found) == {"metrics/translation.py", "tasks/translation.py"}
    assert len(set(found.values())) == 2
    with pytest.raises(ArtifactError, match=r"two inputs of a stage are called tasks/translation\.py"):
        fingerprint([tmp_path / "tasks", tmp_path / "tasks" / "translation.py"], root=tmp_path)
    with pytest.raises(ArtifactError, match=r"two inputs of a stage are called metrics/translation\.py"):
        inputs_record({}, found, {"metrics/translation.py": "0"})
    with pytest.raises(ArtifactError, match=r"absent\.py is missing"):
        fingerprint([tmp_path / "absent.py"], root=tmp_path)
