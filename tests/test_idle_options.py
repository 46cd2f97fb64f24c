"""Options that are given and would have no effect are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import export
import serving
from export import cli
from export.tasks.question_answering import QuestionAnsweringTask
from export.tasks.text_classification import TextClassificationTask
from export.training.hyperparameters import Distillation
from serving import repository
from serving.artifact import write_manifest
from serving.options import PackageOptions
from tests.helpers.manifests import bundle_manifest
from tests.helpers.recorded_stages import record_export, record_finetune

FINETUNE = ["finetune", "--checkpoint", "c", "--train", "t"]
KEPT = "without --test: the rows that finetune kept have no columns to choose"


@pytest.fixture(autouse=True)
def _recorded(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_finetune(monkeypatch)
    record_export(monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*FINETUNE, "--private"], "--private has no effect without --push-to-hub"),
        ([*FINETUNE, "--test-text-column", "x"], "--test-text-column has no effect without --test"),
        ([*FINETUNE, "--task", "fill-mask", "--text-pair-column", "x"], "--text-pair-column has no effect for fill-mask: its rows"),
        (
            [*FINETUNE, "--task", "token-classification", "--text-pair-column", "x"],
            "for token-classification: its rows",
        ),
        ([*FINETUNE, "--choice-column", "x"], "--choice-column has no effect for text-classification: its rows have no choices"),
        ([*FINETUNE, "--teacher-parts", "2"], "--teacher-parts goes with --teacher"),
        ([*FINETUNE, "--adapter-option", "r=2"], "--adapter-option goes with --adapter"),
        (["export", "--private"], "--private has no effect without --push-to-hub"),
        (["export", "--text-column", "x"], f"--text-column has no effect {KEPT}"),
        (["export", "--label-column", "x"], f"--label-column has no effect {KEPT}"),
        (["export", "--encoding", "latin-1"], f"--encoding has no effect {KEPT}"),
        (["export", "--precision", "fp32", "--min-agreement", "0.9"], "--min-agreement has no effect for fp32"),
        (["export", "--precision", "fp32", "--min-row-agreement", "0.9"], "--min-row-agreement has no effect for fp32"),
        (["export", "--min-row-agreement", "0.9"], "--min-row-agreement has no effect for text-classification, where --min-agree"),
        (["export", "--task", "fill-mask", "--test", "t", "--text-pair-column", "x"], "for fill-mask: its rows have one text"),
        (["serve", "--front", "none", "--queue", "3"], "--queue has no effect with --front none"),
        (["serve", "--front", "none", "--max-request-mib", "3"], "--max-request-mib has no effect with --front none"),
        (["serve", "--front", "none", "--api-key-file", __file__], "--api-key-file has no effect with --front none"),
        (["serve", "--trace-rate", "0.5"], "--trace-rate has no effect without --trace"),
        (["predict", "m", "text", "--text-column", "x"], "--text-column has no effect without --input"),
        (["predict", "m", "--choice-column", "x"], "--choice-column has no effect without --input"),
        (["predict", "m", "--input", __file__, "--output", "o", "--json"], "--json has no effect with --output"),
        (["benchmark", "m", "--in-process", "--http-port", "1"], "--http-port has no effect with --in-process"),
        (["benchmark", "m", "--in-process", "--rate", "80%"], "--rate has no effect with --in-process"),
        (["benchmark", "m", "--text-column", "x"], "--text-column has no effect without --test"),
        (["benchmark", "m", "--max-regression", "5%"], "--max-regression has no effect without --baseline"),
        (["tune", "m", "--dry-run", "--fresh"], "--fresh has no effect with --dry-run"),
    ],
)
def test_an_option_without_effect_is_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [*FINETUNE, "--text-pair-column", "x"],
        [*FINETUNE, "--task", "question-answering", "--text-pair-column", "x"],
        [*FINETUNE, "--test", "t", "--test-text-column", "x"],
        ["export", "--test", "t", "--text-column", "x"],
        ["export", "--precision", "fp32,int8", "--min-agreement", "0.9"],
        ["export", "--task", "token-classification", "--min-row-agreement", "0.8"],
    ],
)
def test_options_with_an_effect_are_taken(arguments: list[str]) -> None:
    assert cli.main(arguments) == 0


def test_a_recipe_may_hold_values_ready_but_not_of_protection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("keys").write_text("secret\n", encoding="utf-8")
    Path("r.toml").write_text('[export]\nprivate = true\ntext-column = "x"\n[serve]\nfront = "none"\nqueue = 3\n', encoding="utf-8")
    assert cli.main(["export", "--recipe", "r.toml"]) == 0
    assert cli.main(["serve", "--recipe", "r.toml", "--repository", "nothing"]) == 1
    assert "no effect" not in capsys.readouterr().err
    Path("r.toml").write_text('[serve]\nfront = "none"\napi-key-file = "keys"\n', encoding="utf-8")
    assert cli.main(["serve", "--recipe", "r.toml", "--repository", "nothing"]) == 2
    assert "--api-key-file has no effect with --front none" in capsys.readouterr().err


def test_packaging_refuses_what_its_plan_does_not_use(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bundle").mkdir()
    write_manifest(Path("bundle"), bundle_manifest(settings={"labels": ["bad", "good"], "function_to_apply": "softmax"}))
    seen: list[PackageOptions] = []

    def stop(options: PackageOptions) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "package", stop)

    def said(*more: str) -> str:
        code = cli.main(["package", "--bundle", "bundle", *more])
        return f"{code}: {' '.join(capsys.readouterr().err.split())}"

    assert "2: " in (refused := said("--batching", "off", "--queue-delay-us", "5", "--device", "cpu"))
    assert "--queue-delay-us has no effect with batching off, where no request waits for others (fp32)" in refused
    monkeypatch.setattr("serving.plan.resolve_device", lambda _: "gpu")
    assert "--threads has no effect on a GPU: it sets the threads on a CPU" in said("--threads", "2")
    assert not seen
    assert "1: " in said("--queue-delay-us", "5", "--batching", "ragged")
    Path("r.toml").write_text("[package]\nthreads = 2\n", encoding="utf-8")
    said("--recipe", "r.toml")
    assert [options.threads for options in seen] == [None, 2]


def test_a_keyword_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="--private has no effect without --push-to-hub"):
        export.finetune(checkpoint="c", train="t", private=True)
    with pytest.raises(ValueError, match="--queue has no effect with --front none"):
        serving.serve(front="none", queue=3)


LABELS = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}


def test_settings_without_effect_are_known() -> None:
    assert TextClassificationTask.from_config(LABELS | {"problem_type": "multi_label_classification"}).idle_settings() == {}
    (reason,) = TextClassificationTask.from_config(LABELS).idle_settings().values()
    assert reason == "each row has exactly one label, and a threshold is for rows with any number of labels"
    number = TextClassificationTask.from_config({"id2label": {"0": "score"}, "problem_type": "regression"})
    assert "the model predicts a number" in number.idle_settings()["threshold"]
    assert QuestionAnsweringTask.from_config({}, pair=True).idle_settings().keys() == {"max_question_len"}


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_a_temperature_without_softmax_is_refused(problem_type: str) -> None:
    with pytest.raises(click.BadParameter, match="it has no effect: "):
        Distillation(teacher="t", temperature=4.0).check_temperature(problem_type)
    Distillation(teacher="t").check_temperature(problem_type)
    Distillation(teacher="t", temperature=4.0).check_temperature("single_label_classification")


@pytest.mark.parametrize("command", ["finetune", "export"])
def test_a_setting_without_effect_is_refused(
    command: str, tiny_checkpoint: Path, review_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    rows = ["--train", str(review_file)] if command == "finetune" else ["--test", str(review_file)]
    given = ["--name", "m", "--checkpoint", str(tiny_checkpoint), *rows, "--setting", "threshold=0.3"]
    assert cli.main([command, *given]) == 2
    error = capsys.readouterr().err
    assert "Invalid value for --setting: threshold has no effect: each row has exactly one label" in " ".join(error.split())
