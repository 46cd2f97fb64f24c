"""Embeddings are those of sentence-transformers, whichever of its versions wrote the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint import load_model, load_tokenizer, read_config, read_settings
from export.tasks.feature_extraction import FeatureExtractionTask
from tests.helpers.checkpoints import make_config, make_tokenizer, randomize
from tests.helpers.library_comparison import compare


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa with the files of sentence-transformers; its weights are those that the cosines were recorded with."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("embedder")
    tokenizer = make_tokenizer("bpe")
    model = AutoModel.from_config(make_config("roberta", tokenizer))
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = ("Transformer", "Pooling")
    modules = [{"path": f"{'1_Pooling' * at}", "type": f"sentence_transformers.models.{kind}"} for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.mark.parametrize(
    ("version", "cosine"),
    [("5.3.0", 1.0), ("5.7.0", 0.98636895), ("6.2.0", 0.98636895), (None, 1.0)],
)
def test_white_space_around_texts_is_embedded_as_by_the_version_that_wrote_the_files(
    version: str | None, cosine: float, embedder: Path, tmp_path: Path
) -> None:
    """The cosines are those of ``SentenceTransformer.encode`` of each version for this very checkpoint."""
    folder = shutil.copytree(embedder, tmp_path / "embedder")
    if version is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"__version__": {"sentence_transformers": version}}))
    settings = read_settings(folder, FeatureExtractionTask, {})
    task = FeatureExtractionTask.from_config(read_config(folder)).with_settings(settings)
    tokenizer = load_tokenizer(folder)
    encode = task.library(load_model(folder, FeatureExtractionTask, tokenizer), tokenizer, max_length=64, options={})
    one, other = (np.array(encode((text,))) for text in ("a superb film\n", "a superb film"))
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(cosine, abs=1e-5)
    if version in ("5.3.0", "6.2.0"):
        assert compare(folder, task="feature-extraction", settings=settings).max_difference < 1e-4


@pytest.mark.parametrize("opset", [17, 18])
def test_embeddings_are_normalized_before_they_are_truncated_where_that_is_a_module(
    opset: int, embedder: Path, tmp_path: Path
) -> None:
    """``SentenceTransformer(folder, truncate_dim=16).encode``, versions 5.3.0 and 6.2.0, gives a norm of 0.72819275."""
    folder = shutil.copytree(embedder, tmp_path / "embedder")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = read_settings(folder, FeatureExtractionTask, {"truncate_dim": 16})
    assert (settings["normalize"], settings["unit_first"], settings["dims"]) == (False, True, 16)
    task = FeatureExtractionTask.from_config(read_config(folder)).with_settings(settings)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, FeatureExtractionTask, tokenizer)
    encode = task.library(model, tokenizer, max_length=64, options={})
    assert np.linalg.norm(encode(("a superb film",))) == pytest.approx(0.72819275, abs=1e-6)
    assert compare(folder, task="feature-extraction", settings=settings, opset=opset).max_difference < 1e-4
    chosen = read_settings(folder, FeatureExtractionTask, {"truncate_dim": 16, "normalize": True})
    assert chosen["normalize"] and "unit_first" not in chosen, "encode(normalize_embeddings=True)"
    assert not read_settings(folder, FeatureExtractionTask, {"truncate_dim": 32}).get("unit_first")
