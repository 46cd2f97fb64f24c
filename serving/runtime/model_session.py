"""ONNX Runtime sessions on a CPU whose weights several processes share: one copy in memory and in the CPU cache.

The embedded server's ``onnxruntime`` backend runs its models with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from hashlib import sha256
from pathlib import Path

import onnxruntime as ort

CPU = "CPUExecutionProvider"
LEVELS = {
    None: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""Optimization levels as Triton's model configuration numbers them."""
WEIGHTS_FOLDER = "TRITONIZE_WEIGHTS"
"""Environment variable with the folder for mapped weights, which whoever starts the server removes afterwards."""


def session_options(*, threads: int, inter_op_threads: int = 1, level: int | None = None) -> ort.SessionOptions:
    """Return options of a session.

    Args:
        threads: Threads of one operator; 0: all cores.
        inter_op_threads: Operators that run at the same time; 0: ONNX Runtime chooses.
        level: A key of :data:`LEVELS`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = inter_op_threads
    options.graph_optimization_level = LEVELS[level]
    return options


def open_with_mapped_weights(
    path: Path, *, threads: int, inter_op_threads: int = 1, level: int | None = None
) -> ort.InferenceSession | None:
    """Open a graph on the CPU so that all processes that open it map its weights from one file.

    Args:
        path: The graph.
        threads: Threads of one operator; 0: all cores.
        inter_op_threads: Operators that run at the same time.
        level: Optimization level of the graph, a key of :data:`LEVELS`.

    Returns:
        The session; None if the weights cannot be mapped.
    """
    written = _optimized(path, session_options(threads=threads, inter_op_threads=inter_op_threads, level=level))
    if written is None:
        return None
    options = session_options(threads=threads, inter_op_threads=inter_op_threads, level=2)  # the graph is already optimized
    return ort.InferenceSession(str(written), options, providers=[CPU])


def _optimized(path: Path, options: ort.SessionOptions) -> Path | None:
    """Return the path of the optimized graph, whose weights are in a file beside it, or None if that file cannot be used.

    ONNX Runtime maps such a file instead of copying it (see "session.save_external_prepacked_constant_initializers" in its
    session options). The weights are already packed for the operators of this machine. The first process writes the file; the
    others wait for it.
    """
    folder = _weights_folder() / _identity(path)
    folder.mkdir(exist_ok=True)
    target = folder / "model.onnx"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            written = folder / "written.onnx"
            options.optimized_model_filepath = str(written)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
            ort.InferenceSession(str(path), options, providers=[CPU])
            written.rename(target)
    return target if _is_aligned(target) else None


def _weights_folder() -> Path:
    """Return the folder for the weights of all models, which only this user can write into: its files are run as models.

    Raises:
        PermissionError: The folder belongs to another user, is a link, or other users may write into it.
    """
    given = os.environ.get(WEIGHTS_FOLDER)
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"tritonize-weights-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} is not a folder that only you can write into: set {WEIGHTS_FOLDER} to one of your own")
    return folder


def _identity(path: Path) -> str:
    """Return a name that no other graph has: two generations of a model have other files, whatever their names."""
    found = path.resolve().stat()
    content = (path.resolve(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, ort.__version__)
    return sha256(repr(content).encode()).hexdigest()[:24]


def _is_aligned(path: Path) -> bool:
    """Return whether all external data of a graph begins at multiples of 64 bytes.

    ONNX Runtime 1.31 writes the tensors one after the other without alignment, but its matrix products load packed weights with
    instructions that fault on unaligned addresses.
    """
    found = re.finditer(rb"\n\x06offset\x12.(\d+)j|\|(\d+);\d+;\d+", path.read_bytes(), re.DOTALL)
    offsets = [int(match[1] or match[2]) for match in found]
    return bool(offsets) and all(offset % 64 == 0 for offset in offsets)
