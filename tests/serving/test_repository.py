"""Packaging: what is written, and that nothing can catch it half-way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from serving import artifact, repository
from serving.artifact import sha256
from serving.bundle import load_bundle
from serving.commands import report_package
from serving.errors import ArtifactError
from serving.integrity import check_generation
from serving.layout import generations
from serving.model_names import read_model_name
from serving.options import PackageOptions
from serving.pbtxt import from_pbtxt
from serving.repository import package
from serving.runtime.digest import DIGEST, MODEL_DIGEST, REQUEST_DIGEST, TRUNCATED
from tests.helpers.packages import entries_of, generation_of
from tests.helpers.resealing import reseal


def options(bundle: Path, repository: Path, **changes: object) -> PackageOptions:
    return PackageOptions(
        **{"bundle": bundle, "repository": repository, "name": "tiny", "precision": "fp32", "device": "cpu"} | changes
    )


def config(repository: Path, model: str) -> dict:
    return from_pbtxt((repository / model / "config.pbtxt").read_text(encoding="utf-8"))


def models(repository: Path) -> list[str]:
    """The ensemble and its steps, the first one first."""
    return ["tiny", *(step["model_name"] for step in config(repository, "tiny")["ensemble_scheduling"]["step"])]


def assert_whole(repository: Path) -> str:
    """All four models are there and belong together; returns which generation they are of."""
    generation = generation_of(repository, "tiny")
    assert models(repository)[1:] == [f"tiny.{generation}_{step}" for step in ("preprocess", "model", "postprocess")]
    manifest = json.loads((repository / "tiny" / generation / "manifest.json").read_text(encoding="utf-8"))
    for name, digest in manifest["files"].items():
        assert sha256(repository / name) == digest, name
    for model in models(repository)[1:]:
        assert config(repository, model)["name"] == model
        assert (repository / model / "1").is_dir()
    return generation


def test_configs_are_wired_from_the_graph(bundle: Path, pair_bundle: Path, tmp_path: Path) -> None:
    package(options(bundle, tmp_path, batching="ragged", max_batch_size=32))
    generation = assert_whole(tmp_path)
    model, ensemble = config(tmp_path, f"tiny.{generation}_model"), config(tmp_path, "tiny")
    assert ensemble["parameters"]["model_sha256"]["string_value"] == sha256(bundle / "fp32" / "model.onnx")
    assert [tensor["name"] for tensor in model["input"]] == ["input_ids", REQUEST_DIGEST]
    assert [tensor["allow_ragged_batch"] for tensor in model["input"]] == [True, True]
    assert [tensor["name"] for tensor in model["output"]] == ["logits", MODEL_DIGEST]
    assert [tensor["name"] for tensor in ensemble["output"]] == ["LABEL", "SCORE", "SCORES", TRUNCATED, DIGEST]
    assert model["batch_input"] == [
        {"kind": "BATCH_ITEM_SHAPE", "target_name": ["row_lengths"], "data_type": "TYPE_INT32", "source_input": ["input_ids"]}
    ]
    assert "dynamic_batching" in model
    pinned = config(tmp_path, f"tiny.{generation}")
    assert ensemble == pinned | {"name": "tiny", "version_policy": {"specific": {"versions": [generation]}}}
    assert {config(tmp_path, name)["max_batch_size"] for name in models(tmp_path)} == {32}
    package(options(pair_bundle, tmp_path, batching="off"))
    model = config(tmp_path, f"tiny.{assert_whole(tmp_path)}_model")
    assert [tensor["name"] for tensor in model["input"]] == ["input_ids", "token_type_ids", REQUEST_DIGEST]
    assert "dynamic_batching" not in model and "batch_input" not in model
    assert [tensor["name"] for tensor in config(tmp_path, "tiny")["input"]] == ["TEXT", "TEXT_PAIR"]
    assert all("model_warmup" in config(tmp_path, name) for name in models(tmp_path)[1:])


def test_unchanged_work_is_not_done_again(bundle: Path, tmp_path: Path) -> None:
    assert not package(options(bundle, tmp_path)).unchanged
    generation = assert_whole(tmp_path)
    assert package(options(bundle, tmp_path)).unchanged
    assert assert_whole(tmp_path) == generation
    assert not package(options(bundle, tmp_path, threads=2, instances=1)).unchanged
    other = assert_whole(tmp_path)
    assert other != generation
    (tmp_path / f"tiny.{other}_model" / "1" / "model.onnx").write_bytes(b"damaged")
    assert not package(options(bundle, tmp_path, threads=2, instances=1)).unchanged
    last = assert_whole(tmp_path)
    assert generations(tmp_path, "tiny") == [other, last]
    assert package(options(bundle, tmp_path, threads=2, instances=1, keep=1)).unchanged
    assert generations(tmp_path, "tiny") == [last]


def test_a_generation_is_packaged_without_becoming_current(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.server_record.running_servers", list)
    first = package(options(bundle, tmp_path, current=False)).manifest.generation
    assert assert_whole(tmp_path) == first, "there was none"
    configuration = (tmp_path / "tiny" / "config.pbtxt").read_bytes()
    for _ in range(2):
        chosen = options(bundle, tmp_path, force=True, keep=1, current=False)
        packaged = package(chosen)
        generation = packaged.manifest.generation
        assert assert_whole(tmp_path) == first and generations(tmp_path, "tiny") == [first, generation]
        check_generation(tmp_path, "tiny", generation)
    assert (tmp_path / "tiny" / "config.pbtxt").read_bytes() == configuration
    with caplog.at_level("INFO", "tritonize"):
        report_package(chosen, packaged)
    assert f"{generation} is not current: a server that is started later serves {first} until it is promoted" in caplog.text


PACKAGES_UNTIL_KILLED = """
import os, sys
from pathlib import Path
import onnx, serving.bundle, serving.plan
from serving.options import PackageOptions
from serving.repository import package

