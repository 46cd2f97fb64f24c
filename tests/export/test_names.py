"""The name and the task of a model where the user gives none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.options import with_model_name
from export import cli
from export.export_options import ExportOptions
from export.export_subject import described_export
from export.finetune_options import FinetuneOptions
from export.recipe import RECIPE_STEM
from export.training_name import name_of_rows
from serving.artifact import write_manifest
from serving.errors import ArtifactError, ExportError
from serving.manifests import BundleManifest, CheckpointManifest
from serving.naming import as_model_name, named_for_packaging
from serving.options import PackageOptions, parse_model_name
from serving.reporting import logger
from tests.helpers.manifests import bundle_manifest, checkpoint_manifest
from tests.helpers.recorded_stages import record_finetune


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    """Let caplog see what the user is told."""
    caplog.set_level(logging.INFO, logger=logger.name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tickets", "tickets"),
        ("distilbert-base_v1.5", "distilbert-base_v1.5"),
        ("Größe & Farbe (neu)", "Groe-Farbe-neu"),
        ("..hidden", "hidden"),
        ("модель", "model"),
        ("", "model"),
        ("a/b\n", "a-b"),
        ("x" * 300, "x" * 200),
    ],
)
def test_any_text_becomes_a_model_name(text: str, name: str) -> None:
    assert as_model_name(text) == name == parse_model_name(name)


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("quickstart:reviews", "reviews"),
        ("quickstart:reviews:train", "reviews"),
        ("hub:nyu-mll/glue/sst2", "sst2"),
        ("hub:owner/set:train", "set"),
        ("data/tickets.csv", "tickets"),
        ("data/tickets/train.csv", "tickets"),
        ("data/tickets/train-00000-of-00002.parquet", "tickets"),
        ("data/tickets/part-*.csv", "tickets"),
        ("data/tickets.v2/", "tickets.v2"),
        ("train.csv", "here"),
        ("/train.csv", "model"),
    ],
)
def test_rows_name_the_model(location: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/data/tickets.v2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert name_of_rows(location) == name


def test_a_name_is_that_of_the_flag_the_recipe_its_file_or_the_rows(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = record_finetune(monkeypatch)
    Path("my recipe.toml").write_text('[finetune]\ncheckpoint = "c"\ntrain = "rows.csv"\n', encoding="utf-8")
    Path("named.toml").write_text('name = "named"\n[finetune]\ncheckpoint = "c"\ntrain = "rows.csv"\n', encoding="utf-8")

    def named(*arguments: str) -> tuple[str, str]:
        assert cli.main(["finetune", *arguments]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "is called" in line]
        return trained[-1].name, said[0] if said else ""

    assert named("--recipe", "named.toml", "--name", "flag") == ("flag", "")
    assert named("--recipe", "named.toml") == ("named", "")
    assert named("--recipe", "my recipe.toml") == (
        "my-recipe",
        "the model is called my-recipe, after the recipe (--name changes this)",
    )
    rows = ("rows", "the model is called rows, after its training rows (--name changes this)")
    assert named("--checkpoint", "c", "--train", "rows.csv") == rows
    assert named("--recipe", "quickstart", "--train", "rows.csv") == ("reviews", ""), "a built-in recipe has a name"


def checkpoint(folder: Path, architecture: str | None, *files: str, **config: Any) -> Path:
    folder.mkdir(parents=True)
    content = ({} if architecture is None else {"architectures": [architecture]}) | config
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file({"x": np.zeros(1)}, folder / "model.safetensors")
    for file in files:
        (folder / file).write_text("[]", encoding="utf-8")
    return folder


NLI = {"id2label": {"0": "contradiction", "1": "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
LABELS = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}


@pytest.mark.parametrize(
    ("architecture", "files", "config", "task"),
    [
        ("BertForSequenceClassification", (), LABELS, "text-classification"),
        ("BertForMaskedLM", (), {}, "fill-mask"),
        ("BertForTokenClassification", (), LABELS, "token-classification"),
        ("BertForQuestionAnswering", (), {}, "question-answering"),
        ("BertForMultipleChoice", (), {}, "multiple-choice"),
        ("BertModel", (), {"hidden_size": 8}, "feature-extraction"),
        ("BertModel", ("modules.json",), {"hidden_size": 8}, "feature-extraction"),
        (None, ("modules.json",), {"hidden_size": 8}, "feature-extraction"),
    ],
)
def test_a_foreign_checkpoint_has_the_task_of_its_architecture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str | None, files: tuple[str, ...], config: Any, task: str
) -> None:
    folder = checkpoint(tmp_path / "My Model", architecture, *files, **config)
    found = described_export(ExportOptions(checkpoint=str(folder)))
    assert (found.name, found.task) == ("My-Model", task)
    assert f"the task is {task}: {folder} is a {architecture or 'no architecture'} (--task changes this)" in caplog.messages
    assert described_export(ExportOptions(checkpoint=str(folder), task="fill-mask", name="n")).task == "fill-mask"


@pytest.mark.parametrize(
    ("architecture", "files", "config", "message", "hint"),
    [
        ("BartForSequenceClassification", (), NLI, "fits several tasks", "--task text-classification or --task zero-shot-"),
        (
            "BertForMaskedLM",
            ("modules.json",),
            {"hidden_size": 8},
            "fits several tasks",
            "--task feature-extraction or",
        ),
        ("GPT2LMHeadModel2", (), {}, "is of no task that is exported", "it can be feature-extraction, fill-mask"),
        (None, (), {}, "(no architecture) is of no task", "give --task"),
    ],
)
def test_a_task_that_is_not_clear_is_asked_for(
    tmp_path: Path, architecture: str | None, files: tuple[str, ...], config: Any, message: str, hint: str
) -> None:
    folder = checkpoint(tmp_path / "m", architecture, *files, **config)
    with pytest.raises(ExportError) as raised:
        described_export(ExportOptions(checkpoint=str(folder)))
    assert message in raised.value.message and hint in raised.value.hint


def test_a_fine_tuned_checkpoint_has_its_name_and_task(in_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoint(in_folder / "artifacts/qa/checkpoint", "BertForQuestionAnswering")
    write_manifest(folder, checkpoint_manifest(name="qa", task="question-answering"))

    def described(from_recipe: str | None = None, **options: Any) -> tuple[str, str]:
        found = described_export(ExportOptions(**options), from_recipe)
        return found.name, found.task

    qa = ("qa", "question-answering")
    assert described() == described(name="qa") == described(checkpoint=str(folder)) == described("qa") == qa
    assert "the model is called qa, after the only checkpoint in artifacts (--name changes this)" in caplog.messages
    assert described("recipe", checkpoint=str(folder)) == qa
    assert described(checkpoint=str(folder), name="other") == ("other", "question-answering")
    write_manifest(checkpoint(in_folder / "artifacts/more/checkpoint", None), checkpoint_manifest(name="more"))
    with pytest.raises(click.UsageError, match="artifacts holds several checkpoints: choose one with --name: more, qa"):
        described()
    with pytest.raises(ArtifactError, match="no checkpoint at artifacts/other/checkpoint") as raised:
        described("other")
    assert raised.value.hint == "make one with: tritonize finetune --name other; --name can be more, qa"


def test_a_bundle_names_the_model(in_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(click.UsageError, match="artifacts holds no bundle: give --name or --bundle, or make one with: "):
        named_for_packaging(PackageOptions())
    for name in ("one", "two"):
        bundle = in_folder / f"artifacts/{name}/bundle"
        bundle.mkdir(parents=True)
        write_manifest(bundle, bundle_manifest(name=name))
        if name == "one":
            assert named_for_packaging(PackageOptions()).name == "one"
            assert "the model is called one, after the only bundle in artifacts (--name changes this)" in caplog.messages
    assert named_for_packaging(PackageOptions(bundle=bundle)).name == "two"
    assert named_for_packaging(PackageOptions(bundle=bundle), "recipe").name == "two"
    assert named_for_packaging(PackageOptions(bundle=bundle, name="mine"), "recipe").name == "mine"
    assert named_for_packaging(PackageOptions(), "one").name == "one"
    with pytest.raises(click.UsageError, match="artifacts holds several bundles: choose one with --name: one, two"):
        named_for_packaging(PackageOptions())
    ctx = click.Context(click.Command("benchmark"))
    assert with_model_name(ctx, None, BenchmarkOptions(bundle=bundle)).name == "two"
    assert with_model_name(ctx, "argument", BenchmarkOptions(bundle=bundle)).name == "argument"
    ctx.meta[RECIPE_STEM] = "one"
    assert with_model_name(ctx, None, BenchmarkOptions()).name == "one"
    assert cli.main(["package", "--name", "none"]) == 1
    assert cli.main(["benchmark", "none", "--in-process"]) == 1


def test_kinds_of_artifacts_are_the_names_of_their_folders() -> None:
    assert FinetuneOptions(name="n", checkpoint="c", train="t").target.name == CheckpointManifest.artifact_kind
    assert ExportOptions(name="n").target.name == BundleManifest.artifact_kind
