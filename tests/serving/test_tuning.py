"""What tuning recorded, and what packaging makes of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from serving import tuning
from serving.artifact import MANIFEST, sha256, write_manifest
from serving.bundle import load_bundle
from serving.configuration import Configuration
from serving.machine import cores, hardware
from serving.manifests import RepositoryManifest
from serving.options import PackageOptions
from serving.pbtxt import from_pbtxt
from serving.plan import make_plan
from serving.repository import package
from serving.tuning import read_tuning, tuning_folder
from tests.helpers.manifests import tuning_manifest
from tests.helpers.packages import step
from tests.helpers.resealing import sealed

RAGGED = Configuration(
    precision="fp32", device="cpu", batching="ragged", instances=3, threads=1, max_batch_size=16, queue_delay_us=500
)


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, beside which nothing is recorded yet."""
    return Path(shutil.copytree(bundle, tmp_path / "tiny" / "bundle"))


def record(bundle: Path, winner: Configuration = RAGGED, **changes: Any) -> Path:
    """What ``tritonize tune`` writes, as far as packaging reads it."""
    folder = tuning_folder(bundle)
    folder.mkdir(exist_ok=True)
    write_manifest(folder, tuning_manifest(**{"bundle_sha256": sha256(bundle / MANIFEST), "winner": winner} | changes))
    return folder


def manifest_of(bundle: Path, **asked: Any) -> RepositoryManifest:
    options = PackageOptions(bundle=bundle, repository=bundle.parent / "models", name="tiny", **{"device": "cpu"} | asked)
    return package(options).manifest


def test_what_was_found_is_what_is_packaged(own: Path) -> None:
    created = json.loads((record(own) / MANIFEST).read_text())["created"]
    manifest = manifest_of(own)
    assert manifest.configuration == RAGGED
    assert manifest.reasons == {"configuration": f"tuned: 412 rows/s at p99 38.1 ms (budget 50 ms), {created}"}
    config = from_pbtxt((step(own.parent / "models", "tiny", "model") / "config.pbtxt").read_text())
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": "500"}
    assert config["instance_group"][0]["count"] == 3


def test_what_is_asked_for_wins_and_the_rest_is_taken(own: Path) -> None:
    record(own)
    manifest = manifest_of(own, instances=1, queue_delay_us=0, precision="fp32")
    assert (manifest.instances, manifest.queue_delay_us) == (1, 0)
    assert (manifest.batching, manifest.max_batch_size) == ("ragged", 16)
    assert manifest.threads == cores(), "those that were found go with three instances"
    assert "; except instances, " in manifest.reasons["configuration"]
    assert manifest.reasons["configuration"].endswith("queue_delay_us, as asked")
    manifest = manifest_of(own, batching="off")
    assert (manifest.batching, manifest.queue_delay_us, manifest.instances) == ("off", 0, 3)
    assert "queue_delay_us" not in manifest.reasons, "nobody asked for a delay"


def test_all_that_was_found_asked_for_by_name_is_as_tuned(own: Path) -> None:
    record(own)
    manifest_of(own)
    asked = PackageOptions(bundle=own, repository=own.parent / "models", name="tiny", **asdict(RAGGED))
    assert package(asked).unchanged


@pytest.mark.parametrize(
    ("asked", "changes", "objection"),
    [
        ({"precision": "int8"}, {}, "the best is fp32, and int8 was asked for"),
        ({}, {"bundle_sha256": "0"}, "is of another export"),
        ({}, {"hardware": {"cpu": "x", "cores": 96, "gpus": []}}, "was measured on 96 cores, here are"),
        ({}, {"winner": replace(RAGGED, device="gpu")}, "was measured on a GPU"),
    ],
)
def test_a_record_that_does_not_apply_is_not_used_and_that_is_said(
    own: Path, asked: dict[str, Any], changes: dict[str, Any], objection: str
) -> None:
    before = manifest_of(own, **asked)
    record(own, **changes)
    manifest = manifest_of(own, **asked)
    assert manifest.configuration == before.configuration
    reason = manifest.reasons.pop("configuration")
    assert reason.startswith("not as tuned: ") and objection in reason
    assert manifest.reasons == before.reasons


def test_other_gpus_are_other_machines(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(own, replace(RAGGED, device="gpu"), hardware=hardware() | {"gpus": ["NVIDIA L4"]})
    found = read_tuning(own)
    assert found is not None
    objection = found.objection(own, precision="auto", device="gpu")
    assert objection is not None and "was measured on NVIDIA L4, here is" in objection
    monkeypatch.setattr(tuning, "hardware", found.manifest.hardware.model_dump)
    assert found.objection(own, precision="auto", device="gpu") is None


def test_a_new_record_makes_a_repository_out_of_date(own: Path) -> None:
    options = PackageOptions(bundle=own, repository=own.parent / "models", name="tiny", device="cpu")
    package(options)
    assert package(options).unchanged
    record(own)
    assert not package(options).unchanged
    assert package(options).unchanged
    record(own, speed={"concurrency": 16, "throughput": 412.3, "p99_ms": 38.12, "p50_ms": 1.0, "executed_batch": 1.0})
    assert not package(options).unchanged, "what it says is the same, but it is another"
    assert not package(replace(options, tuned=False)).unchanged


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (lambda _: "{", " is not readable as JSON"),
        (lambda text: text.replace('"instances": 3', '"instances": 2'), " was altered"),
        (
            lambda text: json.dumps(sealed(json.loads(text.replace('"instances": 3', '"instances": -3')))),
            ": winner.instances: Input should be greater than 0",
        ),
    ],
    ids=["text", "altered", "winner"],
)
def test_without_a_record_that_can_be_read_it_is_packaged_untuned_and_that_is_said(
    own: Path, damaged: Callable[[str], str], reason: str
) -> None:
    before = manifest_of(own)
    path = record(own) / MANIFEST
    path.write_text(damaged(path.read_text()))
    manifest = manifest_of(own)
    assert manifest.reasons.pop("configuration").startswith(f"not as tuned: {path}{reason}")
    assert (manifest.configuration, manifest.reasons) == (before.configuration, before.reasons)
    options = PackageOptions(bundle=own, repository=own.parent / "models", name="tiny", device="cpu")
    assert package(options).unchanged
    assert "configuration" not in manifest_of(own, tuned=False).reasons


def test_a_delay_without_batching_is_pointless_and_that_is_said(own: Path) -> None:
    free: dict[str, Any] = {"precision": "fp32", "device": "cpu", "instances": None, "threads": None, "max_batch_size": None}
    plan = make_plan(load_bundle(own), batching="off", queue_delay_us=700, **free)
    assert plan.queue_delay_us == 0
    assert plan.reasons["queue_delay_us"] == "700 has no effect with batching off: no request waits for others"
    plan = make_plan(load_bundle(own), batching="ragged", queue_delay_us=700, **free)
    assert plan.queue_delay_us == 700 and "queue_delay_us" not in plan.reasons
    assert plan.max_batch_size == 64
    assert plan.instances * plan.threads <= len(os.sched_getaffinity(0))
