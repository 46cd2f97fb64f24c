"""Files of the formats that people have, each to the rows in it exactly, and what is said about damaged ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from export.columns import Columns, HeldOutColumns
from export.data import Rows
from export.sources import load_rows
from export.tasks import task_class
from serving.errors import DataError
from serving.file_layout import FileLayout, parse_column_names, parse_encoding, parse_separator
from serving.records import read_file, read_rows


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, *, words: bool = False, **layout: Any) -> list[dict[str, Any]]:
    return [dict(row) for _, row in read_file(path, FileLayout(**layout), words=words)]


def load(path: Path, task: str, columns: Columns | None = None) -> Rows:
    return load_rows(str(path), columns or Columns(), task_class(task), split="train", cache=path.parent)


def squad(*questions: dict[str, Any], context: str = "Paris is in France.") -> str:
    return json.dumps(
        {"version": "v2.0", "data": [{"title": "Paris", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    )


WHERE = {"id": "q1", "question": "Where is Paris?", "answers": [{"text": "France", "answer_start": 12}]}
NEVER = {
    "id": "q2",
    "question": "When?",
    "answers": [],
    "is_impossible": True,
    "plausible_answers": [{"text": "Paris", "answer_start": 0}],
}


def test_nested_squad_becomes_a_row_per_question(tmp_path: Path) -> None:
    path = write(tmp_path / "dev-v2.0.json", squad(WHERE, NEVER))
    context = {"title": "Paris", "context": "Paris is in France."}
    assert rows(path) == [
        {**WHERE, **context},
        {"id": "q2", "question": "When?", "is_impossible": True, **context, "answers": []},
    ]
    found = load(path, "question-answering")
    assert found.texts == (("Where is Paris?", "When?"), ("Paris is in France.",) * 2)
    assert found.labels == ([{"text": "France", "answer_start": 12}], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            squad({"id": "q1", "answers": []}),
            r"paragraph 1, question 1: 'question' must be a text, as in SQuAD, not None",
        ),
        (squad({"question": "a"}), r"article 1, paragraph 1, question 1: 'answers' must be a list, as in SQuAD, not None"),
        (squad(WHERE, WHERE), r"two questions have the id 'q1'"),
        (json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}), r"article 1, paragraph 1: 'context' must be a text"),
        (json.dumps({"data": [{"paragraphs": "x"}]}), r"article 1: 'paragraphs' must be a list, as in SQuAD, not 'x'"),
        (json.dumps({"data": [{"paragraphs": []}, 1]}), r"article 2: 'paragraphs' must be a list"),
        (squad(WHERE, context="London is in England."), r"row 1: the answer 'France' is not at character 12 of the context"),
    ],
)
def test_damaged_squad_is_refused_with_the_place(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.json", content), "question-answering")


ROWS = [{"id": "7", "text": "a", "label": 1}, {"id": "8", "text": "b\nc", "label": 0}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"schema": {}, "data": ROWS}),
        json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
        json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}),
        json.dumps({"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]}),
        "\n".join(map(json.dumps, ROWS)),
        "\ufeff" + json.dumps(ROWS, indent=1),
    ],
)
def test_json_of_every_shape_holds_the_same_rows(tmp_path: Path, content: str) -> None:
    assert rows(write(tmp_path / "a.json", content)) == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"row 1 is not a JSON object: 1"),
        ("3", r"holds 3, not a list of objects"),
        ('{"text": "a"}', r"'text' holds 'a', not a list of values"),
        ('{"a": [1, 2], "b": [1]}', r"column 'a' has 2 values, but column 'b' has 1"),
        ('{"a": {"0": 1}, "b": {"1": 1}}', r"the columns 'a' and 'b' have different rows"),
        ('{"columns": ["a", "b"], "data": [[1, 2], [3]]}', r"row 2: 1 value for 2 columns: \[3\]"),
        ('{"columns": ["a", "a"], "data": [[1, 2]]}', r"column 'a' is there twice"),
        ('[{"a": 1}', r"a\.json is not JSON: Expecting ',' delimiter: line 1 column 10"),
        ('{"a": 1}\n{"a": ', r"a\.json, line 2 is not JSON"),
        ('[{"a": 1, "a": 2}]', r"the key 'a' is there twice"),
        ("[" * 100_000, r"a\.json is not JSON: it is nested too deeply"),
        ("", r"a\.json is not JSON: "),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(write(tmp_path / "a.json", content))


CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC
call NN I-NP O

Peter NNP B-NP I-PER
Blackburn NNP I-NP I-PER
Jane NNP B-NP B-PER
# SYM O O
"""


