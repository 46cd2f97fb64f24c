"""A report about a model that generates, made up: 64 new tokens, each way with known waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.measurements import Arrangement, ChangedAnswer, InProcess, Load, Quality, Served
from benchmarks.report import Report, speed_figures
from benchmarks.samples import to_answer_samples
from benchmarks.speed import over_rounds
from benchmarks.token_speed import GenerationSlice, tokens_over_rounds
from tests.helpers import made_up

NEW_TOKENS, ROUNDS = 64, 3
CLIENTS = (1, 4, 16)
MS = 1_000_000


def slices(in_flight: int, first_ms: float, between_ms: float, cpu_ms: float, client_ms: float | None) -> list[GenerationSlice]:
    """Rounds in which so many requests, sent together, got their tokens evenly; each round 5 % slower than the one before."""
    found = []
    for index in range(ROUNDS):
        slower = 1 + 0.05 * index
        one = np.concatenate([[0.0], first_ms + between_ms * np.arange(NEW_TOKENS)]) * slower
        times = (np.tile(one, (in_flight, 1)) * MS).round().astype(np.int64)
        tokens = in_flight * NEW_TOKENS
        client = None if client_ms is None else client_ms * tokens / 1e3
        found.append(GenerationSlice(times=times, cpu_seconds=cpu_ms * tokens / 1e3, client_cpu_seconds=client))
    return found


def _arrangement(name: str, in_flight: int, found: list[GenerationSlice], length: int | None) -> Arrangement:
    return Arrangement(
        name=name,
        processes=1,
        threads=2,
        batch=in_flight,
        length=length,
        speed=over_rounds([one.timing() for one in found]),
        load_seconds=2.0,
        first_answer_seconds=0.5,
        peak_rss_mib=900.0,
        gpu_memory_mib=None,
        tokens=tokens_over_rounds(found),
    )


def _quality(equal: float, **known: float) -> Quality:
    prompt = "It was <b>night</b> | and `dark`."
    changed = ChangedAnswer(
        row=3, texts={"text_input": prompt}, reference="", original="The sun", answer="The moon", difference=0.9
    )
    return Quality(
        rows=16,
        metrics={},
        agreement=1 - (1 - equal) / 2,
        row_agreement=equal,
        max_score_difference=None,
        changed_answers=[] if equal == 1 else [changed],
        **known,
    )


def generation_report() -> Report:
    """The report."""
    whole = made_up.report()
    measured: dict[str, list[GenerationSlice]] = {}

    def model(kind: str, precision: str, quality: Quality, calls: dict[str, tuple[int, float, float, int | None]]) -> InProcess:
        arrangements = {}
        for name, (in_flight, first, between, length) in calls.items():
            found = slices(in_flight, first, between, between / in_flight, None)
            measured[f"{kind}.{precision}.{name}"] = found
            arrangements[name] = _arrangement(name, in_flight, found, length)
        return InProcess(
            kind=kind,
            precision=precision,
            device="cpu",
            file="model.onnx" if kind == "onnx" else "model.safetensors",
            sha256=f"{kind}{precision}",
            size_mib=500.0,
            fused_operators={"GroupQueryAttention": 30} if kind == "onnx" else None,
            arrangements=arrangements,
            quality=quality,
        )

    engine = {f"c{count}": (count, 20.0 * count, 15 + 1.5 * count, None) for count in CLIENTS} | {"c1l128": (1, 90.0, 17.0, 128)}
    int8 = _quality(0.5, perplexity=20.4, perplexity_increase=0.02, next_token_agreement=0.91)
    models = [
        model("pytorch", "fp32", _quality(1.0, perplexity=20.0), {"b1": (1, 70.0, 60.0, None), "b16": (16, 700.0, 200.0, None)}),
        model("onnx", "int8", int8, engine),
    ]
    loads = []
    for protocol, extra in (("grpc", 3.0), ("http", 2.0)):
        for count in CLIENTS:
            found = slices(count, 20.0 * count + extra, 15 + 1.5 * count + extra, (15 + 1.5 * count) / count + 0.3, 0.2)
            load = Load(
                protocol=protocol,
                concurrency=count,
                speed=over_rounds([one.timing() for one in found]),
                executed_batch=None,
                steps={},
                split=None,
                tokens=tokens_over_rounds(found),
            )
            measured[f"served.int8.{load.name}"] = found
            loads.append(load)
    assert whole.served is not None
    package: dict[str, str | int] = {"precision": "int8", "threads": 2, "max_batch_size": 16, "capacity": 512}
    served = Served(
        precision="int8",
        package=package,
        sha256=models[-1].sha256,
        server="triton 2.51.0",
        loads=loads,
        quality=int8,
        load_seconds=3.0,
        peak_rss_mib=800.0,
        pss_mib=700.0,
        gpu_memory_mib=None,
        size_mib=140.0,
    )
    settings = replace(
        whole.settings,
        rows=90,
        rounds=ROUNDS,
        labelled_rows=16,
        new_tokens=NEW_TOKENS,
        max_length=512,
        tokens={"as they are": 31.0},
    )
    found = replace(
        whole,
        name="stories",
        task="text-generation",
        main_metric="perplexity",
        settings=settings,
        in_process=models,
        served=served,
        gates=[],
        baseline=None,
        samples=to_answer_samples({f"{name}.r{i + 1}": one.times for name, own in measured.items() for i, one in enumerate(own)}),
        rounds=[{} for _ in range(ROUNDS)],
    )
    figures = {f"{name}.{key}" for name, one in found.measured() for key, value in speed_figures(one).items() if value is not None}
    return replace(found, rounds=[{name: found.figures()[name] for name in sorted(figures)} for _ in range(ROUNDS)])
