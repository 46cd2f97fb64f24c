"""A report and the samples behind it, made up by laws that are known: what a benchmark of a small classifier finds on two cores."""

from __future__ import annotations

import zlib
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import numpy as np

from benchmarks.environment import Environment
from benchmarks.measurements import Arrangement, ChangedAnswer, Estimate, InProcess, Load, Quality, Served, Split, Step
from benchmarks.report import Report, ReportSettings
from benchmarks.samples import Samples
from benchmarks.speed import Speed
from benchmarks.verdicts import BenchmarkGate, FigureComparison, Miss, ReportComparison

ROUNDS = 5
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 32, 64, 128)
CLIENTS = (1, 2, 4, 8, 16, 32)
SERVED_LENGTHS = (32, 64, 128)
SIGMA = 0.25
"""Of the latencies' logarithm, wherever nothing else is said: the slowest of a hundred calls takes 1.8 times the median."""

CALL_MS = {
    "pytorch.fp32": (4.0, 6.0),
    "pytorch.bf16": (4.5, 7.5),
    "compiled.fp32": (2.5, 5.0),
    "pipeline.fp32": (5.5, 6.4),
    "exported.fp32": (1.5, 5.2),
    "onnx.fp32": (1.2, 4.8),
    "onnx.int8": (0.8, 1.9),
}
"""A call of ``batch`` rows takes a + b·batch, ms: (a, b) of every model."""
LENGTH_MS = (0.3, 0.03, 0.00015)
"""A row of ``length`` tokens takes a + b·length + c·length² times the model's b, ms: (a, b, c)."""
SCALING = {"grpc": (260.0, 0.42, 0.004), "http": (250.0, 0.38, 0.006)}
"""N clients get λN / (1 + σ(N − 1) + κN(N − 1)) rows per second: (λ, σ, κ) of each protocol."""
LABELLED = 1000
POWER = 38.0
"""Watts of the whole machine under load."""


def speed(throughput: float, p50_ms: float, *, spread: float = 0.06, sigma: float = SIGMA) -> Speed:
    """A speed whose latencies are log-normal and whose slowest and fastest round are ``spread`` from the median."""
    tails = {f"p{share}_ms": p50_ms * float(np.exp(sigma * z)) for share, z in ((90, 1.2816), (95, 1.6449), (99, 2.3263))}
    calls = max(40, min(2000, round(throughput)))
    return Speed(throughput=throughput, throughput_low=throughput * (1 - spread), throughput_high=throughput * (1 + spread),
                 p50_ms=p50_ms, **tails, calls=calls, seconds=5.0)  # fmt: skip


def call_ms(model: str, batch: int) -> float:
    """What a call of ``batch`` rows takes, ms."""
    start, each = CALL_MS[model]
    return start + each * batch


def length_ms(model: str, length: int) -> float:
    """What a row of ``length`` tokens takes, ms."""
    start, each, square = LENGTH_MS
    return CALL_MS[model][1] * (start + each * length + square * length**2)


def scaled(protocol: str, clients: int) -> float:
    """Rows per second that ``clients`` get over ``protocol``."""
    alone, waiting, talking = SCALING[protocol]
    return alone * clients / (1 + waiting * (clients - 1) + talking * clients * (clients - 1))


def quality(correct: float, agreement: float, *, judged: bool = True, logit: float | None = None) -> Quality:
    """Of answers of which ``correct`` are right, against an original with 0.839."""
    if not judged:
        return Quality(rows=LABELLED, metrics={}, agreement=agreement, max_score_difference=None)
    margin = 1.96 * float(np.sqrt(correct * (1 - correct) / LABELLED))
    paired = 1.96 * float(np.sqrt((1 - agreement) / LABELLED))
    drop = 0.839 - correct
    same = agreement == 1
    return Quality(
        rows=LABELLED,
        metrics={"f1": correct - 0.002, "accuracy": correct},
        agreement=agreement,
        max_score_difference=0.0 if same else 3.1 * (1 - agreement),
        max_logit_difference=logit,
        main=Estimate(value=correct, low=correct - margin, high=correct + margin),
        drop=Estimate(value=drop, low=drop - paired, high=drop + paired),
        calibration_error=0.043 + drop,
        changed_answers=[] if same else [_changed_answer(index) for index in range(10)],
    )


def _changed_answer(index: int) -> ChangedAnswer:
    texts = (
        "A film that is neither good nor bad | but long.",
        "Unflinchingly <b>bleak</b> and `desperate`,\nand worth every minute of it.",
        "The acting, costumes, music, cinematography and sound are all astounding given the production's austere locales. " * 6,
        "Es war, naja, *nicht schlecht* – ★★★☆☆",
    )
    score = 0.5 + 0.04 * (10 - index)
    original, answer = ("negative", "positive") if index % 2 else ("positive", "negative")
    return ChangedAnswer(
        row=17 + 31 * index,
        texts={"TEXT": texts[index % len(texts)]},
        reference=original if index % 3 else answer,
        original=[{"label": original, "score": score}],
        answer=[{"label": answer, "score": 1 - score / 1.8}],
        difference=round(0.44 / (index + 1), 3),
    )