def test_conll_2003_is_read_as_iob2(tmp_path: Path) -> None:
    for name, words in (("eng.txt", True), ("eng.conll", False)):
        path = write(tmp_path / name, CONLL_2003)
        assert rows(path, words=words) == [
            {"tokens": ["EU", "rejects", "German", "call"], "ner": ["B-ORG", "O", "B-MISC", "O"]},
            {"tokens": ["Peter", "Blackburn", "Jane", "#"], "ner": ["B-PER", "I-PER", "B-PER", "O"]},
        ]
    assert [where for where, _ in read_file(path)] == ["line 3", "line 8"]
    named = Columns(labels=("pos",), layout=FileLayout(header="tokens,pos,-,-", file_format="conll"))
    assert load(path, "token-classification", named).labels[0]["label"] == ["NNP", "VBZ", "JJ", "NN"]


def test_iob2_with_tabs_comments_and_carriage_returns(tmp_path: Path) -> None:
    content = "# id = 1\r\nNew York\tB-LOC\r\n#\tO\r\n# no word\r\n\r\n \r\nItaly\tS-LOC\r\nin\tE-X"
    assert rows(write(tmp_path / "a.conll", content)) == [
        {"tokens": ["New York", "#"], "ner": ["B-LOC", "O"]},
        {"tokens": ["Italy", "in"], "ner": ["S-LOC", "E-X"]},
    ]
    found = load(tmp_path / "a.conll", "token-classification")
    assert found.texts == (("New York #", "Italy in"),)
    spaced = write(tmp_path / "b.txt", "# id 12 domain=en\nparis _ _ B-LOC\n\n# id 13 domain=en\nrome _ _ B-LOC\n")
    assert [row["tokens"] for row in rows(spaced, words=True)] == [["paris"], ["rome"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-ORG\ncall\n", r"a\.conll, line 2: 1 column where the first word has 2: 'call'"),
        ("EU\tB-ORG\n\tO\n", r"a\.conll, line 2: 1 column where the first word has 2"),
        ("EU B-ORG\n# O O\n", r"a\.conll, line 2: 3 columns where the first word has 2"),
        ("EU\ncall\n", r"has no column 'ner'; line 1 has tokens"),
        ("-DOCSTART- O\n\n", r"a\.conll holds no rows"),
    ],
)
def test_damaged_conll_is_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.conll", content), "token-classification")


def test_columns_of_conll_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 4 columns, but --columns names 2"):
        rows(write(tmp_path / "a.conll", CONLL_2003), header="tokens,ner")


def test_files_without_a_header(tmp_path: Path) -> None:
    cola = write(tmp_path / "in_domain_train.tsv", 'gj04\t1\t\tThey drank the pub dry.\ngj04\t0\t*\t"Us love they.\n')
    assert rows(cola, header="source,label,-,text") == [
        {"source": "gj04", "label": "1", "text": "They drank the pub dry."},
        {"source": "gj04", "label": "0", "text": '"Us love they.'},
    ]
    assert load(cola, "text-classification", Columns(layout=FileLayout(header=",label,,text"))).labels == (1, 0)
    csv = write(tmp_path / "a.csv", '1,"a, b"\n0,c\n')
    assert rows(csv, header="label,text") == [{"label": "1", "text": "a, b"}, {"label": "0", "text": "c"}]
    assert rows(write(tmp_path / "b.csv", 'label;text\n1;"a; b"\n'), separator=";") == [{"label": "1", "text": "a; b"}]


def test_the_lines_of_a_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", 'one, two\n"three"\tfour\n\nfive')
    assert [row["text"] for row in rows(path, header="text")] == ["one, two", '"three"\tfour', "five"]


