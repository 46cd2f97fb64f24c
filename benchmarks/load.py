"""Load on a running server by ``perf_analyzer``, Triton's own load generator: closed or open loop, real texts, raw samples."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measurements import LoadMode
from benchmarks.speed import MEASURE_LONGER, Spans, as_spans
from serving.access import ClientAccess
from serving.access_options import AccessOptions
from serving.errors import ServerError, SetupError
from serving.runtime.types import Tensor

BINARY = "perf_analyzer"
LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}
"""Library that the binary needs → its file name in the server's wheel."""
WINDOWS = 3
"""perf_analyzer ends after three windows that agree; with an unlimited tolerance, after exactly three."""
WARM_UP_WINDOWS = 1
INPUT, EXPORT, SUMMARY = "input.json", "profile.json", "summary.csv"
UNSTABLE = "Failed to obtain stable measurement"
"""Its message if a window contained no answer at all, as when the machine stalled for that long."""
ATTEMPTS = 3
GRPC_TLS_FLAGS = (
    "--ssl-grpc-root-certifications-file",
    "--ssl-grpc-certificate-chain-file",
    "--ssl-grpc-private-key-file",
)
HTTPS_FLAGS = ("--ssl-https-ca-certificates-file", "--ssl-https-client-certificate-file", "--ssl-https-private-key-file")
"""Its options for the CAs, the certificate of a client and its private key."""
_DELAYED = re.compile(r"([\d.]+)% of the requests were delayed")


@dataclass(frozen=True, kw_only=True)
class LoadOptions(LoadMode):
    """One run of the load generator.

    Attributes:
        model: Name of the ensemble.
        url: ``host:port`` without a scheme.
        duration: Seconds measured, after a warm-up of half as long.
        access: API key and TLS.
    """

    model: str
    url: str
    duration: float
    access: AccessOptions = field(default_factory=AccessOptions)

    @property
    def description(self) -> str:
        """The load as text, for messages."""
        return f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests per second"

    @property
    def is_https(self) -> bool:
        """Whether the requests go over HTTPS."""
        access = self.access
        return self.protocol == "http" and (access.ssl or access.ca is not None or access.certificate is not None)


@dataclass(frozen=True, kw_only=True)
class LoadFound:
    """What a run of the load generator measured.

    Attributes:
        spans: When each request was sent and answered, ns, without the warm-up.
        requests: Number of requests, warm-up included.
        mean_us: Mean latency of all requests, warm-up included, as Triton's statistics include it, µs.
        client_us: The part of it that the load generator spends on packing and unpacking, µs.
        delayed: Share of requests that an open loop sent too late, which makes its latencies too low.
    """

    spans: Spans
    requests: int
    mean_us: float
    client_us: float
    delayed: float


def find_perf_analyzer(environment: Path) -> Path:
    """Find ``perf_analyzer``: on PATH (as in NVIDIA's SDK image), otherwise in the server's environment.

    Raises:
        SetupError: It is in neither.
    """
    on_path = shutil.which(BINARY)
    if on_path is not None:
        return Path(on_path)
    binary = environment / "bin" / BINARY
    if not binary.is_file():
        raise SetupError(f"no {BINARY} on PATH or in {environment}", hint="create the server's environment with: make setup")
    return binary


@contextlib.contextmanager
def library_path(binary: Path) -> Iterator[dict[str, str]]:
    """Provide environment variables under which ``perf_analyzer`` finds its libraries.

    The wheels contain them under other file names, so that links with the plain names are placed in a private folder as long as the
    block runs. A binary outside such an environment uses the system's libraries.

    Raises:
        SetupError: The wheels lack a library.
    """
    wheels = sorted(binary.parents[1].glob("lib/python3*/site-packages/nvidia_pytriton.libs"))
    if not wheels:
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory(prefix="tritonize-") as folder:
        for plain, pattern in LIBRARIES.items():
            found = sorted(wheels[0].glob(pattern))
            if not found:
                raise SetupError(
                    f"{wheels[0]} lacks {pattern}", hint="create the server's environment again with: make clean setup"
                )
            (Path(folder) / plain).symlink_to(found[0].resolve())
        inherited = os.environ.get("LD_LIBRARY_PATH")
        yield os.environ | {"LD_LIBRARY_PATH": folder + (f":{inherited}" if inherited else "")}


