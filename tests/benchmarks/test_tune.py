"""``tritonize tune``: the search on a made-up machine, and all of it on a real server."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.tuning import stage
from benchmarks.tuning.stage import Tuned, make_testbed, prepare, tune
from benchmarks.tuning.tune_options import TuneOptions
from export.cli import main
from serving import plan
from serving.artifact import read_manifest
from serving.bundle import load_bundle
from serving.configuration import Configuration
from serving.errors import ArtifactError, ServerError
from serving.layout import current_folder
from serving.manifests import LoadRecord, RepositoryManifest, TrialRecord, TuningManifest
from serving.reporting import logger
from tests.helpers.resealing import reseal, sealed
from tests.helpers.servers import left_behind, watch_keeper

Speed = Callable[[Configuration], float | None]


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, beside which nothing is recorded yet."""
    return Path(shutil.copytree(bundle, tmp_path / "artifacts" / "tiny" / "bundle"))


@dataclass
class MadeUp:
    """A testbed that measures nothing: a trial takes 20 s of nobody's time, and only so many may be made."""

    speed: Speed
    limit: int = 1000
    made: list[tuple[Configuration, int]] = field(default_factory=list)

    def expected_seconds(self) -> float:
        return 20

    def measure(self, configuration: Configuration, number: int) -> TrialRecord:
        if len(self.made) == self.limit:
            raise KeyboardInterrupt
        self.made.append((configuration, number))
        throughput = self.speed(configuration)
        if throughput is None:
            return TrialRecord(configuration=configuration, round=number, seconds=20, failure="out of memory")
        levels = (LoadRecord(concurrency=16, throughput=throughput, p50_ms=20, p99_ms=4000 / throughput, executed_batch=1),)
        return TrialRecord(configuration=configuration, round=number, seconds=20, levels=levels, pss_mib=300, peak_rss_mib=400)


def best_at(*instances: int) -> Speed:
    """fp32 with batching is best, with the more delay the better; so many instances are served at all."""

    def speed(one: Configuration) -> float | None:
        if one.instances not in instances:
            return None
        return 100.0 + 50 * (one.precision == "fp32") + 30 * (one.batching == "ragged") + one.queue_delay_us / 100 + one.instances

    return speed


def asked(bundle: Path, **changes: Any) -> TuneOptions:
    options = TuneOptions(
        bundle=bundle, precisions=(), device="cpu", latency_p99_ms=None, concurrencies=(16,), rows=8, duration=4, minutes=15, seed=0
    )
    return replace(options, **changes)


def run(monkeypatch: pytest.MonkeyPatch, options: TuneOptions, testbed: MadeUp) -> tuple[Tuned, list[str]]:
    monkeypatch.setattr(stage, "make_testbed", lambda *_, **__: testbed)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    monkeypatch.setattr(plan, "cores", lambda: 2)
    said: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logger, level, said.append)
    return tune(options, lambda *_: None), said


