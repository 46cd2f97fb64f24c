"""Models that write text are trained, and judged by what they write: the figures are the checkpoint's, computed otherwise."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from export import cli
from export.metric import bootstrapped, load_metric
from export.tasks.summarization import SummarizationTask
from export.tasks.text_generation import TextGenerationTask
from export.tasks.translation import TranslationTask
from export.training import encoding
from serving.artifact import read_manifest
from serving.manifests import CheckpointManifest, TrainingFigures
from serving.runtime.tasks.summarization import Summarization
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.tasks.translation import Translation
from tests.helpers.generating import LANGUAGES, write_checkpoint
from tests.helpers.reviews import BAD, FILLING, GOOD, review_rows, write_tsv

SMALL = ("--epochs", "2", "--batch-size", "16", "--learning-rate", "1e-2", "--max-length", "32", "--device", "cpu")
WORDS = sorted({word for phrase in (*GOOD, *BAD, *FILLING) for word in phrase.split()})
OTHER = dict(zip(WORDS, WORDS[7:] + WORDS[:7], strict=True))
"""Another language: every word means another one."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture → folder of a tiny fresh checkpoint of it."""
    folder = tmp_path_factory.mktemp("generating")

    def make(architecture: str) -> Path:
        path = folder / architecture
        return path if path.exists() else write_checkpoint(architecture, path)

    return make


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with plain texts, and translations of one to three words; also the working directory."""
    choose = random.Random(3)
    for split, count in {"train": 320, "test": 30}.items():
        texts = [" ".join(choose.choices(WORDS, k=choose.randint(1, 3))) for _ in range(count)]
        write_tsv(in_folder / f"{split}.tsv", [(text, translated(text)) for text in texts], "source\ttarget")
        plain = [text for text, _ in review_rows(count, seed=count)]
        (in_folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*plain, "", " "]))
    return in_folder


def translated(text: str) -> str:
    return " ".join(OTHER[word] for word in text.split())


def command(task: str, checkpoint: Path, *more: str) -> list[str]:
    rows = "jsonl" if task == "text-generation" else "tsv"
    where = ("--train", f"train.{rows}", "--test", f"test.{rows}", "--keep-leaks")
    return ["finetune", "--name", "tiny", "--task", task, "--checkpoint", str(checkpoint), *where, *SMALL, *more]


def checkpoint_of(data: Path) -> tuple[Path, TrainingFigures]:
    folder = data / "artifacts" / "tiny" / "checkpoint"
    return folder, read_manifest(folder, CheckpointManifest).figures


def test_a_language_model_is_judged_by_every_token_of_long_texts_too(
    data: Path, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line)["text"] for line in (data / "test.jsonl").read_text().splitlines()]
    long = " ".join(FILLING * 5)
    (data / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*rows, long]))
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", 10)  # texts of several rows, in several parts
    assert cli.main(command("text-generation", made("gpt2"))) == 0
    folder, figures = checkpoint_of(data)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer.backend_tokenizer.no_truncation()
    hits = counted = 0
    surprise = 0.0
    for text in (text for text in [*rows, long] if text.strip()):
        ids = tokenizer.backend_tokenizer.encode(text + tokenizer.eos_token).ids
        assert ids[-1] == tokenizer.eos_token_id, "it learns where texts end"
        for start in range(0, len(ids), 32):
            row = torch.tensor([ids[start : start + 32]])
            with torch.no_grad():
                likelihood = model(input_ids=row).logits[0, :-1].log_softmax(-1)
            hits += int((likelihood.argmax(-1) == row[0, 1:]).sum())
            counted += row.shape[1] - 1
            surprise -= float(likelihood.gather(-1, row[0, 1:, None]).sum())
    assert figures.splits["test"]["token_accuracy"] == pytest.approx(hits / counted, abs=1e-6)
    assert figures.splits["test"]["perplexity"] == pytest.approx(math.exp(surprise / counted), rel=1e-4)
    assert figures.splits["test"]["perplexity"] < 40, "a fresh model finds all 392 tokens alike"
    assert len(ids) > 2 * 32, "the last text is of several rows"
    assert figures.rows["test"] == len(rows) - 2 + 1, "blank texts are none"
    assert tokenizer.pad_token == tokenizer.eos_token
    assert pipeline("text-generation", str(folder), device="cpu")("the film", max_new_tokens=4)[0]["generated_text"]


def test_a_text_whose_tokenizer_ends_it_is_ended_once(made: Callable[[str], Path]) -> None:
    task = TextGenerationTask(served=TextGeneration())
    assert task.with_tokenizer(AutoTokenizer.from_pretrained(made("llama"))).end == "</s>"
    assert task.with_tokenizer(AutoTokenizer.from_pretrained(made("t5"))).end == ""


def written(folder: Path, task: str, texts: list[str]) -> list[str]:
    """What ``transformers.pipeline`` writes, called as the model card says."""
    snippet = re.search(r"^model = (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert snippet is not None
    model = eval(snippet[1].replace("FOLDER or OWNER/NAME", str(folder)), {"pipeline": pipeline})  # noqa: S307 - our own
    key = {"translation": "translation_text", "summarization": "summary_text"}[task]
    return [answer[key] for answer in model(texts)]


@pytest.mark.long
def test_a_translation_is_judged_by_what_the_pipeline_writes(data: Path, made: Callable[[str], Path]) -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    longer = ("--epochs", "14", "--early-stopping", "0", "--setting", "max_new_tokens=12", "--setting", "prefix=to other: ")
    assert cli.main(command("translation", made("t5"), *longer)) == 0
    folder, figures = checkpoint_of(data)
    rows = [line.split("\t") for line in (data / "test.tsv").read_text().splitlines()[1:]]
    texts = written(folder, "translation", [source for source, _ in rows])
    right = [[target for _, target in rows]]
    assert 100 * figures.splits["test"]["bleu"] == pytest.approx(corpus_bleu(texts, right).score)
    assert 100 * figures.splits["test"]["chrf"] == pytest.approx(corpus_chrf(texts, right).score)
    assert figures.splits["test"]["chrf"] > 0.25, "it has learnt words"
    low, high = figures.interval
    assert low <= figures.splits["test"]["chrf"] <= high
    assert json.loads((folder / "generation_config.json").read_text())["max_length"] == 13
    assert json.loads((folder / "config.json").read_text())["prefix"] == "to other: "
    card = (folder / "README.md").read_text()
    assert "tritonize serve" in card and 'pipeline("translation"' in card


@pytest.mark.parametrize(("architecture", "prefix"), [("t5", "again: "), ("bart", None)])
def test_a_summary_is_held_against_all_that_are_right(
    data: Path, made: Callable[[str], Path], architecture: str, prefix: str | None
) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    for split in ("train", "test"):
        rows = [line.split("\t") for line in (data / f"{split}.tsv").read_text().splitlines()[1:]]
        lines = [{"paper": {"text": f"{text} and again"}, "tldr": [text, text.split()[0]]} for text, _ in rows]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = ("--train", "train.jsonl", "--test", "test.jsonl", "--text-column", "paper.text", "--label-column", "tldr")
    assert cli.main(command("summarization", made(architecture), *where, "--setting", "max_new_tokens=12")) == 0
    folder, figures = checkpoint_of(data)
    assert json.loads((folder / "config.json").read_text()).get("prefix") == prefix
    texts = written(folder, "summarization", [line["paper"]["text"] for line in lines])
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score_multi(line["tldr"], text)["rougeL"].fmeasure for line, text in zip(lines, texts, strict=True)]
    assert figures.splits["test"]["rouge_l"] == pytest.approx(sum(scores) / len(scores))
    assert {"rouge_1", "rouge_2", "rouge_l", "loss"} == set(figures.splits["test"])


def test_a_model_of_several_languages_is_told_which(
    data: Path, made: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command("translation", made("nllb"))) == 1
    assert "its tokenizer needs the languages: give --setting source_language=…" in capsys.readouterr().err
    source = ("--setting", f"source_language={LANGUAGES[0]}", "--setting", "max_new_tokens=6")
    assert cli.main(command("translation", made("nllb"), *source, "--setting", "target_language=de")) == 1
    assert "its tokenizer has no target_language 'de'" in capsys.readouterr().err
    told = (*source, "--setting", f"target_language={LANGUAGES[1]}")
    assert cli.main(command("translation", made("t5"), *told)) == 1
    assert "its tokenizer has no languages" in capsys.readouterr().err

    assert cli.main(command("translation", made("nllb"), *told)) == 0
    folder, _ = checkpoint_of(data)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    german = tokenizer.convert_tokens_to_ids(LANGUAGES[1])
    assert model.generation_config.forced_bos_token_id == german
    assert f'src_lang="{LANGUAGES[0]}", tgt_lang="{LANGUAGES[1]}"' in (folder / "README.md").read_text()
    asked = pipeline("translation", str(folder), device="cpu", src_lang=LANGUAGES[0], tgt_lang=LANGUAGES[1])
    assert isinstance(asked("good")[0]["translation_text"], str)
    task = TranslationTask(served=Translation(), target_language_id=german, target_start=(), target_end=(3, german))
    assert task.generation_settings()["decoder_start_token_id"] == german, "as in mBART's first form"


def test_of_many_rows_some_are_judged() -> None:
    task, rows = SummarizationTask(served=Summarization()), [str(at) for at in range(1500)]
    [texts], references = task.prepare_rows((rows,), rows, None, training=False)
    assert texts == references and len(set(texts)) == 1000
    assert task.prepare_rows((rows,), rows, None, training=True) == ((rows,), rows)


def test_targets_are_cut_and_still_end(made: Callable[[str], Path]) -> None:
    from serving.runtime.tokenization import TextEncoder

    tokenizer = AutoTokenizer.from_pretrained(made("bart"))
    task = SummarizationTask(served=Summarization(), max_new_tokens=5).with_tokenizer(tokenizer)
    whole = tokenizer("a dull story")["input_ids"]
    encoder = TextEncoder(tokenizer.backend_tokenizer, max_length=4, names=(), padding={})  # of the texts that are read
    short, long = task.encode_targets([["a"], ["a dull story", "another"]], encoder)
    assert short == [0, *encoder.plain_ids(["a"])[0], 2]
    assert long == [*whole[:4], tokenizer.eos_token_id]
    assert [len(encoding.ids) for encoding in encoder.encode(["a dull story"])] == [4], "those are cut as before"
    assert replace(task, max_new_tokens=50).encode_targets([["a dull story"]], encoder) == [whole]


def test_weights_that_do_not_fit_are_no_checkpoint(
    data: Path, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made("t5"), tmp_path / "misshapen"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_model": 64}))
    assert cli.main(command("translation", folder)) == 1
    assert "in another shape than T5ForConditionalGeneration by its config.json, where " in capsys.readouterr().err


def test_what_is_cut_of_targets_is_told(
    data: Path, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a tokenizer that makes more than the model takes does no harm, nor is a single step a step for nothing."""
    folder = Path(shutil.copytree(made("t5"), tmp_path / "more"))
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    once = ("--setting", "max_new_tokens=2", "--epochs", "1", "--max-train-rows", "16", "--adapter", "lora")
    assert cli.main(command("translation", folder, *once)) == 0
    assert re.search(
        r"\d+ of 16 targets are truncated at 2 tokens \(--setting max_new_tokens=… changes this\); the longest has \d",
        capsys.readouterr().err,
    )
    written, figures = checkpoint_of(data)
    assert figures.steps == 1
    before, after = ((path / "model.safetensors").read_bytes() for path in (folder, written))
    assert before != after
    modes = {path.stat().st_mode & 0o777 for path in written.rglob("*") if path.is_file()}
    assert len(modes) == 1, "whoever may read the card may read the weights"