def input_data(tensors: Sequence[Tensor], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Convert rows to the form of ``--input-data``: one request of one row each, repeated in a cycle."""
    return {"data": [{tensor.name: [value] for tensor, value in zip(tensors, row, strict=True)} for row in rows]}


def command(binary: Path, options: LoadOptions, folder: Path) -> list[str]:
    """Build the command line of one run; its files are in ``folder``."""
    arguments = {
        "-m": options.model,
        "-u": f"https://{options.url}" if options.is_https else options.url,
        "-i": options.protocol,
        "--input-data": folder / INPUT,
        "--measurement-interval": round(1000 * options.duration / (WINDOWS - WARM_UP_WINDOWS)),
        "--stability-percentage": 999,
        "--profile-export-file": folder / EXPORT,
        "-f": folder / SUMMARY,
    }
    load = ["--concurrency-range", str(options.concurrency)]
    if options.rate is not None:
        load = ["--request-rate-range", f"{options.rate:g}", "--request-distribution", "poisson", "--async"]
    return [os.fspath(binary), *load, *(str(word) for pair in arguments.items() for word in pair), *access_flags(options)]


def access_flags(options: LoadOptions) -> list[str]:
    """Return the options for an API key and for TLS. The key is on the command line: the load generator reads it nowhere else."""
    access = ClientAccess(**asdict(options.access))
    flags = [word for name, value in access.headers(options.protocol).items() for word in ("-H", f"{name}:{value}")]
    if access.tls is None:
        return flags
    names = GRPC_TLS_FLAGS if options.protocol == "grpc" else HTTPS_FLAGS
    given = zip(names, (access.tls.ca, access.tls.certificate, access.tls.key), strict=True)
    files = [word for name, path in given if path is not None for word in (name, os.fspath(path))]
    return [*flags, *(["--ssl-grpc-use-ssl"] if options.protocol == "grpc" else []), *files]


def parse_export(content: dict[str, Any]) -> tuple[Spans, Spans]:
    """Read the samples of a ``--profile-export-file``.

    Returns:
        All requests in the order they were sent, and those after the warm-up.

    Raises:
        ServerError: The file holds no requests, or one without an answer.
    """
    experiment = content["experiments"][0]
    requests = experiment["requests"]
    if any(len(request["response_timestamps"]) != 1 for request in requests):
        raise ServerError(f"{BINARY} recorded a request without an answer")
    every = as_spans(sorted((request["timestamp"], request["response_timestamps"][0]) for request in requests))
    measured: Spans = every[every[:, 0] >= experiment["window_boundaries"][WARM_UP_WINDOWS]]
    if len(measured) < 2:
        raise ServerError(f"{BINARY} saw {len(measured)} requests answered: too few to measure", hint=MEASURE_LONGER)
    return every, measured


def parse_summary(text: str) -> float:
    """Read the client's own mean time per request from the table that ``-f`` writes, µs."""
    (row,) = csv.DictReader(line for line in text.splitlines() if line.strip())
    return float(row["Client Send"]) + float(row["Client Recv"])


def parse_delayed(printed: str) -> float:
    """Read the share of requests that an open loop reports as sent too late."""
    found = _DELAYED.search(printed)
    return float(found.group(1)) / 100 if found else 0.0


def run_load(binary: Path, options: LoadOptions, tensors: Sequence[Tensor], rows: Sequence[Sequence[str]]) -> LoadFound:
    """Put a load on the server and record when each request was sent and answered.

    If the machine stalled meanwhile, the run is repeated, so that earlier measurements are not lost.

    Raises:
        ServerError: The load generator failed; the message holds its last line.
    """
    with library_path(binary) as environment, tempfile.TemporaryDirectory(prefix="tritonize-") as name:
        folder = Path(name)
        (folder / INPUT).write_text(json.dumps(input_data(tensors, rows), ensure_ascii=False), encoding="utf-8")
        for attempt in range(1, ATTEMPTS + 1):
            done = _run(command(binary, options, folder), environment, options)
            if done.returncode == 0 and (folder / EXPORT).is_file():
                break
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            reason = said[-1] if said else f"exit code {done.returncode}"
            if UNSTABLE not in reason or attempt == ATTEMPTS:
                hint = MEASURE_LONGER if UNSTABLE in reason else ""
                raise ServerError(f"{BINARY} failed over {options.protocol} at {options.description}: {reason}", hint=hint)
        every, measured = parse_export(json.loads((folder / EXPORT).read_text(encoding="utf-8")))
        return LoadFound(
            spans=measured,
            requests=len(every),
            mean_us=float((every[:, 1] - every[:, 0]).mean()) / 1e3,
            client_us=parse_summary((folder / SUMMARY).read_text(encoding="utf-8")),
            delayed=parse_delayed(done.stdout + done.stderr),
        )


def _run(arguments: list[str], environment: dict[str, str], options: LoadOptions) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            arguments,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60 + 20 * options.duration,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(
            f"{BINARY} did not end within {error.timeout:.0f} s at {options.description}", hint="ask for less load"
        ) from error