def test_the_search_finds_what_no_corner_of_the_grid_has(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testbed = MadeUp(best_at(1, 2, 3))
    tuned, said = run(monkeypatch, asked(own, minutes=60), testbed)
    winner = tuned.outcome.winner
    assert winner is not None
    assert str(winner.configuration) == "fp32, 3 × 1 thread, batches to 64, 2000 µs delay", "no corner of the grid"
    assert len(set(testbed.made)) == len(testbed.made), "no trial is made twice"
    final = [configuration for configuration, number in testbed.made if number]
    assert final[:4] == list(reversed(final[4:8])) == final[8:], "three rounds, every other one in reverse"
    assert final[0] == tuned.outcome.default == testbed.made[0][0]
    assert winner.configuration in final[:4]
    assert said[0].startswith("trial 1 of about ")
    assert len(said) == len(testbed.made)
    assert said[-1].startswith(f"trial {len(said)} of about {len(said)}: ")
    recorded = read_manifest(own.parent / "tuning", TuningManifest)
    assert len(recorded.trials) == len(testbed.made)
    assert recorded.winner.queue_delay_us == 2000
    assert [entry.name for entry in own.parent.iterdir() if entry.name.startswith((".", "tuning"))] == ["tuning"]


@pytest.mark.long
def test_what_cannot_be_served_is_recorded_and_passed_over(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, said = run(monkeypatch, asked(own), MadeUp(best_at(1)))
    assert tuned.outcome.winner is not None and tuned.outcome.winner.configuration.instances == 1
    assert any(line.endswith(": failed: out of memory") for line in said)
    assert set(tuned.outcome.failures.values()) == {"out of memory"}
    with pytest.raises(ServerError, match="no configuration could be served: out of memory"):
        run(monkeypatch, asked(own, fresh=True, minutes=60), failed := MadeUp(best_at()))
    shutil.rmtree(own.parent / "tuning")
    tuned, said = run(monkeypatch, asked(own, minutes=60), repaired := MadeUp(best_at(1, 2, 3)))
    assert len(failed.made) == 48, "each was tried"
    assert {configuration for configuration, number in repaired.made if number == 0} == {one for one, _ in failed.made}
    assert not tuned.outcome.failures, "what failed is tried again"


def test_the_time_allowed_is_kept_and_what_is_left_out_is_said(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testbed = MadeUp(best_at(1, 2, 3))
    _, said = run(monkeypatch, asked(own, minutes=6), testbed)
    assert 15 <= len(testbed.made) <= 18, "there is time for eighteen, and the default may be a finalist anyway"
    (line,) = [line for line in said if line.startswith("not tried")]
    assert "as 6 minutes are too few: " in line and " more" in line
    _, said = run(monkeypatch, asked(own, minutes=0.1), testbed := MadeUp(best_at(1, 2, 3)))
    rounds = [number for _, number in testbed.made]
    assert rounds == sorted(rounds) and set(rounds) == {1, 2}, "the search is used again"
    assert any("2 rounds in the final instead of 3" in line for line in said)


@pytest.fixture(scope="module")
def uninterrupted(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, MadeUp]:
    """A search from start to end, and what it tried."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("artifacts") / "tiny" / "bundle"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        tuned, _ = run(monkeypatch, asked(copy), straight := MadeUp(best_at(1, 2, 3)))
    return tuned, straight


@pytest.mark.parametrize("limit", [0, 1, 14, -11, -1])
@pytest.mark.long
def test_interrupted_it_goes_on_to_the_same_end(
    own: Path, uninterrupted: tuple[Tuned, MadeUp], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    expected, straight = uninterrupted
    assert len(straight.made) > limit
    limit %= len(straight.made)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, asked(own), first := MadeUp(best_at(1, 2, 3), limit=limit))
    tuned, said = run(monkeypatch, asked(own), second := MadeUp(best_at(1, 2, 3)))
    searched = [trial for trial in first.made if trial[1] == 0]
    assert searched + second.made == straight.made, "of a final, only rounds of one run stand side by side"
    assert tuned.outcome == expected.outcome
    assert (f"trials of an earlier run that are used again: {len(searched)}" in said) == (limit > 0)


def test_finished_it_is_not_done_again_unless_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(monkeypatch, asked(own), MadeUp(best_at(1, 2)))
    again, said = run(monkeypatch, asked(own), testbed := MadeUp(best_at(1, 2)))
    assert again.unchanged and not first.unchanged and not testbed.made and not said
    assert again.outcome == first.outcome
    fresh, _ = run(monkeypatch, asked(own, fresh=True), testbed := MadeUp(best_at(1, 2)))
    assert not fresh.unchanged and len(testbed.made) == len(first.outcome.trials)


@pytest.mark.long
def test_another_goal_takes_over_the_search_but_not_the_final(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(monkeypatch, asked(own), MadeUp(best_at(1, 2)))
    run(monkeypatch, asked(own, latency_p99_ms=30.0), testbed := MadeUp(best_at(1, 2)))
    searched = {trial.configuration for trial in first.outcome.trials if trial.round == 0 and trial.failure is None}
    assert not {configuration for configuration, number in testbed.made if number == 0} & searched
    assert [number for _, number in testbed.made if number] == [1] * 4 + [2] * 4 + [3] * 4
    run(monkeypatch, asked(own, latency_p99_ms=30.0, rows=7), testbed := MadeUp(best_at(1, 2)))
    assert testbed.made[0][1] == 0, "on other rows nothing holds"


def test_where_nothing_is_fast_enough_nothing_is_recorded(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, said = run(monkeypatch, asked(own, latency_p99_ms=1.0), MadeUp(best_at(1, 2, 3)))
    assert all(line.endswith(", too slow") for line in said if line.startswith("trial "))
    assert tuned.outcome.winner is None
    assert not (own.parent / "tuning").exists()
    again, _ = run(monkeypatch, asked(own, latency_p99_ms=1.0), testbed := MadeUp(best_at(1, 2, 3)))
    assert again.outcome.winner is None and all(number for _, number in testbed.made), "the final alone is measured anew"


@pytest.mark.parametrize("change", [{"trials": [{}]}, {"trials": [{"round": 0}]}, {"kind": "bundle"}, {"trials": None}])
@pytest.mark.long
def test_a_record_that_cannot_be_read_is_an_error_but_to_fresh(
    own: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    run(monkeypatch, asked(own), MadeUp(best_at(1, 2)))
    record = own.parent / "tuning" / "manifest.json"
    record.write_text(json.dumps(sealed(json.loads(record.read_text()) | change)))
    for options in (asked(own), asked(own, latency_p99_ms=30.0)):
        with pytest.raises(ArtifactError, match=re.escape(str(record))) as raised:
            run(monkeypatch, options, testbed := MadeUp(best_at(1, 2)))
        assert raised.value.hint == f"write it again with: tritonize tune {own.parent.name} --fresh"
        assert not testbed.made
    tuned, _ = run(monkeypatch, asked(own, fresh=True), MadeUp(best_at(1, 2)))
    assert not tuned.unchanged and run(monkeypatch, asked(own), MadeUp(best_at(1, 2)))[0].unchanged


@pytest.mark.parametrize("changed", ["server_versions", "serving_code"])
@pytest.mark.long
def test_another_server_or_other_code_serves_at_another_speed(own: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    run(monkeypatch, asked(own), first := MadeUp(best_at(1, 2)))
    monkeypatch.setattr(stage, changed, lambda: {"onnxruntime": "0"})
    tuned, said = run(monkeypatch, asked(own), second := MadeUp(best_at(1, 2)))
    assert not tuned.unchanged and second.made == first.made
    assert said[0].startswith("trial 1 ")


def test_only_variants_that_may_be_served_are_tried(own: Path) -> None:
    assert {one.precision for one in prepare(asked(own)).search.first} == {"fp32", "fp16", "int8"} & set(load_bundle(own).variants)
    assert {one.precision for one in prepare(asked(own, precisions=("int8",))).search.first} == {"int8"}
    assert "int8" not in {one.precision for one in prepare(asked(own, device="gpu")).search.first}
    only = prepare(asked(own, device="gpu", precisions=("int8",)))
    assert {(one.precision, one.batching) for one in only.search.first} == {("int8", "off")}
    manifest = json.loads((own / "manifest.json").read_text())
    reseal(own, precisions=manifest["precisions"] | {"int8_rowwise": manifest["precisions"]["int8"]})
    rowwise = [one for one in prepare(asked(own)).search.first if one.precision == "int8_rowwise"]
    assert {(one.batching, one.layout) for one in rowwise} == {("off", "ensemble"), ("off", "fused"), ("ragged", "ensemble")}
    assert not {"int8", "int8_rowwise"} & {one.precision for one in prepare(asked(own, device="gpu")).search.first}
    gate = {"name": "metric_drop", "limit": 0.5, "value": 9.0, "interval": None, "passed": False, "message": "accuracy drops"}
    manifest["precisions"]["int8"] |= {"verdict": "failed", "gates": [gate]}
    reseal(own, precisions=manifest["precisions"])
    assert "int8" not in {one.precision for one in prepare(asked(own)).search.first}
    with pytest.raises(ArtifactError, match="it failed its gates: accuracy drops"):
        prepare(asked(own, precisions=("int8",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "artifacts holds no bundle: give --name or --bundle"),
        (["../x"], "is not a model name"),
        (["x", "--latency-p99-ms", "0"], "--latency-p99-ms"),
        (["x", "--precision", "fp8"], "'fp8' is not one of"),
        (["x", "--device", "tpu"], "tpu"),
        (["x", "--concurrency", "0"], "0 is not in the range"),
        (["x", "--concurrency", "1,many"], "'many' is not a valid integer"),
        (["x", "--rows", "0"], "--rows"),
        (["x", "--duration", "0"], "--duration"),
        (["x", "--minutes", "-1"], "--minutes"),
        (["x", "--seed", "a"], "--seed"),
        (["x", "--repository", __file__], "--repository"),
        (["x", "--recipe", "no-such-recipe"], "no recipe"),
    ],
)
def test_wrong_usage_is_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # away from the artifacts of the project
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_failures_are_1_and_one_line(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "x", "--artifacts", "/no/such"]) == 1
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert main(["tune", "tiny", "--bundle", str(own), "--repository", str(tmp_path / "models")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" at ")[0] for line in lines[:1]] == ["error: no bundle"]
    assert "was not packaged by tritonize" in lines[1] and len(lines) == 2
    assert not (own.parent / "tuning.partial.sqlite3").exists()


def test_a_dry_run_prints_the_grid_and_tries_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "tiny", "--bundle", str(own), "--device", "cpu", "--dry-run"]) == 0
    words = capsys.readouterr().out.splitlines()
    assert words[0].endswith("← untuned")
    assert main(["tune", "tiny", "--bundle", str(own), "--device", "cpu", "--dry-run", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(words)
    assert [entry.name for entry in own.parent.iterdir()] == ["bundle"]


def test_the_winner_goes_into_a_recipe_beside_the_users_own_choices(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "make_testbed", lambda *_, **__: testbed)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    monkeypatch.setattr(plan, "cores", lambda: 2)
    recipe = tmp_path / "mine.toml"
    line = ["tune", "tiny", "--bundle", str(own), "--repository", str(tmp_path / "models"), "--device", "cpu", "--minutes", "60"]
    recipe.write_text('package = { precision = "int8" }\n')
    testbed = MadeUp(best_at(1, 2, 3))
    assert main([*line, "--recipe", str(recipe)]) == 1
    assert "cannot be added to" in capsys.readouterr().err and not testbed.made, "before anything is measured"
    recipe.write_text("[package]\nthreads = 2  # mine\n")
    assert main([*line, "--recipe", str(recipe)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "your recipe pins threads: kept, and no instances written"
    assert said[-1].startswith(f"{recipe}: [package] serves it in this configuration, except for that")
    choices = tomllib.loads(recipe.read_text())["package"]
    assert choices == {"precision": "fp32", "threads": 2, "batching": "ragged", "max-batch-size": 64, "queue-delay-us": 2000}
    recipe.write_text('[package]\nprecision = "int8"\n')
    assert main([*line, "--recipe", str(recipe)]) == 0
    assert "stays without a winner" in capsys.readouterr().err and recipe.read_text() == '[package]\nprecision = "int8"\n'
    assert main(line) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "nothing has changed since this was measured; --fresh measures again"
    tuned = own.parent / "tuned.toml"
    assert f"the same as a recipe: tritonize package --recipe {tuned}" in said[-1]
    assert (choices := tomllib.loads(tuned.read_text())["package"]) and "device" not in choices and choices["instances"] == 3
    before = tuned.read_text()
    assert main(line) == 0 and tuned.read_text() == before


def running(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


@pytest.mark.server
@pytest.mark.long
def test_a_trial_is_made_on_a_real_server(own: Path) -> None:
    bed = make_testbed(load_bundle(own), asked(own, rows=16, concurrencies=(1, 8), duration=0.4))
    configuration = Configuration(
        precision="fp32", device="cpu", batching="ragged", instances=1, threads=1, max_batch_size=16, queue_delay_us=3000
    )
    trial = bed.measure(configuration, 0)
    assert trial.failure is None and trial.configuration == configuration
    one, eight = trial.levels
    assert (one.concurrency, eight.concurrency) == (1, 8)
    assert 0 < one.p50_ms <= one.p99_ms and one.throughput > 0
    assert one.p50_ms > 3, "one client's request waits for company in vain"
    assert one.executed_batch == 1 and eight.executed_batch > 2
    assert 50 < trial.memory_mib <= (trial.peak_rss_mib or 0)
    assert 0 < (trial.load_seconds or 0) < trial.seconds
    failed = replace(bed, load_generator=Path("/bin/false")).measure(configuration, 1)
    assert failed.failure is not None and "perf_analyzer failed over grpc" in failed.failure and not failed.levels
    assert not left_behind()


@pytest.fixture
def command(own: Path, tmp_path: Path) -> list[str]:
    """The shortest tuning there is."""
    flags = ["--artifacts", tmp_path / "artifacts", "--repository", tmp_path / "models", "--device", "cpu", "--rows", 8]
    flags += ["--concurrency", "2", "--duration", "0.3", "--minutes", "0.01", "--precision", "int8"]
    return ["tune", "tiny", *map(str, flags)]


@pytest.mark.server
@pytest.mark.long
def test_interrupted_resumed_and_applied(command: list[str], own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.toml"
    mine = 'name = "tiny"  # what clients call it\n\n[package]\nqueue_delay_us = 9  # mine\n\n[serve]\nhttp-port = 8000\n'
    recipe.write_text(mine)
    recorded = [*command, "--recipe", str(recipe)]
    with subprocess.Popen([sys.executable, "-m", "export.cli", *recorded], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        watch_keeper(process.pid)
        first = process.stderr.readline()
        assert first.startswith("trial 1 of about ") and " rows/s, p99 " in first
        second = process.stderr.readline()  # on to the final
        assert "2 rounds in the final instead of 3" in second or "not tried, as" in second
        family = running(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted" in err.splitlines()[-1], err
    assert not [member for member in family if member.is_running()]
    assert not left_behind()
    assert not (own.parent / "tuning").exists() and not (tmp_path / "models").exists()

    assert main(recorded) == 0
    out, err = capsys.readouterr()
    assert "trials of an earlier run that are used again: 1" in err
    assert err.count("trial ") == 2, "two rounds of the final"
    assert "rows/s" in out.splitlines()[0] and "← best, untuned" in out
    manifest = read_manifest(current_folder(tmp_path / "models", "tiny"), RepositoryManifest)
    assert manifest.precision == "int8" and manifest.reasons["configuration"].startswith("tuned: ")
    written = recipe.read_text()
    assert set(mine.splitlines()) <= set(written.splitlines()) and "your recipe pins queue-delay-us: kept" in err
    assert "# tuned on cpu, bundle " in written
    assert tomllib.loads(written)["package"] | {"queue_delay_us": 9, "precision": "int8"} == tomllib.loads(written)["package"]
    package = ["package", "--recipe", str(recipe), "--bundle", str(own), "--repository", str(tmp_path / "models"), "--json"]
    assert main(package) == 0
    capsys.readouterr()
    packaged = read_manifest(current_folder(tmp_path / "models", "tiny"), RepositoryManifest)
    assert packaged.configuration == manifest.configuration, "the recipe serves it so"

    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "nothing has changed since this was measured" in err
    found = json.loads(out)
    assert found["winner"]["precision"] == "int8" and len(found["trials"]) == 3
    assert tomllib.loads((own.parent / "tuned.toml").read_text())["name"] == "tiny"
    assert found["recipe"] == str(own.parent / "tuned.toml")

    manifest = read_manifest(current_folder(tmp_path / "models", "tiny"), RepositoryManifest)
    assert main([*command, "--latency-p99-ms", "0.001"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: no configuration stays within 0.001 ms at p99; nearest is int8")
    )
    assert read_manifest(current_folder(tmp_path / "models", "tiny"), RepositoryManifest) == manifest
