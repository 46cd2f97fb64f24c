"""Load checkpoints and rows from local paths, the Hugging Face Hub, or the quickstart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from export import quickstart
from export.checkpoint import check_readable
from export.checkpoint_checks import refuse_adapter, refuse_own_code
from export.columns import Columns, ResolvedColumns
from export.data import Rows, checked_rows
from export.tasks.base import Task
from serving.artifact import sha256
from serving.errors import ArtifactError, DataError, first_line
from serving.manifests import CheckpointManifest
from serving.records import LocatedRow, read_rows

HUB = "hub:"
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Files of a checkpoint folder that are read. Pickled weights (``*.bin``) are ignored, because loading them can run code."""
STREAMING_BYTES = 2**30
"""Size in bytes from which a split of a Hub data set is streamed if only some of its rows are requested."""
SHUFFLE_BUFFER_ROWS = 10_000
"""Minimum size of the shuffle buffer of a stream; it holds at least twice as many rows as are requested."""
MODEL_CARD = "README.md"
MODULE_FOLDERS = "[0-9]*_*"
"""Pattern of the folders in which sentence-transformers describes its modules, such as ``1_Pooling``."""


def checkpoint_folder(location: str, cache: Path) -> Path:
    """Return the folder of a checkpoint, after downloading it if necessary.

    Args:
        location: A folder, ``quickstart:minilm``, ``quickstart:smollm2``, or a name on the Hub. The Hub's environment variables
            set the token, the endpoint and offline mode.
        cache: Folder for the downloads of the quickstart.

    Returns:
        The folder.

    Raises:
        ArtifactError: The checkpoint does not exist, has no ``config.json`` or no safetensors weights, is an adapter, has code of
            its own, or a file is damaged.
        SetupError: pip could not download the quickstart.
    """
    if location in quickstart.CHECKPOINTS:
        return quickstart.CHECKPOINTS[location](cache)
    folder = Path(location)
    if not folder.is_dir():
        folder = _hub_checkpoint(location)
    refuse_adapter(folder, location)
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{location} is not a checkpoint: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{location} has no safetensors weights; pickled weights are not loaded, because they can run code",
            hint="if you trust it, load it with transformers and save it with save_pretrained(…), which writes safetensors",
        )
    check_readable(folder)
    refuse_own_code(folder, location)
    return folder


def checkpoint_files(folder: Path) -> list[Path]:
    """List the files that define a checkpoint's model and tokenizer, and its :data:`MODULE_FOLDERS`, sorted by path."""
    files = {path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern) if path.name != "manifest.json"}
    return sorted(files | {path for path in folder.glob(MODULE_FOLDERS) if path.is_dir()})


def check_unaltered(folder: Path, manifest: CheckpointManifest) -> None:
    """Compare the files of a checkpoint with its manifest.

    Files that no stage reads may be added or left out, as by a download, and the model card may be edited.

    Raises:
        ArtifactError: A file was altered, is missing, or would be read although it is not in the manifest.
    """
    remedy = f"write it again with: tritonize finetune --name {manifest.name} --force"
    for path in checkpoint_files(folder):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.relative_to(folder).as_posix() not in manifest.files:
                raise ArtifactError(f"{file} is not in the manifest", hint=f"remove it, or {remedy}")
    for name, digest in manifest.files.items():
        if (folder / name).is_file():
            if name != MODEL_CARD and sha256(folder / name) != digest:
                raise ArtifactError(f"{folder / name} was altered: it does not have the checksum in the manifest", hint=remedy)
        elif any(fnmatch(name, pattern) for pattern in CHECKPOINT_FILES):
            raise ArtifactError(f"{folder / name} is missing", hint=remedy)