def _arrangement(model: str, name: str, *, processes: int = 1, threads: int = 2, batch: int = 1, length: int | None = None,
                 spread: float = 0.06) -> Arrangement:  # fmt: skip
    one_thread = 1.6 if threads == 1 else 1.0
    took = (call_ms(model, batch) if length is None else length_ms(model, length)) * one_thread
    throughput = processes * batch * 1000 / took * (1 if processes == 1 else 0.93)
    return Arrangement(
        name=name,
        processes=processes,
        threads=threads,
        batch=batch,
        length=length,
        speed=speed(throughput, took, spread=spread),
        load_seconds=2.4 if model.startswith(("pytorch", "pipeline")) else 0.6,
        first_answer_seconds=31.0 if model.startswith("compiled") else 0.02,
        peak_rss_mib=processes * (620.0 if model.startswith(("pytorch", "pipeline", "compiled")) else 240.0) + 2 * batch,
        gpu_memory_mib=None,
        joules_per_row=POWER / throughput,
    )


def _model(kind: str, precision: str, judged: Quality, size_mib: float, *, lengths: bool = True) -> InProcess:
    name = f"{kind}.{precision}"
    if kind in ("onnx", "exported"):
        found = [_arrangement(name, f"p1t2{f'b{batch}' if batch > 1 else ''}", batch=batch) for batch in BATCHES]
        found.append(_arrangement(name, "p2t1", processes=2, threads=1, spread=0.28))
        found += [_arrangement(name, f"p1t2l{length}", length=length) for length in LENGTHS if lengths]
    else:
        found = [_arrangement(name, f"b{batch}", batch=batch) for batch in BATCHES]
        found += [_arrangement(name, f"b1l{length}", length=length) for length in LENGTHS if lengths]
    file = {"onnx": f"model-{precision}.onnx", "exported": "exported/model.onnx"}.get(kind, "model.safetensors")
    fused = {"onnx": {"SkipLayerNormalization": 13, "Gelu": 6, "Attention": 6}, "exported": {}}.get(kind)
    arrangements = {one.name: one for one in found}
    return InProcess(kind=kind, precision=precision, device="cpu", file=file, sha256=sha256(name.encode()).hexdigest(),
                     size_mib=size_mib, fused_operators=fused, arrangements=arrangements, quality=judged)  # fmt: skip


def _load(protocol: str, throughput: float, p50_ms: float, *, concurrency: int | None, share: float | None = None,
          length: int | None = None, sigma: float = SIGMA) -> Load:  # fmt: skip
    found = speed(throughput, p50_ms, sigma=sigma)
    mean_us = 1e3 * p50_ms * float(np.exp(sigma**2 / 2))
    busy = {"preprocess": 300.0, "model": 2700.0, "postprocess": 180.0}
    around = {"client": 90.0, "network": 240.0, "ensemble": 120.0}
    scale = min(1.0, 0.95 * mean_us / (sum(busy.values()) + sum(around.values())))
    times = {name: scale * value for name, value in (busy | around).items()}
    waited = mean_us - sum(times.values())
    steps = {name: Step(executed_batch=1.0, queue_us=waited * part, compute_us=times[name], cost_us=times[name])
             for name, part in (("preprocess", 0.15), ("model", 0.8), ("postprocess", 0.05))}  # fmt: skip
    return Load(protocol=protocol, concurrency=concurrency, share=share, rate=None if concurrency else throughput, length=length,
                speed=found, executed_batch=1.0, steps=steps, split=Split(queue=waited, **times),
                joules_per_row=POWER / throughput)  # fmt: skip


def _loads() -> list[Load]:
    loads = []
    for protocol in SCALING:
        most = max(scaled(protocol, clients) for clients in CLIENTS)
        loads += [_load(protocol, scaled(protocol, clients), 1000 * clients / scaled(protocol, clients), concurrency=clients)
                  for clients in CLIENTS]  # fmt: skip
        loads += [_load(protocol, share * most, 4.5 / (1 - share * 0.92), concurrency=None, share=share, sigma=0.5)
                  for share in (0.5, 0.8, 0.9)]  # fmt: skip
    for length in SERVED_LENGTHS:
        took = length_ms("onnx.int8", length)
        loads.append(_load("grpc", 2000 / took, 8 * took, concurrency=16, length=length))
    return loads