def test_windows_of_a_text_that_goes_on_do_not_end(made: Callable[[str], Path]) -> None:
    from serving.runtime.tokenization import TextEncoder

    tokenizer = AutoTokenizer.from_pretrained(made("t5"))  # ends whatever it reads
    task = TextGenerationTask(served=TextGeneration()).with_tokenizer(tokenizer)
    encoder = TextEncoder(tokenizer.backend_tokenizer, max_length=8, names=(), padding={})
    features = task.training_features((["the film was dull and cold but moving again", "good"],), encoder)
    ends = [encoding.ids[-1] == tokenizer.eos_token_id for encoding in features.encodings]
    assert features.origins.sample_mapping.tolist() == [0, 0, 1] and ends == [False, True, True]
    assert encoder.plain_ids(["the film was dull and cold but moving again"])[0] == [
        *features.encodings[0].ids, *features.encodings[1].ids[:-1]
    ]  # fmt: skip


def test_settings_of_several_beams_do_not_stay_with_one(data: Path, made: Callable[[str], Path], tmp_path: Path) -> None:
    """As bart-large-cnn has them: the library would not write them with a single beam."""
    folder = Path(shutil.copytree(made("bart"), tmp_path / "cnn"))
    path = folder / "generation_config.json"
    several = {"early_stopping": True, "length_penalty": 2.0, "num_beams": 4, "min_length": 56, "max_length": 142}
    path.write_text(json.dumps(json.loads(path.read_text()) | several))
    short = ("--setting", "max_new_tokens=4", "--epochs", "1")
    assert cli.main(command("translation", folder, *short)) == 0
    assert cli.main(command("translation", folder, *short, "--setting", "num_beams=2")) == 0
    written = json.loads((checkpoint_of(data)[0] / "generation_config.json").read_text())
    assert (written["num_beams"], written["length_penalty"], written["max_length"]) == (2, 2.0, 5)