bundle, repository = map(Path, sys.argv[1:])
for _ in sys.stdin:
    child, threads = os.fork(), 1
    while child == 0:
        threads = 3 - threads
        package(PackageOptions(bundle=bundle, repository=repository, name="tiny", precision="fp32", device="cpu", instances=1,
                               threads=threads, force=True))
    print(child, flush=True)
    print("killed" if os.waitpid(child, 0)[1] == 9 else "ended", flush=True)
"""


@pytest.mark.long
def test_killed_at_any_moment_the_old_repository_stands(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    package(options(bundle, repository))
    started = time.monotonic()
    package(options(bundle, repository, force=True))
    longest = 2 * (time.monotonic() - started)
    chance, generations = random.Random(5), [""]
    command = [sys.executable, "-c", PACKAGES_UNTIL_KILLED, str(bundle), str(repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        for _ in range(25):
            parent.stdin.write("begin\n")
            parent.stdin.flush()
            packaging = int(parent.stdout.readline())
            time.sleep(chance.uniform(0, longest))
            os.kill(packaging, signal.SIGKILL)
            assert parent.stdout.readline() == "killed\n"
            generations.append(assert_whole(repository))
            # the machine may become busier or idler: some are to be killed before the switch, and some after it
            longest *= 1.2 if generations[-1] == generations[-2] else 0.8
            # nothing beside models of generations
            assert all(entry.name == "tiny" or read_model_name(entry.name) for entry in repository.iterdir())
    assert len(set(generations)) > 2, "some were killed after the switch"
    assert any(one == other for one, other in pairwise(generations)), "and some before"
    package(options(bundle, repository, force=True, keep=1))
    # what the killed ones left is gone
    assert sorted(entry.name for entry in repository.iterdir()) == entries_of("tiny", assert_whole(repository))
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_every_system_call_of_a_first_packaging_may_be_the_last(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops before the nth rename, for every n: whatever stands then, no ensemble is without its steps."""
    calls = ("rename",)

    class StoppedError(BaseException):
        pass

    def stop_at(limit: int) -> None:
        left = [limit]
        for name in calls:
            original = getattr(Path, name)

            def stopping(self: Path, *arguments: object, original: object = original) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise StoppedError
                return original(self, *arguments)  # type: ignore[operator]

            monkeypatch.setattr(Path, name, stopping)

    for limit in range(100):
        repository = tmp_path / str(limit) / "repository"
        repository.parent.mkdir()
        stop_at(limit)
        try:
            package(options(bundle, repository))
        except StoppedError:
            monkeypatch.undo()
            if (repository / "tiny").exists():
                assert_whole(repository)
            package(options(bundle, repository))
            assert_whole(repository)
        else:
            monkeypatch.undo()
            break
    assert limit >= 5


