"""Stages as Python functions: keywords are read and checked as options are."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest

import benchmarks
import export
import serving
from export.export_options import ExportOptions
from export.finetune_options import FinetuneOptions
from serving.click_options import options_command
from serving.reporting import logger
from tests.helpers.recorded_stages import record_export, record_finetune

STAGES = [export.finetune, export.export, serving.package, serving.serve, benchmarks.benchmark]


@pytest.fixture
def finetuned(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneOptions]:
    return record_finetune(monkeypatch)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_shows_its_keywords(stage: Any) -> None:
    signature = inspect.signature(stage)
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in signature.parameters.values())
    assert "progress" in signature.parameters
    assert {"Returns:", "Raises:"} <= set(inspect.getdoc(stage).split()), "its documentation"  # type: ignore[union-attr]


def test_what_is_required_has_no_default() -> None:
    parameters = inspect.signature(export.finetune).parameters
    without = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    assert without == ["checkpoint", "train"]
    assert parameters["epochs"].default == 3 and parameters["epochs"].annotation is int
    assert parameters["adapter"].default is None


def test_keywords_become_options(finetuned: list[FinetuneOptions], tmp_path: Path) -> None:
    export.finetune(
        checkpoint="c", train="t", artifacts=tmp_path, epochs=5, learning_rate=1e-4, label_column=["a", "b"], text_column="body",
        setting={"threshold": 0.25}, adapter="lora", adapter_option={"r": 4}, max_length=None, name="tickets",
    )  # fmt: skip
    (options,) = finetuned
    assert (options.checkpoint, options.train, options.artifacts, options.name) == ("c", "t", tmp_path, "tickets")
    assert (options.training.epochs, options.training.learning_rate, options.max_length) == (5, 1e-4, None)
    assert (options.columns.text, options.columns.labels) == ("body", ("a", "b"))
    assert options.setting == {"threshold": 0.25}
    assert options.adapter is not None and options.adapter.options == {"r": 4}
    assert options.fixed == ("epochs", "learning_rate"), "the search leaves what was given"


def test_the_default_is_that_of_the_command(finetuned: list[FinetuneOptions]) -> None:
    export.finetune(checkpoint="c", train="t")
    assert finetuned == [FinetuneOptions(checkpoint="c", train="t", name="t")]


def test_one_value_stands_for_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ExportOptions] = record_export(monkeypatch)
    monkeypatch.setattr("export.variant_table.variant_table", lambda _: [])
    export.export(precision="fp32", max_metric_drop=1)
    export.export(precision=("fp32", "int8"))
    assert [options.precision for options in seen] == [("fp32",), ("fp32", "int8")]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({}, TypeError, r"finetune\(\) needs the keyword 'checkpoint'"),
        ({"checkpoint": None, "train": "t"}, TypeError, r"finetune\(\) needs the keyword 'checkpoint'"),
        ({"checkpoint": "c", "train": "t", "epoch": 2}, TypeError, r"finetune\(\) has no keyword 'epoch'; did you mean epochs\?"),
        ({"checkpoint": "c", "train": "t", "epochs": 0}, ValueError, "epochs: 0 is not in the range"),
        ({"checkpoint": "c", "train": "t", "epochs": 1.5}, ValueError, "epochs cannot be 1.5"),
        ({"checkpoint": "c", "train": "t", "learning_rate": [1e-4]}, ValueError, "learning_rate cannot be"),
        ({"checkpoint": "c", "train": "t", "learning_rate": float("nan")}, ValueError, "learning_rate: nan is not a finite number"),
        ({"checkpoint": "c", "train": b"t"}, ValueError, "train cannot be b't'"),
        ({"checkpoint": "c", "train": "t", "task": "poetry"}, ValueError, "task: 'poetry' is not one of"),
        ({"checkpoint": "c", "train": "t", "setting": {"rhyme": True}}, ValueError, "setting: .*rhyme"),
        ({"checkpoint": "c", "train": "t", "adapter_option": {"r": 4}}, ValueError, "--adapter-option goes with --adapter"),
        ({"checkpoint": "c", "train": "t", "name": "../up"}, ValueError, "name: '../up' is not a model name"),
    ],
)
def test_a_wrong_keyword_is_an_error(
    finetuned: list[FinetuneOptions], keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export.finetune(**keywords)
    assert finetuned == []


def test_a_benchmark_needs_a_name_or_a_bundle(in_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"artifacts holds no bundle: give --name or --bundle"):
        benchmarks.benchmark()


def test_errors_of_a_stage_are_those_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(serving.ArtifactError, match="nothing"):
        serving.package(name="nothing", bundle=tmp_path / "nothing", repository=tmp_path)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_written_to_stderr_unless_unwanted(
    progress: bool, finetuned: list[FinetuneOptions], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="tritonize"):
            export.finetune(checkpoint="c", train="t", progress=progress)
    finally:
        logger.removeHandler(caplog.handler)
    assert ("checkpoint: artifacts/t/checkpoint" in capsys.readouterr().err) is progress
    assert "checkpoint: artifacts/t/checkpoint" in caplog.messages, "a program's own handlers get it either way"


def test_a_command_of_options_does_nothing() -> None:
    assert options_command("export", [ExportOptions]).callback is None
