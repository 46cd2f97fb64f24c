"""The plan: which variant is served, on what device, with or without batching, and why."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from serving.bundle import Bundle, Variant, load_bundle
from serving.errors import ArtifactError
from serving.plan import Plan, make_plan
from tests.helpers.manifests import variant_figures


@pytest.mark.parametrize(
    ("asked", "batching", "instances"),
    [
        ({"precision": "int8"}, "off", None),
        ({"precision": "int8", "batching": "ragged"}, "ragged", 1),
        ({"precision": "fp32", "batching": "ragged"}, "ragged", 1),
    ],
)
def test_plan_on_a_cpu(bundle: Path, asked: dict, batching: str, instances: int | None) -> None:
    cores = len(os.sched_getaffinity(0))
    plan = make_plan(
        load_bundle(bundle),
        **{"precision": "auto", "device": "cpu", "batching": "auto", "instances": None, "threads": None, "max_batch_size": 64}
        | asked,
    )
    assert plan.batching == batching
    assert plan.instances == (instances or cores)
    assert plan.instances * plan.threads <= cores


def timed(bundle: Path, **seconds: tuple[float, str]) -> Bundle:
    """The bundle with those latencies (ms) and the device each was measured on, and no other variants."""
    loaded = load_bundle(bundle)
    variants = {
        precision: Variant(
            precision=precision,
            path=bundle / precision / "model.onnx",
            figures=variant_figures(latency_ms=latency, speed_device=device, throughput={"1": 1.0, "16": 9.0}),
        )
        for precision, (latency, device) in seconds.items()
    }
    return replace(loaded, variants=variants)


def plan_of(bundle: Bundle, **asked: object) -> Plan:
    free = {"precision": "auto", "device": "cpu", "batching": "auto", "instances": None, "threads": None, "max_batch_size": 64}
    return make_plan(bundle, **free | asked)


def test_plan_takes_the_fastest_on_a_cpu_and_fp16_on_a_gpu(bundle: Path) -> None:
    loaded = timed(bundle, fp32=(3.0, "cpu"), fp16=(2.0, "cpu"), int8=(2.5, "cpu"))
    cpu = plan_of(loaded)
    assert cpu.precision == "fp16"
    assert cpu.reasons["precision"] == "fp16: the fastest that passed its gates (fp32 3.00 ms, fp16 2.00 ms, int8 2.50 ms)"
    gpu = plan_of(loaded, device="gpu")
    assert (gpu.precision, gpu.batching, gpu.instances) == ("fp16", "ragged", 1)
    assert set(gpu.reasons) >= {"precision", "batching"}


def test_figures_of_a_gpu_decide_nothing_on_a_cpu(bundle: Path) -> None:
    loaded = timed(bundle, fp32=(0.3, "gpu"), fp16=(0.1, "gpu"), int8=(4.0, "cpu"))
    plan = plan_of(loaded)
    assert (plan.precision, plan.batching) == ("int8", "off")
    assert plan.reasons["precision"].startswith("int8: speeds were not compared, because fp32 and fp16 were not timed on a CPU")
    plan = plan_of(timed(bundle, fp32=(0.3, "gpu"), fp16=(0.1, "gpu")))
    assert (plan.precision, plan.batching) == ("fp32", "off"), "batches were fast on the GPU only"
    assert plan.reasons["batching"].startswith("off: fp32 was not timed on a CPU")
    plan = plan_of(timed(bundle, fp32=(3.0, "cpu"), int8=(2.0, "gpu")))
    reason = plan.reasons["precision"]
    assert reason.startswith("int8: speeds were not compared, because int8 was not timed on a CPU")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_int8_is_batched_only_where_that_is_asked_for(bundle: Path, device: str) -> None:
    loaded = timed(bundle, fp32=(3.0, "cpu"), int8=(2.0, "cpu"))
    plan = plan_of(loaded, precision="int8", device=device)
    assert plan.batching == "off"
    assert plan.reasons["batching"].startswith("off: dynamic int8 scales span the whole batch")
    plan = plan_of(loaded, precision="int8", device=device, batching="ragged")
    assert plan.batching == "ragged"
    assert plan.reasons["batching"].startswith("ragged, as asked: dynamic int8 scales")
    assert "depend on the other requests" in plan.reasons["batching"]
    assert "batching" not in plan_of(loaded, precision="fp32", device=device, batching="ragged").reasons


def test_int8_with_a_scale_per_row_is_batched_where_that_measured_faster(bundle: Path) -> None:
    loaded = timed(bundle, fp32=(3.0, "cpu"), int8=(2.0, "cpu"), int8_rowwise=(2.1, "cpu"))
    assert (
        plan_of(loaded).reasons["precision"]
        == "int8: the fastest that passed its gates (fp32 3.00 ms, int8 2.00 ms, int8_rowwise 2.10 ms)"
    )
    plan = plan_of(loaded, precision="int8_rowwise")
    assert (plan.precision, plan.batching, plan.instances) == ("int8_rowwise", "ragged", 1)
    assert plan.reasons["batching"] == "ragged: export measured 1 rows/s one by one and 9 rows/s in batches of 16"
    measured = replace(
        loaded.variants["int8_rowwise"], figures=variant_figures(throughput={"1": 1.0, "16": 9.0}, max_batch_difference=0.0)
    )
    plan = plan_of(replace(loaded, variants={"int8_rowwise": measured}))
    assert plan.reasons["batching"].endswith("; the other rows of a batch changed a logit by up to 0 in the export")
    slower = replace(measured, figures=variant_figures(throughput={"1": 9.0, "16": 1.0}))
    assert plan_of(replace(loaded, variants={"int8_rowwise": slower})).batching == "off"
    assert plan_of(timed(bundle, fp32=(3.0, "gpu"), int8_rowwise=(2.0, "cpu"))).precision == "int8_rowwise"


def test_threads_have_no_effect_on_a_gpu_and_that_is_said(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    plan = plan_of(loaded, precision="fp32", device="gpu", threads=4)
    assert plan.threads == 1
    assert plan.reasons["threads"].startswith("4 has no effect on a GPU")
    assert "threads" not in plan_of(loaded, precision="fp32", device="gpu").reasons


def test_a_gpu_gets_more_processes_that_tokenize(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_bundle(bundle)
    for available, expected in {1: (1, 1), 4: (1, 1), 8: (2, 1), 16: (5, 2), 64: (6, 3)}.items():
        monkeypatch.setattr("serving.plan.cores", lambda available=available: available)
        plan = plan_of(loaded, device="gpu")
        assert (plan.preprocess_instances, plan.postprocess_instances) == expected
        on_cpu = plan_of(loaded, precision="fp32", batching="off")
        assert (on_cpu.preprocess_instances, on_cpu.postprocess_instances) == (1, 1)
    given = plan_of(loaded, device="gpu", preprocess_instances=5)
    assert (given.preprocess_instances, given.postprocess_instances) == (5, 2)
    assert plan_of(loaded, device="gpu", postprocess_instances=4).postprocess_instances == 4


def test_the_fused_layout_is_for_a_cpu_without_batching(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    auto = plan_of(loaded, precision="int8")
    assert auto.layout == "ensemble"
    assert auto.reasons["layout"].startswith("ensemble: with --layout fused, ")
    assert "layout" not in plan_of(loaded, precision="fp32", batching="ragged").reasons
    assert "layout" not in plan_of(loaded, precision="int8", layout="ensemble").reasons
    fused = plan_of(loaded, precision="int8", layout="fused")
    assert (fused.layout, fused.preprocess_instances, fused.postprocess_instances) == ("fused", 1, 1)
    with pytest.raises(ArtifactError, match="cannot be used with batching"):
        plan_of(loaded, precision="fp32", batching="ragged", layout="fused")
    with pytest.raises(ArtifactError, match="cannot be used on a GPU"):
        plan_of(loaded, precision="fp32", batching="off", layout="fused", device="gpu")