@pytest.mark.parametrize("target", [".", "..", "/", "nowhere", "other_model/1"])
def test_a_link_that_somebody_else_made_is_not_overwritten(bundle: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "other_model" / "1").mkdir(parents=True)
    (tmp_path / "tiny").symlink_to(target)
    with pytest.raises(ArtifactError, match="not packaged by tritonize"):
        package(options(bundle, tmp_path))


def test_the_longest_name_is_packaged(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    assert not package(replace(options(bundle, repository), name="x" * 200)).unchanged
    assert package(replace(options(bundle, repository), name="x" * 200)).unchanged


def test_somebody_elses_model_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "precious").write_text("work")
    with pytest.raises(ArtifactError, match="not packaged by tritonize"):
        package(options(bundle, tmp_path))
    assert (tmp_path / "tiny" / "precious").read_text() == "work"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_works_from_another_place_after_a_copy(bundle: Path, tmp_path: Path) -> None:
    package(options(bundle, tmp_path / "here"))
    subprocess.run(["cp", "-r", tmp_path / "here", tmp_path / "there"], check=True)
    (tmp_path / "here").rename(tmp_path / "gone")
    assert_whole(tmp_path / "there")
    assert not any(path.is_symlink() for path in (tmp_path / "there").rglob("*"))
    folders = [path for path in (tmp_path / "there").rglob("*") if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders), "an object store keeps no empty folder"


def test_a_changed_module_repackages(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "prologue.py"
    module.write_text("before")
    monkeypatch.setattr(artifact, "PROJECT", tmp_path)
    monkeypatch.setattr(repository, "SHAPING", ("prologue.py",))
    monkeypatch.setattr(repository, "TASK_SHAPING", ())
    target = tmp_path / "models"
    package(options(bundle, target))
    assert package(options(bundle, target)).unchanged
    module.write_text("after an upgrade")
    assert not package(options(bundle, target)).unchanged


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/../../outside", "linked", "", ".."])
def test_a_bundle_refers_to_nothing_outside_it(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (tmp_path / "outside").write_text("secret")
    (copy / "linked").symlink_to(tmp_path / "outside")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["precisions"]["fp32"]["file"] = name
    reseal(copy, precisions=manifest["precisions"])
    with pytest.raises(ArtifactError, match="which is not a file inside it") as raised:
        load_bundle(copy)
    assert repr(name) in raised.value.message


@pytest.mark.parametrize("content", [b"no graph", None], ids=["foreign", "truncated"])
def test_a_damaged_graph_is_one_clear_error(bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = copy / "fp32" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    reseal(copy)
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged") as raised:
        package(options(copy, tmp_path / "models"))
    assert raised.value.hint == "write it again with: tritonize export --force"
    assert not list((tmp_path / "models").iterdir()), "nothing half-written"


@pytest.mark.parametrize("location", ["../../outside", "/etc/hostname", "sub/weights", "model.onnx", "..", "linked"])
def test_weights_outside_the_graph_lie_beside_it(bundle: Path, tmp_path: Path, location: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (tmp_path / "outside").write_text("secret")
    if location == "linked":
        (copy / "fp32" / "linked").symlink_to(tmp_path / "outside")
    path = copy / "fp32" / "model.onnx"
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights", size_threshold=0)
    onnx.save(model, path)
    for tensor in (model := onnx.load(path, load_external_data=False)).graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    onnx.save(model, path)
    reseal(copy)
    with pytest.raises(ArtifactError, match=r"which is not a file (of its own beside|inside) it|linked is a link"):
        package(options(copy, tmp_path / "models"))
    assert not list((tmp_path / "models").glob("*")), "nothing half-written"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "foo"}, "no task is called 'foo'"),
        ({"settings": {}}, "settings of text-classification are incomplete"),
        ({"settings": {"labels": ["a"], "function_to_apply": "none", "threshold": 1}}, "has no setting threshold"),
    ],
)
def test_a_bundle_whose_task_cannot_be_served_is_refused(
    bundle: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    reseal(copy, **change)
    with pytest.raises(ArtifactError, match=message):
        load_bundle(copy)


def test_a_bundle_that_lacks_a_file_or_is_none(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no bundle at"):
        load_bundle(tmp_path)
    subprocess.run(["cp", "-r", bundle, tmp_path / "copy"], check=True)
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"lacks tokenizer\.json"):
        load_bundle(tmp_path / "copy")
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        (tmp_path / "copy" / "manifest.json").write_text("{")
        load_bundle(tmp_path / "copy")
