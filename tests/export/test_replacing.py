"""An artifact is not replaced by one that was made from something else, unless that is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import cli, finetuning, variants
from export.finetune_options import FinetuneOptions
from export.replacing import TrainingOrigin, existing, refuse_other_bundle, refuse_other_epochs, write_origin
from serving.artifact import inputs_record, publish, read_manifest, write_manifest
from serving.errors import ArtifactError
from serving.manifests import BundleManifest, CheckpointManifest, StageInputs
from tests.helpers.manifests import bundle_manifest, checkpoint_manifest
from tests.helpers.reviews import review_rows, write_tsv


@pytest.fixture
def finetune(in_folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``finetune`` up to the training, which only writes a manifest; on rows.tsv, of a copy of a checkpoint."""
    shutil.copytree(tiny_checkpoint, "base")
    for seed, name in enumerate(("rows", "others", "validation")):
        write_tsv(in_folder / f"{name}.tsv", [("a b", *row) for row in review_rows(30, seed)], "id\ttext\tlabel")

    def written(options: FinetuneOptions, *given: Any) -> CheckpointManifest:
        inputs = next(one for one in given if isinstance(one, StageInputs))
        columns = options.columns.resolved(finetuning.trained_class(options.task))
        data = checkpoint_manifest().data.model_copy(
            update={"train": options.train, "text_columns": columns.texts, "label_column": columns.label}
        )
        changes = {"name": options.name, "task": options.task, "base_checkpoint": options.checkpoint, "data": data}
        with publish(options.target) as folder:
            return write_manifest(folder, checkpoint_manifest(inputs, **changes))

    monkeypatch.setattr(finetuning, "_train_and_write", written)

    def run(*more: str, checkpoint: str = "base", train: str = "rows.tsv") -> int:
        given = ["--name", "m", "--checkpoint", checkpoint, "--train", train, "--validation", "validation.tsv"]
        return cli.main(["finetune", *given, "--keep-leaks", *more])

    return run


ORIGIN = "artifacts/m/checkpoint was fine-tuned for text-classification from base on rows.tsv; now "


@pytest.mark.parametrize(
    ("more", "changed", "said"),
    [
        ((), {"train": "others.tsv"}, "the training rows are others.tsv"),
        ((), {"checkpoint": "other"}, "the checkpoint is other"),
        (("--text-column", "id"), {}, "the columns are id, label in place of text, label"),
        (("--task", "feature-extraction", "--text-column", "text", "--text-pair-column", "id", "--label-column", "number"),
         {"train": "pairs.tsv"}, "the task is feature-extraction, the training rows are pairs.tsv"),
    ],
)  # fmt: skip
def test_another_origin_is_refused_and_forced(
    finetune: Callable[..., int], capsys: pytest.CaptureFixture[str], more: tuple[str, ...], changed: dict[str, str], said: str
) -> None:
    shutil.copytree("base", "other")
    Path("other/vocab.txt").write_text("other", encoding="utf-8")
    pairs = [("a", "b", "0.5"), ("c", "d", "0.7"), ("e", "f", "0.1")] * 9
    write_tsv(Path("pairs.tsv"), pairs, "text\tid\tnumber")
    assert finetune() == 0
    before = read_manifest(Path("artifacts/m/checkpoint"), CheckpointManifest)
    capsys.readouterr()
    if changed.get("train") == "pairs.tsv":
        write_tsv(Path("validation.tsv"), pairs, "text\tid\tnumber")
    assert finetune(*more, **changed) == 1
    error = capsys.readouterr().err
    assert f"error: {ORIGIN}{said} (choose another --name, or replace it with --force)\n" in error
    assert read_manifest(Path("artifacts/m/checkpoint"), CheckpointManifest) == before
    assert finetune(*more, "--force", **changed) == 0
    assert read_manifest(Path("artifacts/m/checkpoint"), CheckpointManifest) != before


def test_the_same_data_and_checkpoint_are_trained_anew_and_it_is_said(
    finetune: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*more: str, **changed: str) -> str:
        assert finetune(*more, **changed) == 0
        return capsys.readouterr().err

    replaced = "the earlier checkpoint in artifacts/m/checkpoint will be replaced: "
    assert replaced not in said()
    assert "artifacts/m/checkpoint is up to date" in said()
    assert f"{replaced}seed 2 in place of 0\n" in said("--seed", "2")
    assert (
        f"{replaced}epochs 4 in place of 3, batch-size 8 in place of 32, learning-rate 0.001 in place of none and 1 more\n"
        in said("--epochs", "4", "--batch-size", "8", "--learning-rate", "1e-3")
    )
    shutil.copy("others.tsv", "rows.tsv")  # a new version of the data
    assert f"{replaced}the training rows have changed" in said("--epochs", "4", "--batch-size", "8", "--learning-rate", "1e-3")
    again = ("--epochs", "4", "--batch-size", "8", "--learning-rate", "1e-3")
    assert "is up to date" in said(*again, train="others.tsv"), "the same rows in another file"
    Path("base/vocab.txt").write_text("changed", encoding="utf-8")
    assert f"{replaced}the base checkpoint has changed\n" in said(*again)
    shutil.move("base", "moved")
    assert "is up to date" in said(*again, checkpoint="moved")


