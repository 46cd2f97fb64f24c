"""The load generator is called as it must be, and its raw samples are read as they stand."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from benchmarks.load import (
    LoadOptions,
    access_flags,
    command,
    find_perf_analyzer,
    input_data,
    library_path,
    parse_delayed,
    parse_export,
    parse_summary,
    run_load,
)
from benchmarks.speed import as_spans, closed_loop, over_rounds, side_by_side
from serving.access import API_KEY_VARIABLE
from serving.access_options import AccessOptions
from serving.errors import ServerError, SetupError
from serving.install import triton_environment
from serving.runtime.types import Tensor

OPTIONS = LoadOptions(model="reviews", url="127.0.0.1:8001", protocol="grpc", concurrency=16, duration=3.0)
MS = 1_000_000


@pytest.fixture
def export() -> dict[str, Any]:
    """As perf_analyzer 2.51 wrote it: two clients on a real server, three windows of about 80 ms."""
    content: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "perf_analyzer.json").read_text(encoding="utf-8"))
    return content


def test_the_command_asks_for_a_closed_loop_with_raw_samples() -> None:
    found = command(Path("/bin/perf_analyzer"), OPTIONS, Path("work"))
    assert found[0] == "/bin/perf_analyzer"
    pairs = dict(zip(found[1::2], found[2::2], strict=True))
    assert pairs == {
        "-m": "reviews", "-u": "127.0.0.1:8001", "-i": "grpc", "--input-data": "work/input.json", "--concurrency-range": "16",
        "--measurement-interval": "1500", "--stability-percentage": "999", "--profile-export-file": "work/profile.json",
        "-f": "work/summary.csv",
    }  # fmt: skip


def test_an_open_loop_sends_at_random_moments_and_waits_for_nobody() -> None:
    found = command(Path("/bin/perf_analyzer"), replace(OPTIONS, concurrency=None, rate=12.5), Path("work"))
    assert "--concurrency-range" not in found and "--async" in found
    place = found.index("--request-rate-range")
    assert found[place : place + 4] == ["--request-rate-range", "12.5", "--request-distribution", "poisson"]


def test_what_the_client_took_and_what_it_sent_late_are_read_from_what_it_says() -> None:
    head = "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Client Recv,p50 latency"
    assert parse_summary(f"\n{head}\n4,295.16,195,3223,3,10,10761\n\n") == 205
    said = "[WARNING] Perf Analyzer was not able to keep up with the desired request rate. 23.51% of the requests were delayed. "
    assert parse_delayed(said) == pytest.approx(0.2351)
    assert parse_delayed("Throughput: 12 infer/sec") == 0


def test_every_row_is_one_request_under_the_names_of_the_tasks_tensors() -> None:
    tensors = (Tensor("TEXT", "TYPE_STRING"), Tensor("TEXT_PAIR", "TYPE_STRING"))
    assert input_data(tensors, [["a", ""], ['"q"', "ü\n"]]) == {
        "data": [{"TEXT": ["a"], "TEXT_PAIR": [""]}, {"TEXT": ['"q"'], "TEXT_PAIR": ["ü\n"]}]
    }


def test_samples_are_those_after_the_warm_up(export: dict[str, Any]) -> None:
    experiment = export["experiments"][0]
    spans = parse_export(export)[1]
    second_window = experiment["window_boundaries"][1]
    assert 0 < len(spans) < len(experiment["requests"])
    assert spans[:, 0].min() >= second_window
    assert (np.diff(spans[:, 0]) >= 0).all()
    assert (spans[:, 1] > spans[:, 0]).all()
    late = [request for request in experiment["requests"] if request["timestamp"] >= second_window]
    assert {tuple(span) for span in spans.tolist()} == {
        (request["timestamp"], request["response_timestamps"][0]) for request in late
    }


def test_real_samples_obey_littles_law(export: dict[str, Any]) -> None:
    """Two clients without pause: throughput times mean latency is two."""
    spans = parse_export(export)[1]
    mean_seconds = float((spans[:, 1] - spans[:, 0]).mean()) / 1e9
    assert closed_loop(spans).throughput * mean_seconds == pytest.approx(2, rel=0.1)


def test_too_few_answers_are_told(export: dict[str, Any]) -> None:
    requests = export["experiments"][0]["requests"]
    export["experiments"][0]["requests"] = sorted(requests, key=lambda request: request["timestamp"])[:3]
    with pytest.raises(ServerError, match="saw 0 requests answered") as raised:
        parse_export(export)[1]
    assert "--duration" in raised.value.hint and "--rounds" in raised.value.hint


def test_a_request_without_an_answer_is_an_error(export: dict[str, Any]) -> None:
    max(export["experiments"][0]["requests"], key=lambda request: request["timestamp"])["response_timestamps"] = []
    with pytest.raises(ServerError, match="without an answer"):
        parse_export(export)[1]


def test_a_closed_loop_counts_answers_between_the_first_and_the_last() -> None:
    timing = closed_loop(as_spans([(0, 10 * MS), (0, 20 * MS), (10 * MS, 40 * MS), (20 * MS, 110 * MS)]))
    assert timing.throughput == pytest.approx(3 / 0.1)
    assert timing.seconds == pytest.approx(0.1)
    assert timing.latencies.tolist() == [10, 20, 30, 90]
    speed = timing.speed()
    assert (speed.throughput, speed.p50_ms) == (timing.throughput, pytest.approx(25))
    assert speed.p90_ms <= speed.p95_ms <= speed.p99_ms <= 90


def test_a_single_request_has_no_rate() -> None:
    with pytest.raises(ValueError, match="two requests"):
        closed_loop(as_spans([(0, 1)]))


def test_speeds_of_workers_add_up_while_all_of_them_work() -> None:
    """One answers 4 rows in 100 ms, the other 10 in 200 ms, of which 4 in the first 100; two rows a call."""
    one = as_spans([(0, 50 * MS), (50 * MS, 100 * MS)])
    other = as_spans([(start * MS, (start + 40) * MS) for start in range(0, 200, 40)])
    timing = side_by_side([one, other], 2)
    assert timing.throughput == pytest.approx(40 + 40)
    assert timing.seconds == pytest.approx(0.1)
    assert sorted(timing.latencies) == pytest.approx([40] * 5 + [50] * 2)
    with pytest.raises(SetupError, match="never worked at the same time") as raised:
        side_by_side([one, as_spans([(200 * MS, 240 * MS)])], 2)
    assert "--duration" in raised.value.hint


def test_percentiles_are_those_of_the_samples() -> None:
    speed = closed_loop(as_spans([(0, latency * MS) for latency in range(101)])).speed()
    assert (speed.p50_ms, speed.p90_ms, speed.p95_ms, speed.p99_ms) == pytest.approx((50, 90, 95, 99))


def test_rounds_make_one_speed_of_their_median_their_spread_and_all_their_calls() -> None:
    """Rounds of 10, 50 and 20 rows/s: the slow one has the longest calls, and fewest."""
    slices = [as_spans([(start, start + step) for start in range(0, 500 * MS, step)]) for step in (100 * MS, 20 * MS, 50 * MS)]
    speed = over_rounds([side_by_side([spans], 1) for spans in slices])
    assert (speed.throughput_low, speed.throughput, speed.throughput_high) == pytest.approx((10, 20, 50))
    assert (speed.calls, speed.seconds) == (5 + 25 + 10, pytest.approx(1.5))
    assert (speed.p50_ms, speed.p90_ms) == pytest.approx((20, 100)), "of 40 calls 25 took 20 ms, 10 took 50 and 5 took 100"


def test_the_binary_runs_with_the_libraries_of_its_wheel_and_leaves_no_links() -> None:
    binary = find_perf_analyzer(triton_environment())
    with library_path(binary) as environment:
        folder = Path(environment["LD_LIBRARY_PATH"].split(":")[0])
        said = subprocess.run([binary, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert "Perf Analyzer Version" in said.stdout + said.stderr
    assert folder.name.startswith("tritonize-")
    assert not folder.exists()


def test_a_binary_outside_the_environment_gets_the_systems_libraries(tmp_path: Path) -> None:
    with library_path(tmp_path / "bin" / "perf_analyzer") as environment:
        assert environment == dict(os.environ)


def test_a_wheel_without_the_libraries_is_told(tmp_path: Path) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages" / "nvidia_pytriton.libs").mkdir(parents=True)
    with pytest.raises(SetupError, match="lacks libcudart"), library_path(tmp_path / "bin" / "perf_analyzer"):
        pass


def test_no_load_generator_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no perf_analyzer on PATH") as raised:
        find_perf_analyzer(tmp_path)
    assert "make setup" in raised.value.hint


FLAKY = """#!/bin/sh
for last; do :; done
folder=$(dirname "$last")
echo x >> {count}
if [ "$(wc -l < {count})" -le {failures} ]; then echo "{said}"; exit 99; fi
cp {export} "$folder/profile.json"
printf 'Concurrency,Client Send,Client Recv\\n1,10,5\\n' > "$folder/summary.csv"
"""


@pytest.mark.parametrize(
    ("failures", "said", "runs", "message"),
    [
        (2, "Failed to obtain stable measurement.", 3, ""),
        (9, "Failed to obtain stable measurement.", 3, "Failed to obtain stable measurement"),
        (1, "failed to connect", 1, "failed to connect"),
    ],
)
def test_a_machine_that_stood_still_gets_another_try(
    tmp_path: Path, export: dict[str, Any], failures: int, said: str, runs: int, message: str
) -> None:
    count, samples, binary = tmp_path / "count", tmp_path / "export.json", tmp_path / "bin" / "perf_analyzer"
    samples.write_text(json.dumps(export))
    binary.parent.mkdir()
    binary.write_text(FLAKY.format(count=count, failures=failures, said=said, export=samples))
    binary.chmod(0o755)
    options = LoadOptions(model="x", url="127.0.0.1:1", protocol="grpc", concurrency=1, duration=0.5)
    if message:
        with pytest.raises(ServerError, match=message):
            run_load(binary, options, [Tensor("TEXT", "TYPE_STRING")], [["a"]])
    else:
        assert run_load(binary, options, [Tensor("TEXT", "TYPE_STRING")], [["a"]]).client_us == 15
    assert len(count.read_text().splitlines()) == runs


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_key_and_the_files_of_tls_reach_the_load_generator(
    protocol: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert access_flags(replace(OPTIONS, protocol=protocol)) == []
    authority, keys = trustme.CA(), tmp_path / "keys"
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    keys.touch(mode=0o600)
    keys.write_text("a-key-of-this-test-0123\n")
    options = replace(OPTIONS, protocol=protocol, access=AccessOptions(ca=tmp_path / "ca.pem", api_key_file=keys))
    arguments = command(Path("perf_analyzer"), options, tmp_path)
    headers = [f"{name}:a-key-of-this-test-0123" for name in ("x-api-key", "triton-grpc-protocol-x-api-key")]
    assert [word for flag, word in pairwise(arguments) if flag == "-H"] == headers[: 2 if protocol == "grpc" else 1]
    assert ("--ssl-grpc-use-ssl" in arguments) == (protocol == "grpc")
    flag = "--ssl-grpc-root-certifications-file" if protocol == "grpc" else "--ssl-https-ca-certificates-file"
    assert arguments[arguments.index(flag) + 1] == str(tmp_path / "ca.pem")
    assert arguments[arguments.index("-u") + 1] == ("127.0.0.1:8001" if protocol == "grpc" else "https://127.0.0.1:8001")