def test_what_else_generation_returns_by_its_config_does_no_harm(data: Path, made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("bart"), tmp_path / "talkative"))
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"output_hidden_states": True, "output_attentions": True}))
    generation = json.loads((folder / "generation_config.json").read_text()) | {"return_dict_in_generate": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert cli.main(command("translation", folder, "--setting", "max_new_tokens=4", "--epochs", "1")) == 0
    assert "chrf" in checkpoint_of(data)[1].splits["test"]


def test_a_generation_config_that_could_not_be_written_is_told_at_once(
    data: Path, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made("llama"), tmp_path / "warm"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6, "do_sample": False}))
    assert cli.main(command("text-generation", folder)) == 1
    error = capsys.readouterr().err
    assert "temperature" in error and "correct its generation_config.json" in error and "step" not in error


@pytest.mark.parametrize(("task", "architecture"), [("text-generation", "llama"), ("translation", "t5")])
@pytest.mark.long
def test_adapters_and_teachers_are_for_models_that_write_too(
    data: Path, made: Callable[[str], Path], task: str, architecture: str
) -> None:
    short = ("--setting", "max_new_tokens=4") if task == "translation" else ()
    assert cli.main(command(task, made(architecture), *short)) == 0
    folder, taught = checkpoint_of(data)
    teacher = ("--teacher", str(folder.rename(data / "teacher")), "--teacher-weight", "1")
    assert cli.main(command(task, made(architecture), *short, *teacher)) == 0
    _, figures = checkpoint_of(data)
    nothing = math.log(len(AutoTokenizer.from_pretrained(data / "teacher")))
    assert figures.splits["test"]["loss"] < (taught.splits["test"]["loss"] + nothing) / 2, "by the teacher alone"
    assert cli.main(command(task, made(architecture), "--adapter", "lora", "--adapter-option", "r=2", *short, "--epochs", "1")) == 0
    _, figures = checkpoint_of(data)
    assert 0 < figures.merged_difference < 1e-5
    assert figures.trained_parameters < figures.parameters / 4, "no head of a whole vocabulary among them"