def test_trec_in_latin_1_with_spaces(tmp_path: Path) -> None:
    trec = write(tmp_path / "train_5500.label", "DESC:manner How did it end ?\nENTY:cremat Who wrote Blasé ?\n".encode("latin-1"))
    layout = {"header": "label,text", "separator": " "}
    assert rows(trec, **layout, encoding="latin-1") == [
        {"label": "DESC:manner", "text": "How did it end ?"},
        {"label": "ENTY:cremat", "text": "Who wrote Blasé ?"},
    ]
    with pytest.raises(DataError, match=r"train_5500\.label, line 2: byte 0xe9 at position 55 is not UTF-8") as caught:
        rows(trec, **layout)
    assert caught.value.hint == "give the file's encoding, for example --encoding latin-1, or save it as UTF-8"
    with pytest.raises(DataError, match=r"line 2: 1 fields where --columns names 2: \['HOW'\]"):
        rows(write(tmp_path / "a.txt", "A b\nHOW\n"), **layout)


def test_the_undecodable_byte_is_named_far_into_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv.gz", gzip.compress(b"text\tlabel\n" + b"fine\t1\n" * 50_000 + b"\xb0\xa1\t0\n"))
    with pytest.raises(DataError, match=r"a\.tsv\.gz, line 50002: byte 0xb0 at position 350011 is not UTF-8"):
        rows(path)
    assert rows(path, encoding="cp949")[-1] == {"text": "가", "label": "0"}
    wide = write(tmp_path / "b.csv", "text,label\nfine,1\n".encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        rows(wide)
    assert "--encoding utf-16" in caught.value.hint
    assert rows(wide, encoding="utf-16") == [{"text": "fine", "label": "1"}]


NSMC = 'id\tdocument\tlabel\n1\t"재밌다" 라고\t1\n2\t\t0\n3\t"최고\t1\n4\t"굿"\t1\n'


def test_quotation_marks_of_raw_tsv_are_characters(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "ratings_train.txt", NSMC))
    assert [row["document"] for row in found] == ['"재밌다" 라고', "", '"최고', '"굿"']
    assert rows(write(tmp_path / "b.tsv", 'a\tb\n"fine"\t1\n')) == [{"a": '"fine"', "b": "1"}], "nothing needed these quotes"
    assert rows(write(tmp_path / "c.tsv", 'a\tb\nsay "hi"\t1\n"""x"""\t2\n'))[1] == {"a": '"""x"""', "b": "2"}


