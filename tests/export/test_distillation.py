"""A teacher: what a student learns of its logits, and which teachers it cannot have."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from export import cli
from export.tasks.base import IGNORED
from export.tasks.text_classification import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TextClassificationTask
from export.training.distillation import Teacher, load_teacher
from export.training.hyperparameters import Distillation, Hyperparameters
from export.training.losses import loss_function, missing_label
from export.training.ngram_augmentation import random_spans
from serving.artifact import read_manifest
from serving.manifests import CheckpointManifest, DistillationRecord
from serving.runtime.tokenization import TextEncoder
from tests.helpers import tasks
from tests.helpers.reviews import LABELS, review_rows, write_tsv

TINY = ("--epochs", "8", "--early-stopping", "0", "--batch-size", "16", "--max-length", "32", "--device", "cpu")
TINY += ("--learning-rate", "5e-3")


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv and test.tsv; also the working directory."""
    for seed, (split, count) in enumerate({"train": 200, "test": 40}.items()):
        write_tsv(in_folder / f"{split}.tsv", review_rows(count, seed=50 + seed))
    return in_folder


def command(checkpoint: Path, name: str, *more: str) -> list[str]:
    return ["finetune", "--name", name, "--checkpoint", str(checkpoint), "--train", "train.tsv", "--test", "test.tsv", *TINY, *more]


def teacher_of(task: Any, logits: Any, **options: Any) -> Teacher:
    """A teacher that always says ``logits``."""
    said = type("Said", (), {"to": lambda *_: None, "__call__": lambda *_, **__: dict.fromkeys(task.heads, logits)})()
    given = Distillation(**({"teacher": "x", "temperature": 1.0, "weight": 1.0} | options))
    return Teacher(model=said, tokenizer=None, task=task, options=given, order=None, inputs={"input_ids"})


def classification(kind: str, labels: tuple[str, ...] = ("a", "b", "c")) -> TextClassificationTask:
    return tasks.classification(labels, "none", kind)


def test_a_student_that_says_the_same_has_nothing_to_learn() -> None:
    logits = torch.randn(4, 3)
    for kind, labels in ((SINGLE_LABEL, torch.tensor([0, 1, 2, 0])), (REGRESSION, torch.zeros(4))):
        loss = teacher_of(classification(kind), logits).loss(torch.tensor(1.0), {"logits": logits}, {"labels": labels})
        assert float(loss) == pytest.approx(0, abs=1e-6)


def test_the_weight_is_the_teachers() -> None:
    task, logits = classification(SINGLE_LABEL), torch.tensor([[1.0, 2.0, 3.0]])
    ours = {"logits": torch.zeros(1, 3)}
    soft = torch.softmax(logits, -1)
    apart = float((soft * (soft.log() - torch.log(torch.tensor(1 / 3)))).sum())
    for weight, wanted in ((1.0, apart), (0.0, 5.0), (0.25, 0.75 * 5 + 0.25 * apart)):
        loss = teacher_of(task, logits, weight=weight).loss(torch.tensor(5.0), ours, {"labels": torch.tensor([0])})
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
    hot = teacher_of(task, logits, temperature=100.0).loss(torch.tensor(5.0), ours, {"labels": torch.tensor([0])})
    assert float(hot) == pytest.approx(float(logits.var(unbiased=False)) / 2, rel=2e-2), "logits' squared distance, in the limit"


def test_several_labels_are_each_learnt_by_themselves() -> None:
    ours = {"logits": torch.zeros(2, 3)}
    loss = teacher_of(classification(MULTI_LABEL), torch.full((2, 3), 100.0)).loss(
        torch.tensor(0.0), ours, {"labels": torch.zeros(2, 3)}
    )
    assert float(loss) == pytest.approx(0.6931, abs=1e-3)


def test_tokens_and_rows_without_a_label_teach_nothing() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    labels = torch.tensor([[IGNORED, 1, 2, IGNORED], [IGNORED, 0, IGNORED, IGNORED]])
    theirs[labels != IGNORED] = ours[labels != IGNORED]
    tagger = tasks.tagging(("a", "b", "c"))
    assert float(teacher_of(tagger, theirs).loss(torch.tensor(0.0), {"logits": ours}, {"labels": labels})) == pytest.approx(
        0, abs=1e-6
    )
    groups, theirs = torch.randn(2, 3), torch.randn(2, 3)
    labels = torch.tensor([[0, 1, IGNORED], [1, 0, 0]])
    theirs[1], theirs[0, :2] = groups[1], groups[0, :2]
    choice = tasks.choosing()
    assert float(teacher_of(choice, theirs).loss(torch.tensor(0.0), {"logits": groups}, {"labels": labels})) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.long