def _hub_checkpoint(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ArtifactError(f"no checkpoint folder {name}")
    try:
        return Path(snapshot_download(name, allow_patterns=list(CHECKPOINT_FILES)))
    except HFValidationError as error:
        raise ArtifactError(f"no checkpoint folder {name}, and it is not a valid name on the Hub: {error}") from error
    except OSError as error:  # the base class of the library's download errors
        raise ArtifactError(
            f"no checkpoint folder {name}, and it could not be downloaded from the Hub: {first_line(error)}",
            hint="check the name, the network and HF_TOKEN, or give a folder",
        ) from error


def load_rows(
    location: str, columns: Columns, task: type[Task], *, split: str, cache: Path, max_rows: int | None = None, seed: int = 0
) -> Rows:
    """Load rows and check every one of them.

    Args:
        location: A file with rows, a pattern of such files, or a folder (see :func:`serving.records.read_rows`);
            ``hub:NAME[/CONFIG]``, a data set of the Hub or a local folder in its format; or ``quickstart:reviews``. The latter
            two may end in ``:SPLIT``.
        columns: The columns that the user names.
        task: The task, which reads the cells.
        split: The split to load if ``location`` does not name one.
        cache: Folder for the downloads of the quickstart.
        max_rows: Number of rows that the caller needs; None: all. It limits only large data sets of the Hub, which are then
            streamed and sampled from the part that was read. From any other source all rows are loaded.
        seed: Seed of that sample.

    Returns:
        The rows.

    Raises:
        DataError: The rows cannot be read, or a row is not valid.
        SetupError: pip could not download the quickstart.
    """
    if location.startswith(quickstart.REVIEWS):
        return quickstart.reviews(cache, location.removeprefix(quickstart.REVIEWS).removeprefix(":") or split)
    if location.startswith(HUB):
        path, _, named_split = location.removeprefix(HUB).partition(":")
        if not path:
            raise DataError(f"{location!r} does not name a data set", hint="for example hub:glue/sst2 or hub:owner/set:train")
        split = named_split or split
        return _hub_rows(_load_dataset(path, split, max_rows, seed), f"{HUB}{path}:{split}", columns.resolved(task), task)
    return checked_rows(location, read_rows(location, split, columns.layout, words=task.reads_words), columns.resolved(task), task)


def _hub_rows(dataset: Any, location: str, columns: ResolvedColumns, task: type[Task]) -> Rows:
    names = _label_names((dataset.features or {}).get(columns.label))
    rows = checked_rows(location, _records(dataset, location, columns.label, names), columns, task)
    return replace(rows, names=tuple(names or rows.names))


def _records(dataset: Any, location: str, label: str | None, names: list[str] | None) -> Iterator[LocatedRow]:
    for number, row in enumerate(dataset, start=1):
        place = f"row {number}"
        yield place, row if names is None else row | {label: _label_name(row[label], names, f"{location}, {place}")}


def _label_names(feature: Any) -> list[str] | None:
    """Return the label names of a ``ClassLabel`` feature or of a list of them; None for any other feature."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _label_name(label: Any, names: list[str], place: str) -> Any:
    """Convert the index of a label to its name, or a list of indices to a list of names."""
    if isinstance(label, list):
        return [_label_name(one, names, place) for one in label]
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise DataError(
            f"{place}: label {label!r} is not an index into the labels {', '.join(names)}",
            hint="a negative label means that the labels of this split are withheld: use another split",
        )
    return names[label]


def _load_dataset(path: str, split: str, max_rows: int | None, seed: int) -> Any:
    """Load a split of a data set. If it is large and ``max_rows`` is given, stream it through a shuffle buffer instead."""
    import datasets

    datasets.disable_progress_bars()
    try:
        try:
            builder = datasets.load_dataset_builder(path)
            place: tuple[str, ...] = (path,)
        except datasets.exceptions.DatasetNotFoundError:
            # "glue/sst2" may mean owner/name or name/config
            name, _, config = path.rpartition("/")
            if not name or Path(path).is_absolute():
                raise
            builder, place = datasets.load_dataset_builder(name, config), (name, config)
        size = getattr((builder.info.splits or {}).get(split), "num_bytes", 0) or 0
        if max_rows is None or size < STREAMING_BYTES:
            return datasets.load_dataset(*place, split=split)
        stream = datasets.load_dataset(*place, split=split, streaming=True)
        return stream.shuffle(seed=seed, buffer_size=max(SHUFFLE_BUFFER_ROWS, 2 * max_rows)).take(max_rows)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load {split!r} of data set {path!r}: {first_line(error)}",
            hint="check the name, the network and HF_TOKEN, or give a file instead",
        ) from error