def _rounds(report: Report) -> list[dict[str, float]]:
    rounds: list[dict[str, float]] = []
    for index in range(ROUNDS):
        at = 2 * index / (ROUNDS - 1) - 1  # −1 in the first round, 1 in the last
        found: dict[str, float] = {}
        for name, one in report.speeds():
            spread = one.throughput_high / one.throughput - 1
            own = asdict(one)
            found |= {f"{name}.throughput": one.throughput * (1 + at * spread)}
            found |= {f"{name}.{key}": own[key] / (1 + at * spread) for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")}
        rounds.append(found)
    return rounds


def report(**changes: Any) -> Report:
    """The report of a benchmark that measured all there is, with ``changes`` to its fields."""
    same, close, int8 = quality(0.839, 1.0), quality(0.838, 0.997, logit=0.021), quality(0.832, 0.981, logit=0.68)
    models = [
        _model("pytorch", "fp32", replace(same, drop=None), 86.7),
        _model("pytorch", "bf16", close, 43.4),
        _model("compiled", "fp32", same, 86.7, lengths=False),
        _model("pipeline", "fp32", quality(0, 0.999, judged=False), 86.7, lengths=False),
        _model("exported", "fp32", replace(same, max_logit_difference=3e-6), 86.9),
        _model("onnx", "fp32", replace(same, max_logit_difference=4e-6), 86.8),
        _model("onnx", "int8", int8, 22.0),
    ]
    served = Served(
        precision="int8",
        package={"precision": "int8", "batching": "off", "instances": 2, "threads": 1, "device": "cpu", "max_batch_size": 64},
        sha256=models[-1].sha256,
        server="triton 2.51.0",
        loads=_loads(),
        quality=replace(int8, max_logit_difference=None),
        load_seconds=2.2,
        peak_rss_mib=355.0,
        pss_mib=346.0,
        gpu_memory_mib=None,
        size_mib=22.0,
    )
    found = Report(
        name="reviews",
        task="text-classification",
        created="2031-02-03T04:05:06+00:00",
        main_metric="accuracy",
        environment=Environment(
            cpu="Made-up CPU @ 2.00GHz",
            cores=2,
            memory_mib=8192,
            gpus=[],
            system="Linux-6.8-x86_64",
            busy_percent=3.0,
            stolen_percent=0.4,
            versions={"python": "3.11.9", "torch": "2.13.0", "transformers": "4.57.6", "onnxruntime": "1.31.1"},
            commit="0123456789abcdef0123456789abcdef01234567",
        ),
        settings=ReportSettings(
            rows=512,
            labelled_rows=LABELLED,
            duration=5.0,
            rounds=ROUNDS,
            seed=0,
            device="cpu",
            max_length=128,
            test=None,
            bundle_created="2031-02-03T03:00:00+00:00",
        ),
        in_process=models,
        served=served,
        rounds=[{}],
        samples={},
        gates=[
            BenchmarkGate(
                expression="served.int8.c16.throughput >= 2 * pytorch.fp32.throughput",
                comparison="503.632 >= 326.531",
                held=5,
                rounds=ROUNDS,
                passed=True,
            ),
            BenchmarkGate(
                expression="served.int8.c16.p99_ms <= 50",
                comparison="56.8305 <= 50",
                held=0,
                rounds=ROUNDS,
                passed=False,
                missed=Miss(value=56.8305, limit=50),
            ),
            BenchmarkGate(
                expression="served.int8.metric_drop <= 0.02", comparison="0.007 <= 0.02", held=5, rounds=ROUNDS, passed=True
            ),
        ],
    )
    return replace(found, **({"rounds": _rounds(found)} | changes))


def compared(*figures: FigureComparison, **changes: Any) -> ReportComparison:
    """What holding a report against a baseline came to."""
    found = ReportComparison(
        before="reviews of 2031-01-01", now="reviews of 2031-02-03", figures=list(figures), notes=[], only_before=[], only_now=[]
    )
    return replace(found, **changes)


def comparison(figure: str, verdict: str = "same") -> FigureComparison:
    """A figure that fell from 500 to 400, whatever is made of it."""
    why = "another machine" if verdict == "not compared" else ""
    return FigureComparison(figure=figure, before=500.0, now=400.0, change=-0.2, tolerance=0.1, verdict=verdict, why=why)


def samples(report: Report) -> Samples:
    """Samples behind every speed of ``report``: log-normal latencies whose median and 99th percentile are its own."""
    processes = {f"{model.name}.{name}": one.processes for model in report.in_process for name, one in model.arrangements.items()}
    found: Samples = {}
    for name, one in report.speeds():
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        sigma = float(np.log(one.p99_ms / one.p50_ms)) / 2.3263
        side_by_side = processes.get(name, 1)
        for index in range(1, len(report.rounds) + 1):
            for process in range(side_by_side):
                took = 1e3 * one.p50_ms * np.exp(sigma * draw.standard_normal(max(2, one.calls // len(report.rounds))))
                start = np.concatenate([[0.0], np.cumsum(took)[:-1]])
                key = f"{name}.r{index}" + (f".{process}" if side_by_side > 1 else "")
                found[key] = {"start_us": start.round(1).tolist(), "took_us": took.round(1).tolist()}
    return found
