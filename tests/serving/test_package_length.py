"""The maximum length of a row can be changed when a bundle is packaged, up to what the model takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.preparation import read_inputs
from benchmarks.tuning.packaged_sizes import packaged_sizes
from benchmarks.tuning.tune_options import TuneOptions
from export.cli import main
from serving.artifact import read_manifest
from serving.bundle import load_bundle
from serving.errors import ArtifactError
from serving.layout import current_folder
from serving.manifests import RepositoryManifest
from serving.options import PackageOptions
from serving.pbtxt import from_pbtxt
from serving.pipeline_attributes import PipelineAttributes
from serving.repository import package
from tests.helpers.packages import step
from tests.helpers.resealing import reseal

VERIFIED, POSITIONS = 32, 96


@pytest.fixture
def short_bundle(bundle: Path, tmp_path: Path) -> Path:
    """The bundle as if it had been exported with rows of 32 tokens, of a model that takes 96."""
    assert load_bundle(bundle).manifest.max_positions == POSITIONS, "export records the positions"
    shutil.copytree(bundle, tmp_path / "bundle")
    reseal(tmp_path / "bundle", max_length=VERIFIED)
    return tmp_path / "bundle"


@pytest.fixture
def options(short_bundle: Path, tmp_path: Path) -> PackageOptions:
    return PackageOptions(name="tiny", bundle=short_bundle, repository=tmp_path / "models", precision="fp32", device="cpu")


def told(repository: Path) -> dict[str, Any]:
    """What the package says of its length, in every place."""
    config = from_pbtxt((repository / "tiny" / "config.pbtxt").read_text(encoding="utf-8"))
    description = json.loads(config["parameters"]["description"]["string_value"])
    settings = json.loads((step(repository, "tiny", "preprocess") / "1" / "settings.json").read_text(encoding="utf-8"))
    warmup = from_pbtxt((step(repository, "tiny", "model") / "config.pbtxt").read_text(encoding="utf-8"))["model_warmup"]
    return {
        "manifest": read_manifest(current_folder(repository, "tiny"), RepositoryManifest).max_length,
        "client": PipelineAttributes.of("tiny", description).tokenizer.model_max_length,
        "step": settings["max_length"],
        "warm-up": int(warmup[-1]["inputs"]["input_ids"]["dims"][0]),
    }


def test_the_length_of_the_export_is_the_default(options: PackageOptions) -> None:
    manifest = package(options).manifest
    assert set(told(options.repository).values()) == {VERIFIED} and "max_length" not in manifest.reasons


@pytest.mark.parametrize("length", [8, VERIFIED, 64, POSITIONS])
def test_every_part_of_the_package_has_the_chosen_length(options: PackageOptions, length: int) -> None:
    package(options)
    packaged = package(replace(options, max_length=length))
    assert packaged.unchanged == (length == VERIFIED)
    assert set(told(options.repository).values()) == {length}
    long = packaged.manifest.answers[1]
    text, other = (" ".join(answer.request.inputs[0].data) for answer in (long, packaged.manifest.answers[0]))
    assert len(load_bundle(options.bundle_folder).encoder(["input_ids"]).plain_ids([text])[0]) > length - 2 and other in text
    assert [tensor.data for tensor in long.outputs if tensor.name == "TRUNCATED"] == [(True,)]
    reason = packaged.manifest.reasons.get("max_length")
    if length > VERIFIED:
        assert reason == f"{length}, as asked: rows longer than {VERIFIED} tokens were not verified at export"
    else:
        assert reason == (f"{length}, as asked: the export verified {VERIFIED}" if length < VERIFIED else None)
    assert package(replace(options, max_length=length)).unchanged
    tuned = TuneOptions(name="tiny", bundle=options.bundle_folder, repository=options.repository)
    assert packaged_sizes(tuned) == (length, None), "tuning keeps it"


def test_no_more_than_the_positions_of_the_model(options: PackageOptions, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match="the model takes at most 96 tokens, not 97"):
        package(replace(options, max_length=POSITIONS + 1))
    assert not options.repository.exists()
    places = ["--bundle", str(options.bundle_folder), "--repository", str(options.repository), "--device", "cpu"]
    assert main(["package", "--name", "tiny", *places, "--max-length", "97"]) == 1
    assert capsys.readouterr().err == "error: the model takes at most 96 tokens, not 97 (give --max-length 96 or less)\n"
    assert main(["package", "--name", "tiny", *places, "--max-length", "3"]) == 2


def test_a_model_without_a_limit_takes_any_length(options: PackageOptions) -> None:
    reseal(options.bundle_folder, max_length=VERIFIED, max_positions=None)
    assert load_bundle(options.bundle_folder).with_max_length(10_000).max_length == 10_000


def test_a_recipe_sets_it(options: PackageOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "long.toml"
    recipe.write_text("[package]\nmax-length = 64\nprecision = 'fp32'\n")
    places = ["--bundle", str(options.bundle_folder), "--repository", str(options.repository), "--device", "cpu"]
    assert main(["package", "--name", "tiny", "--recipe", str(recipe), *places]) == 0
    assert "max_length 64, as asked: rows longer than 32 tokens were not verified at export" in capsys.readouterr().err
    assert set(told(options.repository).values()) == {64}


def test_a_benchmark_measures_at_the_served_length(options: PackageOptions, trained_checkpoint: Path) -> None:
    package(replace(options, max_length=64))
    asked = BenchmarkOptions(
        name="tiny",
        bundle=options.bundle_folder,
        repository=options.repository,
        checkpoint=str(trained_checkpoint),
        rows=8,
        rounds=1,
        lengths=(),
        precisions=("fp32",),
        device="cpu",
    )
    assert read_inputs(asked).bundle.max_length == 64
    assert read_inputs(replace(asked, in_process=True)).bundle.max_length == VERIFIED
    package(replace(options, max_length=None, force=True))
    assert read_inputs(asked).bundle.max_length == VERIFIED
    reseal(options.bundle_folder, max_length=VERIFIED, main_metric="f1")
    with pytest.raises(ArtifactError, match="was not packaged from"):
        read_inputs(asked)
