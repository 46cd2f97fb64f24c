"""Tables and key figures of a report about a model that generates."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measurements import Arrangement, InProcess, Load, Quality, Served
from benchmarks.pages import tables
from benchmarks.pages.formatting import NONE, interval, number, rate, token_rate, unsteady
from benchmarks.pages.headline import Key, original, real_loads
from benchmarks.pages.table import Table
from benchmarks.report import Report
from benchmarks.token_speed import TokenSpeed
from serving.reporting import plural

IN_PROCESS = "onnx"
"""Kind of the models in process that run the served engine."""
STREAMED = ("first p50 ms", "first p99 ms", "between mean ms", "between p50 ms", "between p99 ms")
WHOLE = ("answer p50 ms", "answer p90 ms", "answer p99 ms")
"""Waits for answers that come token by token, and whole."""


def token_speed(measured: Arrangement | Load) -> TokenSpeed:
    """Return the speed of the tokens.

    Raises:
        ValueError: The model does not generate.
    """
    if measured.tokens is None:
        raise ValueError(f"{measured.name} has no speed of tokens")
    return measured.tokens


def speed_head(report: Report) -> list[str]:
    """Name the columns of a speed."""
    return ["tokens/s", "answers/s", *(WHOLE if report.answers_whole else STREAMED), "CPU ms per token"]


def alone(report: Report) -> Arrangement | None:
    """Find the original that answers one text at a time; None if it was not measured."""
    first = original(report)
    return None if first is None else first.arrangements.get("b1")


def glance(report: Report) -> Table:
    """Tabulate every model in one row: its most tokens per second, its shortest waits, its answers."""
    first = alone(report)
    base = None if first is None else token_speed(first)
    rows = []
    for model in report.in_process:
        memory = number(model.best.peak_rss_mib)
        rows.append([model.name, *_best(model.best, model.quickest, base), *_answers(report, model.quality), memory])
    if report.served is not None and (loads := real_loads(report.served)):
        quickest = min(loads, key=lambda load: load.speed.p50_ms)
        answers, memory = _answers(report, report.served.quality), number(report.served.peak_rss_mib)
        rows.append([report.served.name, *_best(loads[0], quickest, base), *answers, memory])
    against = "" if first is None else f" × is against the original that answers one text at a time, on {_threads(first)} (b1)."
    waits = ["answer p50 ms"] if report.answers_whole else ["first token p50 ms", "between tokens p50 ms"]
    head = ["", "best tokens/s", "×", "tokens per CPU s", "×", *waits, "answers as the original"]
    judged = [f"{report.main_metric} (95 %)", "lost (95 %)"] if report.answers_whole else ["perplexity"]
    return Table(
        name="glance",
        title="At a glance",
        head=[*head, *judged, "peak RSS MiB"],
        rows=rows,
        notes=[
            f"Tokens/s are those of the best number of requests in flight, waits those of the quickest.{against} CPU s: seconds of "
            "processor time; of the served model of all processes of the server, without the clients.",
            _quality_note(report),
            *report.remarks,
            unsteady(speed for _, speed in report.speeds()),
        ],
    )


def _best(best: Arrangement | Load, quickest: Arrangement | Load, base: TokenSpeed | None) -> list[str]:
    most, least = token_speed(best), token_speed(quickest)
    times = per_cpu = NONE
    if base is not None:
        times = f"{most.tokens_per_second / base.tokens_per_second:.2f}"
        if most.tokens_per_cpu_second and base.tokens_per_cpu_second:
            per_cpu = f"{most.tokens_per_cpu_second / base.tokens_per_cpu_second:.2f}"
    per_second = NONE if most.tokens_per_cpu_second is None else rate(most.tokens_per_cpu_second)
    waits: list[float | None] = [quickest.speed.p50_ms] if least.ttft_p50_ms is None else [least.ttft_p50_ms, least.itl_p50_ms]
    return [token_rate(most), times, per_second, per_cpu, *map(_milliseconds, waits)]


def _answers(report: Report, quality: Quality) -> list[str]:
    equal = NONE if quality.row_agreement is None else f"{quality.row_agreement:.1%}"
    if report.answers_whole:
        return [equal, interval(quality.main), interval(quality.drop)]
    return [equal, number(quality.perplexity, ".4g")]


def _quality_note(report: Report) -> str:
    if not report.answers_whole:
        return "Perplexity is the bundle's figure, measured when it was exported."
    return f"Quality on {report.settings.labelled_rows} texts; lost: by how much {report.main_metric} is lower than the original's."


def in_process(report: Report) -> Table:
    """Tabulate every arrangement of every model."""
    rows = []
    for model in report.in_process:
        for name, one in model.arrangements.items():
            batch = "in flight" if model.kind == IN_PROCESS else "in a static batch"
            how = f"{_threads(one)}, {one.batch} {batch}" + _tokens(one.length)
            costs = [f"{one.load_seconds:.1f}", f"{one.peak_rss_mib:.0f}"]
            rows.append([f"{model.name}.{name}", how, *_speed(one), *costs])
    head = ["", "threads, texts", *speed_head(report), "load s", "peak RSS MiB"]
    return Table(name="in-process", title="In process", head=head, rows=rows, words=2)


def served(report: Report, found: Served) -> Table:
    """Tabulate every load on the server."""
    rows = []
    for load in found.loads:
        clients = load.concurrency or 0
        how = f"{load.protocol}, {clients} {plural(clients, 'client')}" + _tokens(load.length)
        client = number(token_speed(load).client_cpu_ms_per_token, ".3f")
        rows.append([load.name, how, *_speed(load), client])
    package = found.package
    notes = [
        f"{found.server}; {found.precision}, {package['threads']} {plural(int(package['threads']), 'thread')}, "
        f"{package['max_batch_size']} sequences of {package['capacity']} tokens at a time.",
        f"From start to first answers: {number(found.load_seconds, '.1f')} s. Process tree under load: peak RSS "
        f"{number(found.peak_rss_mib)} MiB, PSS {number(found.pss_mib)} MiB.",
    ]
    head = ["", "load", *speed_head(report), "load generator's CPU ms per token"]
    return Table(name="served", title="Served", head=head, rows=rows, words=2, notes=notes)


def _threads(one: Arrangement) -> str:
    return f"{one.threads} {plural(one.threads, 'thread')}"


def _tokens(length: int | None) -> str:
    return f", {length} tokens" if length else ""


def _speed(measured: Arrangement | Load) -> list[str]:
    tokens = token_speed(measured)
    speed = measured.speed
    waits: tuple[float | None, ...] = (speed.p50_ms, speed.p90_ms, speed.p99_ms)
    if tokens.ttft_p50_ms is not None:
        waits = (tokens.ttft_p50_ms, tokens.ttft_p99_ms, tokens.itl_mean_ms, tokens.itl_p50_ms, tokens.itl_p99_ms)
    return [token_rate(tokens), rate(speed.throughput), *map(_milliseconds, waits), number(tokens.cpu_ms_per_token, ".3f")]


def _milliseconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def serving_cost(report: Report) -> Table:
    """Tabulate the served engine beside the same engine in process, with as many requests in flight."""
    rows = []
    if report.served is not None and (engine := engine_of(report, report.served)) is not None:
        for load in report.served.loads:
            length = f"l{load.length}" if load.length else ""
            beside = engine.arrangements.get(f"c{load.concurrency}{length}")
            if beside is not None:
                rows.append([load.name, *_beside(token_speed(load), token_speed(beside))])
    return Table(
        name="serving-cost",
        title="Cost of serving",
        head=["", "tokens/s served", "in process", "served / in process", "CPU ms per token served", "in process", "of the hops"],
        rows=rows,
        notes=["The engine inside Triton beside the same engine in a process of its own, in the same rounds."],
    )


def engine_of(report: Report, found: Served) -> InProcess | None:
    """Find the engine in process with the graph that is served; None if it was not measured."""
    return next((model for model in report.in_process if model.kind == IN_PROCESS and model.sha256 == found.sha256), None)


def _beside(own: TokenSpeed, engine: TokenSpeed) -> list[str]:
    costs = own.cpu_ms_per_token, engine.cpu_ms_per_token
    hops = None if costs[0] is None or costs[1] is None else costs[0] - costs[1]
    share = own.tokens_per_second / engine.tokens_per_second
    rates = [rate(own.tokens_per_second), rate(engine.tokens_per_second), f"{share:.2f}"]
    return [*rates, *(number(value, ".3f").replace("-", "−") for value in (*costs, hops))]


def quality(report: Report) -> Table:
    """Tabulate how the answers compare with the original's, and the bundle's figures."""
    rows = [
        [
            name,
            NONE if one.row_agreement is None else f"{one.row_agreement:.1%}",
            f"{one.agreement:.1%}",
            str(one.rows),
            number(one.perplexity, ".5g"),
            NONE if one.perplexity_increase is None else f"{one.perplexity_increase:+.2%}".replace("-", "−"),
            NONE if one.next_token_agreement is None else f"{one.next_token_agreement:.2%}",
        ]
        for name, one in report.qualities().items()
    ]
    note = (
        "Answers are greedy, and compared token for token; tokens count up to the first one that differs, where texts part. "
        "The last three columns are the bundle's figures, measured on whole held-out texts when it was exported."
    )
    head = [
        "",
        "answers as the original",
        "tokens as the original",
        "answers",
        "perplexity",
        "above the original's",
        "next tokens as its",
    ]
    return Table(name="quality", title="Quality", head=head, rows=rows, notes=[note])


def text_quality(report: Report) -> Table:
    """Tabulate how texts compare with the original's, and by the metric with the right ones."""
    qualities, main = report.qualities(), report.main_metric
    others = [name for name in dict.fromkeys(name for one in qualities.values() for name in one.metrics) if name != main]
    rows = [
        [
            name,
            interval(one.main),
            interval(one.drop),
            *(number(one.metrics.get(other), ".4f") for other in others),
            NONE if one.row_agreement is None else f"{one.row_agreement:.1%}",
            f"{one.agreement:.1%}",
            str(one.rows),
            NONE if one.next_token_agreement is None else f"{one.next_token_agreement:.2%}",
        ]
        for name, one in qualities.items()
    ]
    note = (
        "Answers have the options of the checkpoint and end where the model ends them. Intervals are bootstrapped over the texts; "
        "the loss is that on the same texts. Characters count up to the first one that differs, where texts part. The last column "
        "is the bundle's figure, measured when it was exported."
    )
    head = ["", f"{main} (95 %)", "lost (95 %)", *others, "answers as the original", "characters as the original", "answers"]
    return Table(name="quality", title="Quality", head=[*head, "next tokens as its"], rows=rows, notes=[note])