@pytest.mark.parametrize(
    ("task", "architecture", "more", "message"),
    [
        ("translation", "gpt2", (), "it is not an encoder-decoder"),
        ("translation", "t5", ("--label-column", "nope"), "no column 'nope'"),
        ("translation", "t5", ("--label-column", "target.de"), "no column 'target.de'"),
        (
            "translation",
            "t5",
            ("--train", "empty.jsonl", "--test", "empty.jsonl"),
            "the label is neither a text nor a list of texts",
        ),
        ("summarization", "t5", ("--setting", "max_new_tokens=0"), "max_new_tokens must be 1 or more"),
        ("translation", "t5", ("--setting", "do_sample=false"), "do_sample has no effect on training: give it to export"),
        ("summarization", "t5", ("--class-weights", "--label-column", "target", "--text-column", "source"), "leave it out for"),
        ("text-generation", "gpt2", ("--label-column", "text"), "rows of plain text have no label"),
        ("text-generation", "gpt2", ("--text-pair-column", "text"), "--text-pair-column has no effect for text-generation"),
        (
            "text-generation",
            "t5",
            (),
            "T5ForConditionalGeneration, but one that ends in ForCausalLM or LMHeadModel is needed",
        ),
        ("translation", "t5", ("--quantization-aware",), "checkpoints of translation are not exported to int8"),
        ("text-generation", "gpt2", ("--max-length", "49"), "the model takes at most 48 tokens, not 49"),
    ],
)
def test_what_cannot_be_trained_is_told(
    data: Path, made: Callable[[str], Path], task: str, architecture: str, more: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (data / "empty.jsonl").write_text('{"source": "good", "target": []}\n')
    assert cli.main(command(task, made(architecture), *more)) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


def test_a_tokenizer_without_an_end_cannot_teach_one(
    data: Path, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made("llama"))
    folder = tmp_path / "endless"
    AutoModelForCausalLM.from_pretrained(made("llama")).save_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert cli.main(command("text-generation", folder)) == 1
    assert "its tokenizer has no token for the end of a text" in capsys.readouterr().err


def test_metrics_of_texts() -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    said, right = ["the cat sat on a mat", "a dog"], [["the cat sat on the mat", "a cat sat"], ["the dog barks", "a dog"]]
    found = load_metric("translation").compute(predictions=said, references=right)
    columns = [list(column) for column in zip(*right, strict=True)]
    assert 100 * found["bleu"] == pytest.approx(corpus_bleu(said, columns).score)
    assert 100 * found["chrf"] == pytest.approx(corpus_chrf(said, columns).score)
    rouge = load_metric("rouge").compute(predictions=["the cats sat", "x"], references=[["the cat sat"], ["y"]])
    assert rouge == {"rouge_1": 0.5, "rouge_2": 0.5, "rouge_l": 0.5}, "stems are compared"
    tokens = load_metric("next_token").compute(predictions=[[1, 2, 2.0], [1, 6, 6.0]], references=[None, None])
    assert tokens == {"token_accuracy": 0.25, "perplexity": pytest.approx(math.e), "likelihood": pytest.approx(1 / math.e)}
    assert load_metric("next_token").compute(predictions=[[0, 2, 1e4]], references=[None])["perplexity"] == math.inf
    whole, low, high = bootstrapped("translation", "chrf", said * 20, right * 20)
    assert low < whole < high
    assert whole == pytest.approx(found["chrf"])