def test_a_folder_that_is_no_artifact_is_not_replaced(tmp_path: Path) -> None:
    assert existing(tmp_path / "nothing", CheckpointManifest) is None
    (tmp_path / "empty").mkdir()
    assert existing(tmp_path / "empty", CheckpointManifest) is None
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="mine exists and was not written by tritonize"):
        existing(mine, CheckpointManifest)
    (mine / "manifest.json").write_text("{", encoding="utf-8")
    assert existing(mine, CheckpointManifest) is None, "a damaged artifact may be written again"


def origin(**changes: Any) -> TrainingOrigin:
    known = {
        "task": "t",
        "checkpoint": "base",
        "checkpoint_files": {"a": "1"},
        "rows": "r.csv",
        "rows_sha256": "1",
        "columns": ("x",),
    }
    return TrainingOrigin.model_validate(known | changes)


def test_epochs_of_another_origin_are_not_discarded(tmp_path: Path) -> None:
    refuse_other_epochs(tmp_path, origin())
    write_origin(tmp_path, origin())
    other = origin(rows="s.csv", rows_sha256="2")
    refuse_other_epochs(tmp_path, other)  # nothing was trained yet
    (tmp_path / "checkpoint-5").mkdir()
    refuse_other_epochs(tmp_path, origin(rows_sha256="2"))
    with pytest.raises(ArtifactError, match=r"holds the epochs of an interrupted fine-tuning for t from base on r\.csv") as raised:
        refuse_other_epochs(tmp_path, other)
    assert "discard them with --force" in raised.value.hint
    (tmp_path / "origin.json").write_text("damaged", encoding="utf-8")
    refuse_other_epochs(tmp_path, other)


def bundle_of(folder: Path, checkpoint: str, **changes: Any) -> None:
    made = bundle_manifest(inputs_record({}, {"model.safetensors": "1"}), **changes)
    original = made.original.model_copy(update={"checkpoint": made.original.checkpoint.model_copy(update={"name": checkpoint})})
    folder.mkdir(exist_ok=True)
    write_manifest(folder, made.model_copy(update={"original": original}))


def test_a_bundle_of_another_checkpoint_or_task_is_not_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, task = tmp_path / "bundle", "text-classification"
    same, changed = {"model.safetensors": "1"}, {"model.safetensors": "2"}

    def refuse(task: str = task, checkpoint: str = "m", files: dict[str, str] = same, *, retrainable: bool = True) -> None:
        refuse_other_bundle(folder, task=task, checkpoint=checkpoint, files=files, retrainable=retrainable)

    refuse()
    bundle_of(folder, "m")
    refuse()  # other options of the export
    refuse(checkpoint="copy of m")
    refuse(files=changed)  # it was trained anew
    refuse("fill-mask", files=changed)  # and for another task, which finetune was forced to
    refuse(files=changed, retrainable=False)  # a foreign folder with another content
    with pytest.raises(ArtifactError, match="was exported for text-classification from m; now the checkpoint is other"):
        refuse(checkpoint="other", files=changed)
    with pytest.raises(ArtifactError, match="now the task is zero-shot-classification"):
        refuse("zero-shot-classification")
    with pytest.raises(ArtifactError, match="now the task is fill-mask"):
        refuse("fill-mask", files=changed, retrainable=False)


def test_export_asks_before_it_replaces(
    in_folder: Path, tiny_checkpoint: Path, review_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    monkeypatch.setattr(variants, "build", stop)
    (in_folder / "artifacts/m").mkdir(parents=True)
    bundle_of(in_folder / "artifacts/m/bundle", "elsewhere")
    given = [
        "export",
        "--name",
        "m",
        "--task",
        "text-classification",
        "--checkpoint",
        str(tiny_checkpoint),
        "--test",
        str(review_file),
    ]
    assert cli.main(given) == 1
    error = "error: artifacts/m/bundle was exported for text-classification from elsewhere; now the checkpoint is bert ("
    assert error in capsys.readouterr().err
    with pytest.raises(StopError):
        cli.main([*given, "--force"])
    assert read_manifest(in_folder / "artifacts/m/bundle", BundleManifest).original.checkpoint.name == "elsewhere"
