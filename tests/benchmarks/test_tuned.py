"""What a tuning leaves behind, and who takes it up: the journal, the record, a plan, a recipe. Pure: nothing is measured."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.tuning.applied import pins, recipe_values, remark, with_winner
from benchmarks.tuning.journal import Terms, opened
from benchmarks.tuning.trial import LevelSpeed, Trial
from serving import install
from serving.artifact import MANIFEST, sha256, write_manifest
from serving.bundle import Bundle, Variant
from serving.configuration import Configuration
from serving.errors import ArtifactError
from serving.install import server_versions
from serving.machine import cores, hardware
from serving.plan import Plan, make_plan
from serving.repository import serving_code
from serving.tuning import Tuning, read_tuning, tuning_folder

RAGGED = Configuration(
    precision="fp32", device="cpu", batching="ragged", instances=3, threads=5, max_batch_size=16, queue_delay_us=500
)
TERMS = Terms(conditions={"rows": 8}, goal={"minutes": 15})


def trial(instances: int, number: int = 0, failure: str | None = None) -> Trial:
    levels = (LevelSpeed(concurrency=1, throughput=9, p50_ms=1, p99_ms=2, executed_batch=1),) if failure is None else ()
    return Trial(configuration=replace(RAGGED, instances=instances), round=number, seconds=20, failure=failure, levels=levels)


def test_a_journal_takes_over_what_the_search_could_measure(tmp_path: Path) -> None:
    path = tmp_path / "tuning.partial.jsonl"
    made = [trial(1), trial(2, failure="no memory"), trial(3), trial(1, number=1), trial(3, number=1, failure="no memory")]
    with opened(path, TERMS, [], fresh=False) as journal:
        assert not list(journal.told())
        for one in made:
            journal.add(one)
    assert [Trial.from_json(json.loads(line)) for line in path.read_text().splitlines()[1:]] == made, "all are written down"
    with opened(path, replace(TERMS, goal={}), [trial(7)], fresh=False) as journal:
        assert list(journal.told()) == [
            "trials made before and taken over: 2",
            "trials that failed before, made again: 1",
            "trials of an earlier final, which is measured anew as a whole: 2",
        ]
        assert [journal.taken(replace(RAGGED, instances=count)) for count in (1, 2, 3, 7)] == [made[0], None, made[2], None]
    assert len(path.read_text().splitlines()) == 3
    with opened(path, replace(TERMS, conditions={}), [], fresh=False) as journal:
        assert not list(journal.told()) and journal.taken(made[0].configuration) is None


def made_up_bundle(folder: Path) -> Bundle:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    figures = {"latency_ms": 3.0, "speed_device": "cpu", "throughput": {"1": 9.0, "16": 1.0}}
    variants = {name: Variant(precision=name, path=folder / name, figures=figures) for name in ("fp32", "fp16")}
    return Bundle(folder=folder, task=cast(Any, None), max_length=8, padding={}, variants=variants, manifest={})


def record(bundle: Path, winner: Configuration = RAGGED, **changes: Any) -> Path:
    folder = tuning_folder(bundle)
    folder.mkdir(exist_ok=True)
    fields = {
        "bundle_sha256": sha256(bundle / MANIFEST),
        "hardware": hardware(),
        "latency_p99_ms": 50.0,
        "winner": asdict(winner),
        "speed": {"concurrency": 16, "throughput": 412.3, "p99_ms": 38.12},
    }
    write_manifest(folder, "tuning", {}, **fields | changes)
    return folder


def plan_of(bundle: Bundle, **asked: Any) -> Plan:
    free = {"precision": "auto", "device": "cpu", "batching": "auto", "instances": None, "threads": None, "max_batch_size": None}
    return make_plan(bundle, tuning=read_tuning(bundle.folder), **free | asked)


def test_instances_and_threads_are_taken_together_or_not_at_all(tmp_path: Path) -> None:
    bundle = made_up_bundle(tmp_path / "bundle")
    record(bundle.folder)
    plan = plan_of(bundle)
    assert plan.configuration == RAGGED and set(plan.reasons) == {"configuration"}
    plan = plan_of(bundle, instances=1)
    assert (plan.instances, plan.threads, plan.max_batch_size) == (1, cores(), 16)
    assert plan.reasons["configuration"].endswith("; except instances, threads, as asked")
    plan = plan_of(bundle, threads=1)
    assert (plan.instances, plan.threads) == (cores(), 1)
    plan = plan_of(bundle, instances=2, threads=5)
    assert (plan.instances, plan.threads) == (2, 5)


def test_on_a_gpu_threads_are_nobodys(tmp_path: Path) -> None:
    bundle = made_up_bundle(tmp_path / "bundle")
    record(bundle.folder, replace(RAGGED, device="gpu", threads=1))
    plan = plan_of(bundle, device="gpu", threads=4)
    assert (plan.instances, plan.threads) == (3, 1)
    assert plan.reasons["threads"].startswith("4 has no effect")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"winner": {"precision": "fp32"}}, "missing"),
        ({"winner": asdict(RAGGED) | {"speculation": 4}}, "speculation"),
        ({"winner": None}, "None"),
        ({"speed": {"throughput": 1.0, "p99_ms": 1.0}}, "it has no 'concurrency'"),
        ({"hardware": {"cpu": "x"}}, "it has no 'cores'"),
        ({"schema_version": 99}, "has schema version 99"),
        ({"kind": "bundle"}, "does not describe a tuning"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_with_a_way_out(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    bundle = made_up_bundle(tmp_path / "bundle").folder
    assert read_tuning(bundle) is None
    path = record(bundle) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ArtifactError, match="the record cannot be read: ") as raised:
        read_tuning(bundle)
    assert str(path) in raised.value.message and reason in raised.value.message
    assert raised.value.hint == f"measure anew with: tritonize tune NAME --fresh, or remove {path.parent}"


def test_versions_of_the_server_are_read_without_starting_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(install.ENVIRONMENT_VARIABLE, str(tmp_path / "env"))
    monkeypatch.delenv(install.IMAGE_VERSION, raising=False)
    assert server_versions() == {}
    for name in ("nvidia_pytriton-0.7.0", "onnxruntime_gpu-1.23.0", "numpy-1.26.4", "click-8.1.0"):
        folder = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / f"{name}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(*name.split("-")))
    assert server_versions() == {"nvidia_pytriton": "0.7.0", "onnxruntime_gpu": "1.23.0", "numpy": "1.26.4"}
    (tmp_path / "bin").mkdir()
    binary = tmp_path / "bin" / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    assert server_versions() == {"tritonserver": sha256(binary)}
    monkeypatch.setenv(install.IMAGE_VERSION, "25.01")
    assert server_versions() == {"tritonserver": sha256(binary), "image": "25.01"}


def test_the_code_that_serves_has_checksums() -> None:
    assert {"plan.py", "server.py", "model.py", "runtime/preprocess.py", "runtime/tasks/base.py"} <= serving_code().keys()
    assert not any("__pycache__" in name for name in serving_code())


TUNED = Tuning(
    folder=Path("tuning"),
    winner=RAGGED,
    throughput=412.3,
    p99_ms=38.1,
    concurrency=16,
    latency_p99_ms=None,
    bundle_sha256="0123456789abcdef",
    hardware={},
    created="2026-11-22T12:00:00+00:00",
    sha256="",
)
SAID = "# tuned on cpu, bundle 0123456789ab, 2026-11-22: remove these lines to go back"
VALUES = recipe_values(RAGGED)
BLOCK = f"""{SAID}
precision = "fp32"
batching = "ragged"
instances = 3
threads = 5
max-batch-size = 16
queue-delay-us = 500
"""


def test_options_that_serve_it_so() -> None:
    assert remark(TUNED) == SAID
    assert tomllib.loads(BLOCK) == VALUES, "without the device: a recipe is for other machines too"
    assert "threads" not in recipe_values(replace(RAGGED, device="gpu"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"[package]\n{BLOCK}"),
        ('name = "x"', f'name = "x"\n\n[package]\n{BLOCK}'),
        ("[package]", f"[package]\n{BLOCK}"),
        (
            "# mine\n[package]  # of ours\nforce = true\n\n[serve]\nhttp-port = 1\n",
            f"# mine\n[package]  # of ours\n{BLOCK}\nforce = true\n\n[serve]\nhttp-port = 1\n",
        ),
        ("[package]\n\n[serve]\n", f"[package]\n{BLOCK}\n[serve]\n"),
    ],
)
def test_a_winner_stands_in_a_recipe_under_its_remark(before: str, after: str) -> None:
    assert with_winner(before, SAID, VALUES) == after
    assert with_winner(after, SAID, VALUES) == after
    assert with_winner(before.replace("\n", "\r\n"), SAID, VALUES).replace("\r\n", "\n") == after
    assert not pins(after, VALUES), "its own lines are no pins"
    other = recipe_values(replace(RAGGED, precision="int8", instances=4))
    changed = after.replace('"fp32"', '"int8"').replace("instances = 3", "instances = 4").replace("2026", "2027")
    assert with_winner(after, SAID.replace("2026", "2027"), other) == changed, "what an earlier tuning wrote makes room"


def test_a_choice_of_the_users_own_is_kept() -> None:
    recipe = "[package]\nmax-batch-size = 9  # mine\nqueue_delay_us = 500\n"
    assert pins(recipe, VALUES) == ["max-batch-size"]
    written = with_winner(recipe, SAID, VALUES)
    assert recipe.removeprefix("[package]\n") in written
    section = tomllib.loads(written)["package"]
    assert section.pop("queue_delay_us") == 500
    assert section == {"precision": "fp32", "batching": "ragged", "instances": 3, "threads": 5, "max-batch-size": 9}
    assert pins(written, VALUES) == ["max-batch-size"]
    assert with_winner(written, SAID, VALUES) == written


@pytest.mark.parametrize("recipe", ['precision = "int8"\n', 'name = "x"\n\n[package]\nprecision = "int8"\n'])
def test_nothing_is_written_for_another_precision(recipe: str) -> None:
    assert pins(recipe, VALUES) == ["precision"]
    assert with_winner(recipe, SAID, VALUES) == recipe
    earlier = with_winner(recipe, SAID, {"threads": 2})
    assert "threads = 2" in earlier and "threads" not in with_winner(earlier, SAID, VALUES), "that winner went with another"


def test_a_list_at_the_top_of_a_recipe_is_for_other_commands() -> None:
    written = with_winner('precision = ["fp32", "int8"]\n', SAID, VALUES)
    assert not pins(written, VALUES) and tomllib.loads(written)["package"]["precision"] == "fp32"


def test_instances_are_not_written_beside_threads_of_the_users_own() -> None:
    written = tomllib.loads(with_winner("[package]\nthreads = 1\n", SAID, VALUES))["package"]
    assert written["threads"] == 1 and "instances" not in written
    written = tomllib.loads(with_winner("[package]\nthreads = 5\n", SAID, VALUES))["package"]
    assert (written["threads"], written["instances"]) == (5, 3)


@pytest.mark.parametrize("recipe", ['package = { precision = "int8" }\n', 'package.precision = "int8"\n'])
def test_a_recipe_without_a_section_of_its_own_is_refused(recipe: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be added to") as raised:
        with_winner(recipe, "", {})
    assert "[package]" in raised.value.hint