def test_a_student_learns_from_a_teacher(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the teacher alone to go by. One has its labels swapped: so has its student, by their names, not their positions."""
    assert cli.main(command(base_checkpoint, "teacher")) == 0
    teacher = Path("artifacts") / "teacher" / "checkpoint"
    swapped = Path(shutil.copytree(teacher, "swapped"))
    config = json.loads((swapped / "config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (swapped / "config.json").write_text(json.dumps(config))
    opposite = {"positive": "negative", "negative": "positive"}
    for split, seed, count in (("dev", 52, 40), ("opposite", 52, 40)):
        rows = review_rows(count, seed=seed)
        write_tsv(data / f"{split}.tsv", rows if split == "dev" else [(text, opposite[label]) for text, label in rows])
    reader = Path(shutil.copytree(base_checkpoint, "reader"))
    rules = json.loads((reader / "tokenizer.json").read_text())
    rules["normalizer"]["lowercase"] = not rules["normalizer"]["lowercase"]
    (reader / "tokenizer.json").write_text(json.dumps(rules))
    for name, folder, student, judge in (
        ("same", teacher, base_checkpoint, "dev"),
        ("swap", swapped, base_checkpoint, "opposite"),
        ("other", teacher, reader, "dev"),  # reads through another tokenizer than its teacher
    ):
        rows_of = ("--validation", f"{judge}.tsv", "--test", f"{judge}.tsv", "--keep-leaks")
        assert cli.main(command(student, name, "--teacher", str(folder), "--teacher-weight", "1", *rows_of)) == 0
        figures = read_manifest(Path("artifacts") / name / "checkpoint", CheckpointManifest).figures
        assert figures.splits["test"]["accuracy"] > 0.8, name
    manifest = read_manifest(Path("artifacts") / "same" / "checkpoint", CheckpointManifest)
    assert manifest.distillation == DistillationRecord(teacher=str(teacher), temperature=2.0, weight=1.0, parts=0)
    capsys.readouterr()
    again = ("--teacher-weight", "1", "--validation", "dev.tsv", "--test", "dev.tsv", "--keep-leaks")
    assert cli.main(command(base_checkpoint, "same", "--teacher", str(teacher), *again)) == 0
    assert "is up to date" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
@pytest.mark.long
def test_parts_of_texts_are_learnt_by_what_the_teacher_says_of_them(
    data: Path, base_checkpoint: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind != SINGLE_LABEL:
        for split in ("train", "test"):
            lines = [line.split("\t") for line in (data / f"{split}.tsv").read_text().splitlines()[1:]]
            told = {MULTI_LABEL: ('["nice"]', '["poor", "sad"]'), REGRESSION: ("0.5", "-1.5")}[kind]
            write_tsv(data / f"{split}.tsv", [(text, told[label == "negative"]) for text, label in lines])
    assert cli.main(command(base_checkpoint, "teacher", "--keep-leaks")) == 0
    asked: list[int] = []
    said = Teacher.logits

    def once(self: Teacher, rows: Any, **named: Any) -> Any:
        asked.append(len(rows))
        return said(self, rows, **named)

    monkeypatch.setattr(Teacher, "logits", once)
    teacher = ("--teacher", "artifacts/teacher/checkpoint", "--teacher-parts", "2", "--keep-leaks", "--epochs", "6")
    teacher += ("--teacher-weight", "1")
    capsys.readouterr()
    assert cli.main(command(base_checkpoint, "pupil", *teacher)) == 0
    folder = Path("artifacts") / "pupil" / "checkpoint"
    manifest = read_manifest(folder, CheckpointManifest)
    figures = manifest.figures
    rows = figures.rows["train"]
    assert f"teacher: 0 of {3 * rows} texts" in capsys.readouterr().err
    assert asked == [3 * rows], "each row and each part once, in all six epochs"
    assert figures.steps == 6 * -(-3 * rows // 16)
    assert figures.splits["test"][manifest.main_metric] > 0.6, "by the teacher alone"
    assert "temperature 2, 2 random spans of each text besides." in (folder / "README.md").read_text()


def test_rows_without_a_label_are_learnt_from_the_teacher_alone() -> None:
    plain = Hyperparameters()
    for kind, known in ((SINGLE_LABEL, [1, 0]), (MULTI_LABEL, [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), (REGRESSION, [0.5, -100.0])):
        labels = torch.tensor([known[0], missing_label(known[0]), known[1], missing_label(known[1])])
        logits = torch.randn(4, 1 if kind == REGRESSION else 3)
        loss = loss_function(classification(kind), plain, (), unlabelled=True)
        assert loss is not None
        whole, alone = float(loss(logits, labels)), float(loss(logits[::2], labels[::2]))
        assert whole == pytest.approx(alone / 2) and alone > 0, "shared out over all rows"
        parts = [float(loss(logits[part], labels[part])) for part in (slice(0, 2), slice(2, 4))]
        assert whole == pytest.approx(sum(parts) / 2), "in whatever parts the step is taken"
        assert float(loss(logits[1::2], labels[1::2])) == 0


@pytest.mark.parametrize(
    ("kind", "targets"), [(SINGLE_LABEL, [0, 0, 1]), (MULTI_LABEL, [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])]
)
def test_rows_without_a_label_are_not_weighed(kind: str, targets: list[Any]) -> None:
    weighing = Hyperparameters(class_weights=True)
    logits, labels = torch.randn(3, 3), torch.tensor(targets)
    alone = loss_function(classification(kind), weighing, targets)
    among = loss_function(classification(kind), weighing, [*targets, *map(missing_label, targets)], unlabelled=True)
    assert alone is not None and among is not None
    assert float(among(logits, labels)) == pytest.approx(float(alone(logits, labels)))


def test_parts_are_words_in_a_row() -> None:
    words = ["[UNK]", "the", "film", "is", "good", "##ly", ".", "字", "符"]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer()
    encoder = TextEncoder(tokenizer, max_length=16, names=(), padding={})
    texts = ["The film  is goodly.", "the film", "", "字符字"]
    drawn = random_spans(texts, 30, encoder, random.Random(1))
    assert drawn == random_spans(texts, 30, encoder, random.Random(1)) != random_spans(texts, 30, encoder, random.Random(2))
    starts, ends = {"The", "film", "is", "goodly."}, {"film", "is", "goodly", "goodly."}
    assert {part.split()[0] for part in drawn[0]} == starts and {part.split()[-1] for part in drawn[0]} == ends
    assert all(part in texts[0] and part != texts[0] for part in drawn[0])
    assert set(drawn[1]) == {"the film"} and set(drawn[2]) == {""}
    assert set(drawn[3]) == {"字符", "符字"}
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)  # to which a text is one word
    assert all(len(part.split()) in (2, 3) for part in random_spans(texts[:1], 30, encoder, random.Random(1))[0])


def test_what_is_for_teachers_alone_needs_one(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--temperature", "--teacher-weight", "--teacher-parts"):
        assert cli.main(command(base_checkpoint, "tiny", option, "1")) == 2
        assert f"{option} goes with --teacher" in capsys.readouterr().err


def test_a_teacher_reads_no_more_than_it_takes(make_checkpoint: Callable[[str], Path], base_checkpoint: Path) -> None:
    """Nor does it matter how many rows it reads at a time, nor in what order."""
    from transformers import AutoTokenizer

    from export.data import LabelledRows

    folder = make_checkpoint("bert")  # takes 64 tokens
    task = classification(SINGLE_LABEL, LABELS)
    teacher = load_teacher(folder, task, AutoTokenizer.from_pretrained(base_checkpoint), Distillation(teacher="x"))
    rows = LabelledRows(texts=(("good", "a dull story " * 60, "the film was moving"),), labels=(0, 1, 0))
    said = {size: teacher.logits(rows, batch_size=size, max_length=500, device="cpu") for size in (1, 2, 64)}
    for one in (said[1], said[2]):
        assert torch.allclose(torch.tensor(one), torch.tensor(said[64]), atol=1e-5)


def test_teachers_that_cannot_teach_are_refused(
    data: Path, base_checkpoint: Path, make_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(make_checkpoint("bert"), tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {"0": "good", "1": "bad"}}))
    for teacher, message in (
        (base_checkpoint, "is not a text-classification checkpoint: its config names BertModel"),
        (other, f"{other} knows the labels good, bad, the rows have {', '.join(LABELS)}"),
        (tmp_path / "absent", f"no checkpoint folder {tmp_path / 'absent'}"),
    ):
        assert cli.main(command(base_checkpoint, "tiny", "--teacher", str(teacher))) == 1
        assert message in capsys.readouterr().err
    assert not Path("artifacts/tiny/checkpoint").exists()


def test_a_teacher_of_tokens_needs_the_students_tokenizer(make_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from serving.errors import DataError

    folder = make_checkpoint("bert")
    AutoModelForTokenClassification.from_pretrained(folder).save_pretrained(tmp_path / "tagger")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tagger")
    task, options = tasks.tagging(LABELS), Distillation(teacher="x")
    assert not load_teacher(tmp_path / "tagger", task, AutoTokenizer.from_pretrained(folder), options).cacheable
    with pytest.raises(DataError, match="n-gram augmentation does not support token-classification"):
        load_teacher(tmp_path / "tagger", task, AutoTokenizer.from_pretrained(folder), Distillation(teacher="x", parts=1))
    with pytest.raises(DataError, match="x and the student have different tokenizers"):
        load_teacher(tmp_path / "tagger", task, AutoTokenizer.from_pretrained(make_checkpoint("roberta")), options)