def test_tsv_of_a_csv_writer_is_unquoted(tmp_path: Path) -> None:
    content = 'text\tlabel\n"He said ""hi""."\t1\nplain\t0\n"two\nlines\tand a tab"\t1\n'
    assert rows(write(tmp_path / "a.tsv", content)) == [
        {"text": 'He said "hi".', "label": "1"},
        {"text": "plain", "label": "0"},
        {"text": "two\nlines\tand a tab", "label": "1"},
    ]
    assert rows(write(tmp_path / "b.tsv", '"text"\t"label"\n"a"\t1\n')) == [{"text": "a", "label": "1"}]


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_field_of_tsv_may_be_a_long_document(tmp_path: Path, quote: str) -> None:
    document = "a word " * 30_000
    found = rows(write(tmp_path / "a.tsv", f"{quote}text{quote}\tlabel\n{quote}{document}{quote}\t1\n"))
    assert found == [{"text": document, "label": "1"}]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_hold_the_same_rows(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    contents = {
        "a.csv": b'id,text,label\n7,a,1\n8,"b\nc",0\n',
        "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
        "a.json": json.dumps(ROWS).encode(),
        "a.parquet": (tmp_path / "a.parquet").read_bytes(),
    }
    for name, content in contents.items():
        found = rows(write(tmp_path / f"{name}{suffix}", compress(content)))
        assert [{**row, "label": int(row["label"])} for row in found] == ROWS, name
    with pytest.raises(DataError, match=rf"cannot read .*cut\.csv\{suffix}: "):
        rows(write(tmp_path / f"cut.csv{suffix}", compress(contents["a.csv"] * 50)[:-9]))
    with pytest.raises(DataError, match=rf"cannot read .*plain\.csv\{suffix}: "):
        rows(write(tmp_path / f"plain.csv{suffix}", contents["a.csv"]))


def test_another_format_than_the_name_says_and_none(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "eng.testa", CONLL_2003), file_format="conll")[0]["tokens"][0] == "EU"
    with pytest.raises(DataError, match=r"a\.zip: rows must be in a \.csv, \.tsv, .* file, which may be compressed") as caught:
        rows(write(tmp_path / "a.zip", b"PK"))
    assert "--file-format" in caught.value.hint and "unpack" in caught.value.hint
    with pytest.raises(DataError, match="cannot separate the fields of a csv file"):
        rows(write(tmp_path / "a.csv", "a b"), separator="::")
    with pytest.raises(DataError, match="the file has a header with the names of --columns"):
        rows(write(tmp_path / "a.csv", "text,label\na,1\n"), header="text,label")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_column_names, "-,,", "names no column"),
        (parse_column_names, "a,b,a", "names a column twice"),
        (parse_separator, "", "the separator is empty"),
        (parse_encoding, "klingon", "'klingon' is not a text encoding; such are utf-8"),
        (parse_encoding, "base64", "'base64' is not a text encoding"),
    ],
)
def test_unusable_options_are_refused(parse: Callable[[str], str], text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_options_are_read_as_they_are_meant() -> None:
    assert parse_separator("\\t") == "\t"
    assert FileLayout(header=parse_column_names(" a, -,b,")).names == ("a", "", "b", "")


def test_test_rows_may_have_other_columns() -> None:
    train = Columns(text="sentence", labels=("gold",))
    assert asdict(HeldOutColumns().over(train)) == asdict(train)
    renamed = HeldOutColumns(text="text", label="y").over(train)
    assert asdict(renamed) == asdict(Columns(text="text", labels=("y",)))
    assert "--test-text-column" in renamed.hint and "--test-text-column" not in train.hint


def test_imdb_without_its_unlabelled_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for split, label in (("train", "neg"), ("train", "pos"), ("train", "unsup"), ("test", "neg"), ("test", "pos")):
        write(tmp_path / "aclImdb" / split / label / "0_1.txt", f"{split} {label}")
    for extra in ("imdbEr.txt", "README", "train/urls_neg.txt", "train/labeledBow.feat"):
        write(tmp_path / "aclImdb" / extra, "0.5")
    found = [dict(row) for _, row in read_rows(str(tmp_path / "aclImdb"), "train")]
    assert found == [{"text": f"train {label}", "label": label, "file": f"{label}/0_1.txt"} for label in ("neg", "pos")]
    assert "unsup is left out: its texts have no label" in caplog.text
    assert [row["text"] for _, row in read_rows(str(tmp_path / "aclImdb"), "test")] == ["test neg", "test pos"]


def test_a_folder_of_txt_files_named_after_their_split(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "a\tx\nb\ty\n")
    write(tmp_path / "test.txt.gz", gzip.compress(b"c\tx\n"))
    write(tmp_path / "README.txt", "about")
    layout = FileLayout(header="text,label")
    assert [row["text"] for _, row in read_rows(str(tmp_path), "train", layout)] == ["a", "b"]
    assert [row["text"] for _, row in read_rows(str(tmp_path), "test", layout)] == ["c"]


@pytest.mark.parametrize(
    ("content", "layout", "expected"),
    [
        (CONLL_2003.encode(), {"file_format": "conll"}, ["EU", "rejects", "German", "call"]),
        (b'tokens\tlabel\n"a\t1\n', {"file_format": "tsv"}, '"a'),
        (b"tokens\n\xff\n", {"file_format": "tsv"}, "pipe is not UTF-8"),
    ],
)
def test_a_pipe_is_read_once(tmp_path: Path, content: bytes, layout: dict[str, Any], expected: object) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    try:
        found: object = rows(tmp_path / "pipe", **layout)[0]["tokens"]
    except DataError as error:
        found = error.message.rpartition("/")[2]
    writer.join()
    assert found == expected
