"""Where checkpoints and rows come from: a local path, the Hugging Face Hub, or the quickstart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from export import quickstart
from export.checkpoint import first_line
from export.columns import Columns, ResolvedColumns
from export.data import Rows, checked_rows
from export.files import read_rows
from export.tasks.base import Task
from serving.errors import ArtifactError, DataError
from serving.records import Record

HUB = "hub:"
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is read of a checkpoint folder. Pickled weights (``*.bin``) are not: loading them can run code."""
LARGE = 2**30
"""Bytes from which on a split of a Hub data set is streamed, where not all of its rows are wanted."""
WINDOW = 10_000
"""Rows of a stream that are drawn from at a time, or twice as many as are wanted."""
MODULES = "[0-9]*_*"
"""Folders in it that say what is done with what the model gives, as sentence-transformers lays them out: ``1_Pooling`` …"""


def checkpoint_folder(location: str, cache: Path) -> Path:
    """Folder of a checkpoint.

    Args:
        location: a folder, ``quickstart:minilm``, or a name on the Hub (token, endpoint and offline mode as the Hub's own
            environment variables say).
        cache: folder for what the quickstart fetches.

    Raises:
        ArtifactError: there is no such checkpoint, or it has no ``config.json``, or no safetensors weights.
        SetupError: pip could not get the quickstart's.
    """
    if location == quickstart.MINILM:
        return quickstart.minilm(cache)
    folder = Path(location)
    if not folder.is_dir():
        folder = _hub_checkpoint(location)
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{location} is no checkpoint: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{location} has no safetensors weights, and pickled ones are not loaded: they can run code",
            hint="load it where you trust it and save_pretrained(…) it, which writes safetensors",
        )
    return folder


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that shape the model and its tokenizer, and its folders of :data:`MODULES`, sorted."""
    files = {path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern) if path.name != "manifest.json"}
    return sorted(files | {path for path in folder.glob(MODULES) if path.is_dir()})


def _hub_checkpoint(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ArtifactError(f"no checkpoint folder {name}")
    try:
        return Path(snapshot_download(name, allow_patterns=list(CHECKPOINT_FILES)))
    except HFValidationError as error:
        raise ArtifactError(f"no checkpoint folder {name}, and it is no name on the Hub: {error}") from error
    except OSError as error:  # every download error of that library is one
        raise ArtifactError(
            f"no checkpoint folder {name}, and the Hub did not give one of that name: {first_line(error)}",
            hint="check the name, the network and HF_TOKEN, or give a folder",
        ) from error


def load_rows(
    location: str, columns: Columns, task: type[Task], *, split: str, cache: Path, most: int | None = None, seed: int = 0
) -> Rows:
    """Rows of a data location, every one of them checked.

    Args:
        location: a csv, tsv, jsonl or parquet file, a pattern of such, or a folder (see :func:`export.files.read_rows`);
            ``hub:NAME[/CONFIG]``, a data set of the Hub or a folder of its form; or ``quickstart:reviews``. The latter two may end
            in ``:SPLIT``.
        split: the split to take where ``location`` names none.
        most: rows that are wanted at most. A large data set of the Hub is then streamed, and drawn from as far as it was read;
            of any other all rows are read.
        seed: of that draw.

    Raises:
        DataError: it cannot be read or a row is not as it must be.
        SetupError: pip could not get the quickstart's.
    """
    if location.startswith(quickstart.REVIEWS):
        return quickstart.reviews(cache, location.removeprefix(quickstart.REVIEWS).removeprefix(":") or split)
    if location.startswith(HUB):
        path, _, own_split = location.removeprefix(HUB).partition(":")
        if not path:
            raise DataError(f"{location!r} names no data set", hint="such as hub:glue/sst2, or hub:owner/set:train")
        return _hub_rows(
            _dataset(path, own_split or split, most, seed), f"{HUB}{path}:{own_split or split}", columns.resolved(task), task
        )
    return checked_rows(location, read_rows(location, split), columns.resolved(task), task)


def _hub_rows(dataset: Any, location: str, columns: ResolvedColumns, task: type[Task]) -> Rows:
    names = _label_names((dataset.features or {}).get(columns.label))
    rows = checked_rows(location, _records(dataset, location, columns.label, names), columns, task)
    return replace(rows, names=tuple(names or rows.names))


def _records(dataset: Any, location: str, label: str | None, names: list[str] | None) -> Iterator[Record]:
    for number, row in enumerate(dataset, start=1):
        place = f"row {number}"
        yield place, row if names is None else row | {label: _named(row[label], names, f"{location}, {place}")}


def _label_names(feature: Any) -> list[str] | None:
    """A ClassLabel, or a list of them: numbers in the rows, names beside them."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(label: Any, names: list[str], place: str) -> Any:
    """The name of a label; of a list of labels, their names."""
    if isinstance(label, list):
        return [_named(one, names, place) for one in label]
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise DataError(
            f"{place}: label {label!r} is none of {', '.join(names)}",
            hint="a negative label means that the labels are withheld: use another split",
        )
    return names[label]


def _dataset(path: str, split: str, most: int | None, seed: int) -> Any:
    """The data set; where it is large, and ``most`` rows are wanted, those, drawn from a window that moves through it."""
    import datasets

    datasets.disable_progress_bars()
    try:
        try:
            builder = datasets.load_dataset_builder(path)
            place: tuple[str, ...] = (path,)
        except datasets.exceptions.DatasetNotFoundError:
            # "glue/sst2" reads as owner/name; where there is none, as name/config
            name, _, config = path.rpartition("/")
            if not name or Path(path).is_absolute():
                raise
            builder, place = datasets.load_dataset_builder(name, config), (name, config)
        size = getattr((builder.info.splits or {}).get(split), "num_bytes", 0) or 0
        if most is None or size < LARGE:
            return datasets.load_dataset(*place, split=split)
        stream = datasets.load_dataset(*place, split=split, streaming=True)
        return stream.shuffle(seed=seed, buffer_size=max(WINDOW, 2 * most)).take(most)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load {split!r} of data set {path!r}: {first_line(error)}",
            hint="check the name, the network and HF_TOKEN, or give a file",
        ) from error
