"""The tokenizers made for Marian and M2M100 tokenize and decode as those of ``transformers``, whatever the text."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import transformers

from export import cli
from export.checkpoint import load_tokenizer, save_tokenizer
from export.slow_tokenizers.sentencepiece_model import SentencePieceModel
from export.tasks.translation import TranslationTask
from serving.artifact import read_manifest
from serving.errors import ArtifactError
from serving.manifests import CheckpointManifest
from serving.runtime.tasks.translation import Translation
from tests.helpers.generating import write_checkpoint
from tests.helpers.reviews import write_tsv
from tests.helpers.shared import SHARED
from tests.helpers.slow_tokenizers import SOURCES, TARGETS, write_m2m100_files, write_marian_files, write_sentencepiece

DATA = SHARED / "data" / "multi30k"
STRANGE = [
    "", " ", "   ", "a", " a", "a  warm   film ", "\ta\nfilm\r\n", "x\u0000y", "\u0000", "a\u200bb", "\ufeffa", "a\u00a0film",
    "\u3000a\u3000", "🎬", "🎬🎬 film 👩‍👩‍👧", "☺️ ©️ 1️⃣", "中", "中文", "a中 文", "中文电影", "电影中",
    "很好看的中文电影", "Köln", "straße ÜBER", "ß", "ßß", "ß ß", "aßb", "это фильм", "фильм film", "한국어 영화",
    "日本語の映画", "हिन्दी फिल्म", "فيلم عربي", "סרט", "ภาพยนตร์", "ﬁlm ① ½ ™ Ａ", "▁a", "a▁b", "a▁", "▁▁", ">>deu<<",
    ">>deu<< a film", ">>deu<<a film", ">>deu<<  a", " >>deu<< a", "a >>deu<< film", ">>xx<< a film", ">>xx<<a",
    ">>a b<< film", ">>", ">> a", ">>deu", ">>deu<<>>fra<< a", ">>cmn_Hans<< 中文", "<< a >>", ">>🎬<< film",
    ">>deu<< </s> film", "</s>", "a</s>b", "<unk> a", "<pad>a <pad>", "a</s>>>fra<< film", "__de__ a", "a__en__", "__xx__",
    "<s> a", "\ufdd0a", "\ufdd1\ufdd2", "\ufdd4\ufdd4", "€ & 10 !", "!!!???", "a" * 300, "中" * 80, "e\u0301", "naïve",
    "nai\u0308ve cafe\u0301", "Vie\u0302\u0323t", "ê\u0323", "①\u0301", "か\u3099", "\u1112\u1161\u11ab", "ﻻ\u064b",
]  # fmt: skip
MADE = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "identity": {"normalization_rule_name": "identity"},
    "lower case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "across words": {"split_by_whitespace": False},
    "no prefix": {"add_dummy_prefix": False},
    "all spaces": {"remove_extra_whitespaces": False},
}
ALPHABET = sorted({*"".join([*SOURCES, *TARGETS, *STRANGE[:60]]), " ", "\t", "\u0301", "ё", "ñ", "好", "\U0001f600"} - {"\u0000"})


def random_texts(count: int) -> list[str]:
    chosen = random.Random(5)
    parts = [*ALPHABET, *" ".join([*SOURCES, *TARGETS]).split(), ">>deu<<", ">>", "<<", "</s>", "  "]
    return ["".join(chosen.choices(parts, k=chosen.randint(1, 12))) for _ in range(count)]


def real_texts() -> list[str]:
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data/multi30k")
    with (DATA / "val.tsv").open(encoding="utf-8") as file:
        return [cell for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) for cell in row][:1000]


def both(folder: Path) -> tuple[Any, Any]:
    """Ours and that of ``transformers``."""
    name = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    return load_tokenizer(folder), getattr(transformers, name).from_pretrained(folder)


def require_equal(ours: Any, theirs: Any, texts: list[str]) -> None:
    """Two ways to divide a text may have one score, as ``s ss`` and ``ss s``: the order of the sums decides which one is taken."""
    ties = 0
    for text in texts:
        for given in ({"text": text}, {"text_target": text}):
            found, expected = (one(**given)["input_ids"] for one in (ours, theirs))
            assert sorted(found) == sorted(expected), (given, theirs.convert_ids_to_tokens(expected))
            ties += found != expected
    assert ties <= len(texts) / 100
    chosen = random.Random(6)
    tokens = [number for number, token in theirs.decoder.items() if token.islower() or not token.startswith(">>")]
    lists = [chosen.choices(tokens, k=chosen.randint(0, 9)) for _ in range(200)]
    lists += [[one for one in theirs(text_target=text)["input_ids"] if one in tokens] for text in texts]
    for ids in lists:
        found, expected = (one.decode(ids, skip_special_tokens=True) for one in (ours, theirs))
        assert found == expected, ids


@pytest.mark.parametrize("made", [made for made in MADE if made != "bpe"])
def test_marian(made: str, tmp_path: Path) -> None:
    require_equal(*both(write_marian_files(tmp_path, **MADE[made])), [*STRANGE, *random_texts(300)])


@pytest.mark.parametrize("made", MADE)
def test_m2m100(made: str, tmp_path: Path) -> None:
    ours, theirs = both(write_m2m100_files(tmp_path, **MADE[made]))
    for source, target in (("en", "de"), ("zh", "ja")):
        for one in (ours, theirs):
            one.src_lang, one.tgt_lang = source, target
        require_equal(ours, theirs, [*STRANGE, *random_texts(150)])


def test_real_texts(tmp_path: Path) -> None:
    texts = real_texts()
    require_equal(*both(write_marian_files(tmp_path / "marian", texts[::2], texts[1::2], size=800)), texts)
    ours, theirs = both(write_m2m100_files(tmp_path / "m2m100", texts, size=800, model_type="bpe"))
    theirs.tgt_lang = ours.tgt_lang = "de"
    require_equal(ours, theirs, texts)


@pytest.mark.parametrize("write", [write_marian_files, write_m2m100_files])
def test_transformers_loads_what_is_saved(write: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "here"))
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = "de", "ja"
    save_tokenizer(tokenizer, tmp_path / "there", 16)
    ours, theirs = both(tmp_path / "there")
    assert ours.model_max_length == theirs.model_max_length == 16
    require_equal(ours, theirs, STRANGE)
    assert getattr(ours, "src_lang", "de") == getattr(theirs, "src_lang", "de") == "de"


def changed(folder: Path, name: str, **entries: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | entries))


def two_vocabularies(folder: Path) -> None:
    changed(folder, "tokenizer_config.json", separate_vocabs=True)
    (folder / "target_vocab.json").write_bytes((folder / "vocab.json").read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "source.spm").write_bytes(b"no model"), "cannot load the tokenizer"),
        (lambda folder: (folder / "source.spm").unlink(), "cannot load the tokenizer"),
        (lambda folder: (folder / "vocab.json").write_text('{"<unk>": '), "cannot load the tokenizer"),
        (two_vocabularies, "it numbers the tokens of the two languages separately"),
        (lambda folder: write_sentencepiece(folder / "source.spm", SOURCES, model_type="bpe"), "source.spm is not a unigram model"),
        (
            lambda folder: write_sentencepiece(folder / "source.spm", SOURCES, model_type="word"),
            "source.spm is neither a unigram nor",
        ),
        (
            lambda folder: write_sentencepiece(folder / "source.spm", SOURCES, byte_fallback=True, size=400),
            "has pieces for bytes or",
        ),
        (lambda folder: changed(folder, "vocab.json", more=9999), "does not number its tokens from 0 on, each once"),
        (
            lambda folder: changed(folder, "tokenizer_config.json", sp_model_kwargs={"alpha": 1}),
            "sp_model_kwargs in tokenizer_config",
        ),
    ],
)
def test_files_that_make_no_fast_tokenizer_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    change(write_marian_files(tmp_path))
    with pytest.raises(ArtifactError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "name", ["CTRLTokenizer", "ProphetNetTokenizer", "FSMTTokenizer", "PLBartTokenizer", "XLMProphetNetTokenizer"]
)
def test_other_slow_tokenizers_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(ArtifactError, match=f"is a {name}, of which there is no fast form, and serving needs one"):
        load_tokenizer(tmp_path)


def test_missing_pieces_of_both_models_count(tmp_path: Path) -> None:
    write_marian_files(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    source, target = (SentencePieceModel.read(tmp_path / name).pieces.keys() for name in ("source.spm", "target.spm"))
    lost = {sorted(pieces & vocabulary.keys())[-1] for pieces in (source - target, target - source, source & target)}
    kept = [token for token in vocabulary if token not in lost]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(kept)}))
    assert both(tmp_path)[0].missing_pieces == len(lost) == 3


def test_a_piece_without_a_number_is_left_out(tmp_path: Path) -> None:
    """The trained vocabulary of OPUS-MT lacks pieces that its SentencePiece model never found in the training texts."""
    write_marian_files(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    lost = next(piece for piece in vocabulary if len(piece) > 2 and piece.startswith("▁"))
    kept = [token for token in vocabulary if token != lost]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(kept)}))
    ours, theirs = both(tmp_path)
    text = lost.removeprefix("▁")
    assert theirs.unk_token_id in theirs(text)["input_ids"]
    assert ours.missing_pieces == 1
    assert ours.unk_token_id not in ours(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"], skip_special_tokens=True) == text


def test_a_marian_checkpoint_is_trained_on_targets_of_the_other_language(in_folder: Path) -> None:
    """The figures are those of what ``transformers.pipeline`` writes with the checkpoint."""
    from sacrebleu import corpus_chrf

    rows = list(zip(SOURCES, TARGETS, strict=False))
    write_tsv(in_folder / "rows.tsv", rows, "source\ttarget")
    where = [
        "--train",
        "rows.tsv",
        "--test",
        "rows.tsv",
        "--keep-leaks",
        "--device",
        "cpu",
        "--epochs",
        "2",
        "--learning-rate",
        "1e-2",
    ]
    checkpoint = str(write_checkpoint("marian", in_folder / "marian"))
    command = ["finetune", "--name", "tiny", "--task", "translation", "--checkpoint", checkpoint, "--setting", "max_new_tokens=24"]
    assert cli.main([*command, *where]) == 0
    folder = in_folder / "artifacts" / "tiny" / "checkpoint"
    figures = read_manifest(folder, CheckpointManifest).figures
    pipe = transformers.pipeline("translation_en_to_de", str(folder), device="cpu", num_beams=1)
    assert type(pipe.tokenizer).__name__ == "MarianTokenizer"
    written = [answer["translation_text"] for answer in pipe([text for text, _ in rows])]
    assert 100 * figures.splits["test"]["chrf"] == pytest.approx(corpus_chrf(written, [[target for _, target in rows]]).score)
    ids = pipe.tokenizer(text_target=TARGETS[0])["input_ids"]
    task = TranslationTask(served=Translation()).with_tokenizer(load_tokenizer(folder))
    assert task.target_encoder is not None
    assert task.encode_targets([[TARGETS[0]]], task.target_encoder) == [ids]
