"""What a tuning leaves behind: the study, the record, a plan, a recipe. Pure: nothing is measured."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import optuna
import pytest

from benchmarks.tuning.applied import pins, recipe_values, remark, with_winner
from benchmarks.tuning.space import Space
from benchmarks.tuning.tuning_study import SearchTerms, opened
from serving import install
from serving.artifact import MANIFEST, sha256, write_manifest
from serving.bundle import Bundle, Variant
from serving.configuration import Configuration
from serving.errors import ArtifactError, ServerError
from serving.install import server_versions
from serving.machine import cores
from serving.manifests import LoadRecord, TrialRecord
from serving.options import Precision
from serving.plan import Plan, make_plan
from serving.repository import serving_code
from serving.tuning import Tuning, read_tuning, tuning_folder
from tests.helpers.disk import full_disk
from tests.helpers.manifests import bundle_manifest, tuning_manifest, variant_figures
from tests.helpers.resealing import sealed

RAGGED = Configuration(
    precision="fp32", device="cpu", batching="ragged", instances=3, threads=5, max_batch_size=16, queue_delay_us=500
)
TERMS = SearchTerms(
    space=Space(device="cpu", cores=2, precisions=("fp32", "int8"), most_clients=16),
    first=[],
    conditions={"rows": 8, "hardware": {"cores": 2}},
    latency_p99_ms=None,
    seed=0,
)
SPACE = TERMS.space.configurations()


def trial(configuration: Configuration, throughput: float = 9, failure: str | None = None) -> TrialRecord:
    levels = (LoadRecord(concurrency=1, throughput=throughput, p50_ms=1, p99_ms=20, executed_batch=1),)
    return TrialRecord(configuration=configuration, round=0, seconds=20, failure=failure, levels=() if failure else levels)


def test_a_study_survives_what_ends_in_the_middle_of_it(tmp_path: Path) -> None:
    path = tmp_path / "tuning.partial.sqlite3"
    terms = replace(TERMS, first=SPACE[:3])
    with opened(path, terms, [trial(SPACE[5])], fresh=False) as study:
        assert [one.configuration for one in study.trials] == [SPACE[5]], "from an earlier record"
        for number, failure in enumerate([None, "no memory"]):
            asked, configuration = study.ask()
            assert configuration == SPACE[number]
            study.tell(asked, trial(configuration, failure=failure))
        study.ask()  # never told, as after a kill
    with opened(path, terms, [], fresh=False) as study:
        assert [one.configuration for one in study.trials] == [SPACE[5], SPACE[0]]
        assert study.trials[1] == trial(SPACE[0])
        assert study.ask()[1] == SPACE[1], "what failed is tried again"
    budget = replace(terms, latency_p99_ms=10.0)
    with opened(path, budget, [], fresh=False) as study:
        assert {one.configuration for one in study.trials} == {SPACE[0], SPACE[5]}
    stored = optuna.load_study(study_name="throughput within 10 ms", storage=f"sqlite:///{path}")
    assert [one.value for one in stored.trials if one.state == optuna.trial.TrialState.COMPLETE] == [-20, -20], "too slow for this"
    stored._storage.remove_session()
    with opened(path, terms, [], fresh=True) as study:
        assert not study.trials


def test_a_study_of_other_conditions_is_an_error_that_names_them(tmp_path: Path) -> None:
    path = tmp_path / "tuning.partial.sqlite3"
    with opened(path, TERMS, [trial(SPACE[0])], fresh=False):
        pass
    for name, value in {"rows": 9, "hardware": {"cores": 3}}.items():
        other = replace(TERMS, conditions=TERMS.conditions | {name: value})
        with (
            pytest.raises(ArtifactError, match=f"under other conditions: {name} changed") as raised,
            opened(path, other, [], fresh=False),
        ):
            pass
        assert "--fresh" in raised.value.hint
    with opened(path, other, [], fresh=True) as study:
        assert not study.trials


def test_a_study_is_one_process_at_a_time_and_readable_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tuning.partial.sqlite3"
    with (
        opened(path, TERMS, [], fresh=False),
        pytest.raises(ServerError, match="is being tuned already"),
        opened(path, TERMS, [], fresh=False),
    ):
        pass
    path.write_text("no database, and long enough that nobody takes it for the beginning of one\n" * 9)
    with pytest.raises(ArtifactError, match="cannot be read") as raised, opened(path, TERMS, [], fresh=False):
        pass
    assert "--fresh" in raised.value.hint
    with opened(path, TERMS, [], fresh=True) as study:
        assert not study.trials


def test_a_full_disk_is_an_error_that_names_the_study(tmp_path: Path) -> None:
    path = tmp_path / "tuning.partial.sqlite3"
    with opened(path, TERMS, [], fresh=False):
        pass
    with (
        pytest.raises(ArtifactError, match=r"^cannot write .*tuning\.partial\.sqlite3: ") as raised,
        opened(path, TERMS, [], fresh=False) as study,
        full_disk(1000),
    ):
        study.ask()
    assert raised.value.hint == "is the disk full?"


def searched(path: Path, terms: SearchTerms, throughput: Callable[[Configuration], float], most: int) -> list[Configuration]:
    tried = []
    with opened(path, terms, [], fresh=False) as study:
        while study.untried and len(tried) < most:
            asked, configuration = study.ask()
            tried.append(configuration)
            study.tell(asked, trial(configuration, throughput=throughput(configuration)))
    return tried


def test_the_search_tries_all_and_nothing_twice(tmp_path: Path) -> None:
    tried = searched(tmp_path / "study", replace(TERMS, first=TERMS.space.grid()), lambda one: one.instances, 1000)
    assert len(tried) == len(SPACE) and set(tried) == set(SPACE)
    assert tried[: len(TERMS.space.grid())] == TERMS.space.grid()


@pytest.mark.slow
def test_the_search_finds_the_best_of_a_large_space_early(tmp_path: Path) -> None:
    space = Space(device="cpu", cores=64, precisions=("fp32", "fp16", "int8"), most_clients=64)

    def throughput(one: Configuration) -> float:
        speed = 100.0 * (1.5 if one.batching == "ragged" else 1) * (1.2 if one.precision == "fp16" else 1)
        return speed * (1 + one.queue_delay_us / 10_000) / (1 + abs(math.log2(one.threads) - 2)) * math.sqrt(one.instances)

    best = max(space.configurations(), key=throughput)
    assert best not in space.grid() and len(space.configurations()) == 522
    tried = searched(tmp_path / "study", replace(TERMS, space=space, first=space.grid()), throughput, 50)
    assert best in tried


def made_up_bundle(folder: Path) -> Bundle:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    variants: dict[str, Variant] = {
        name: Variant(precision=name, path=folder / name, figures=variant_figures()) for name in precisions
    }
    return Bundle(
        folder=folder, task=cast(Any, None), max_length=8, padding={}, variants=variants, manifest=bundle_manifest(precisions={})
    )


def record(bundle: Path, winner: Configuration = RAGGED, **changes: Any) -> Path:
    folder = tuning_folder(bundle)
    folder.mkdir(exist_ok=True)
    write_manifest(folder, tuning_manifest(**{"bundle_sha256": sha256(bundle / MANIFEST), "winner": winner} | changes))
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
        ({"winner": {"precision": "fp32"}}, "winner.device: Field required"),
        ({"winner": asdict(RAGGED) | {"speculation": 4}}, "winner.speculation: Unexpected keyword argument"),
        ({"winner": None}, "winner: Input should be"),
        ({"winner": asdict(RAGGED) | {"instances": -3}}, "winner.instances: Input should be greater than 0"),
        ({"winner": asdict(RAGGED) | {"threads": "2"}}, "winner.threads: Input should be a valid integer"),
        ({"winner": asdict(RAGGED) | {"max_batch_size": 0}}, "winner.max_batch_size: Input should be greater than 0"),
        ({"winner": asdict(RAGGED) | {"queue_delay_us": -1}}, "winner.queue_delay_us: Input should be greater than or equal to 0"),
        ({"winner": asdict(RAGGED) | {"batching": "sideways"}}, "winner.batching: Input should be 'ragged' or 'off'"),
        ({"winner": asdict(RAGGED) | {"device": "tpu"}}, "winner.device: Input should be 'cpu' or 'gpu'"),
        (
            {"winner": asdict(RAGGED) | {"precision": "fp8"}},
            "winner.precision: Input should be 'fp32', 'fp16', .*or 'bf16'",
        ),
        ({"winner": asdict(RAGGED) | {"precision": "int8"}}, "winner: .*int8 is never tuned with ragged batching"),
        ({"winner": asdict(RAGGED) | {"batching": "off"}}, "winner: .*queue_delay_us is 0 without batching"),
        ({"winner": asdict(RAGGED) | {"device": "gpu", "threads": 2}}, "winner: .*threads is 1 on a GPU"),
        ({"speed": {"throughput": 1.0, "p99_ms": 1.0}}, "speed.concurrency: Field required"),
        ({"hardware": {"cpu": "x"}}, "hardware.cores: Field required"),
        ({"schema_version": 99}, "schema_version is 99"),
        ({"kind": "bundle"}, "does not describe a tuning"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_with_a_way_out(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    bundle = made_up_bundle(tmp_path / "bundle").folder
    assert read_tuning(bundle) is None
    path = record(bundle) / MANIFEST
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))
    with pytest.raises(ArtifactError, match=reason) as raised:
        read_tuning(bundle)
    assert raised.value.message.startswith(f"{path}")
    assert raised.value.hint.endswith(f"with: tritonize tune {tmp_path.name} --fresh")


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
    assert {
        "serving/plan.py",
        "serving/server.py",
        "serving/runtime/preprocess.py",
    } <= serving_code().keys()
    assert not any("__pycache__" in name or "/tasks/" in name for name in serving_code())


TUNED = Tuning(
    folder=Path("tuning"),
    manifest=tuning_manifest(winner=RAGGED, latency_p99_ms=None, created=datetime(2026, 11, 22, 12, tzinfo=UTC)),
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
        ("[package]\n[serve]\n", f"[package]\n{BLOCK}\n[serve]\n"),
        (
            "[package]\nforce = true\n\n\n# about serving\n\n# more\n[serve]\nhttp-port = 1\n",
            f"[package]\n{BLOCK}\nforce = true\n\n\n# about serving\n\n# more\n[serve]\nhttp-port = 1\n",
        ),
        ("  [ 'package' ]\n# mine\n\tforce  =  true # so\n", f"  [ 'package' ]\n{BLOCK}\n# mine\n\tforce  =  true # so\n"),
        ("[package]\n   \n\nforce = true", f"[package]\n{BLOCK}   \n\nforce = true\n"),
        (
            "[serve]\nhttp-port = 1  # ours\n# the end",
            f"[serve]\nhttp-port = 1  # ours\n# the end\n\n[package]\n{BLOCK}",
        ),
        ("finetune = { epochs = 1 }\n", f"finetune = {{ epochs = 1 }}\n\n[package]\n{BLOCK}"),
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


@pytest.mark.parametrize(
    "recipe",
    [
        'package = { precision = "int8" }\n',
        'package.precision = "int8"\n',
        "[[package]]\nforce = true\n",
        "[package.deep]\nforce = true\n",
        "[package]\nforce = true\n[serve]\n[package.deep]\n",
        "package = 3\n",
        "[package\n",
        "name = 1\nname = 2\n",
    ],
)
def test_a_recipe_without_a_section_of_its_own_is_refused(recipe: str) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be added to|not valid TOML"):
        with_winner(recipe, SAID, VALUES)
    with pytest.raises(ArtifactError):
        with_winner(recipe, "", {})