def details(report: Report) -> Iterator[Table]:
    """Yield the tables of everything that was measured."""
    yield text_quality(report) if report.answers_whole else quality(report)
    yield in_process(report)
    if report.served is not None:
        yield served(report, report.served)
        yield serving_cost(report)
    yield tables.models(report)


def keys(report: Report) -> list[Key]:
    """List the key figures of the served model; without a server, of the fastest variant in process."""
    return list(_keys(report))


def _keys(report: Report) -> Iterator[Key]:
    found, best, quickest = _main(report)
    if best is None or quickest is None:
        return
    most, least = token_speed(best), token_speed(quickest)
    yield Key("tokens/s", rate(most.tokens_per_second), f"{found.name}.{best.name}: {token_rate(most)}")
    if (first := alone(report)) is not None:
        own = token_speed(first)
        note = f"against one text at a time: {token_rate(own)} tokens/s"
        yield Key("the original's tokens/s", f"×{most.tokens_per_second / own.tokens_per_second:.1f}", note)
    waits: dict[str, tuple[float | None, float | None]] = {"ms, one answer": (quickest.speed.p50_ms, quickest.speed.p99_ms)}
    if not report.answers_whole:
        waits = {
            "ms to the first token": (least.ttft_p50_ms, least.ttft_p99_ms),
            "ms between tokens": (least.itl_p50_ms, least.itl_p99_ms),
        }
    for label, (usual, late) in waits.items():
        yield Key(label, _milliseconds(usual), f"p50 of {found.name}.{quickest.name}, p99 {_milliseconds(late)} ms")
    if found.quality.row_agreement is not None:
        compared = "answers, character for character" if report.answers_whole else "greedy answers, token for token"
        note = f"{found.quality.rows} {compared}"
        yield Key("answers as the original", f"{found.quality.row_agreement:.0%}", note)
    if report.answers_whole and (drop := found.quality.drop) is not None:
        note = f"95 % interval {interval(drop).partition(' ')[2].strip('()')}; {report.main_metric} {interval(found.quality.main)}"
        yield Key(f"{report.main_metric} lost", number(drop.value, ".4f").replace("-", "−"), note)


def _main(report: Report) -> tuple[Served | InProcess, Arrangement | Load | None, Arrangement | Load | None]:
    """What a report is about, with its best and its quickest arrangement or load."""
    if report.served is not None:
        loads = real_loads(report.served)
        return report.served, next(iter(loads), None), min(loads, key=lambda load: load.speed.p50_ms, default=None)
    engines = [model for model in report.in_process if model.kind == IN_PROCESS]
    found = max(engines, key=lambda model: model.best.speed.throughput)
    return found, found.best, found.quickest
