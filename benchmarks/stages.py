"""The stage of this package as a Python function, which ``from benchmarks import benchmark`` gives."""

from __future__ import annotations

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.commands import finish_benchmark, prepare_benchmark
from benchmarks.report import Report
from serving.reporting import logger
from serving.stage_function import stage_function


@stage_function
def benchmark(options: BenchmarkOptions) -> Report:
    """Measure speed and quality of a served model against its PyTorch original: ``benchmarks/reports/``.

    The keywords are the options of ``tritonize benchmark``, with underscores::

        benchmark(name="tickets", http_port=9000, grpc_port=9001, gate=["served.int8.accuracy >= pytorch.fp32.accuracy - 0.01"])

    Returns:
        The report; ``report.figures()`` has every figure by its name.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A value is not allowed.
        GateError: A gate failed. The report is written.
        TritonizeError: Something prevents the measurement.
    """
    options = prepare_benchmark(None, options)
    from benchmarks.pages.terminal import render
    from benchmarks.run import run_benchmark

    report = run_benchmark(options)
    for line in render(report).splitlines():
        logger.info(line)
    finish_benchmark(report, options)
    return report
