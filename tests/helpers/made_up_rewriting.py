"""A report about an encoder-decoder, made up: answers of 64 tokens that come whole, by four beams."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from benchmarks.measurements import Arrangement, Estimate, Load, Quality
from benchmarks.report import Report
from tests.helpers.made_up_generation import generation_report

WAITS = ("ttft_p50_ms", "ttft_p99_ms", "itl_mean_ms", "itl_p50_ms", "itl_p99_ms")
Measured = TypeVar("Measured", Arrangement, Load)


def _whole(one: Measured) -> Measured:
    assert one.tokens is not None
    return replace(one, tokens=replace(one.tokens, **dict.fromkeys(WAITS)))


def _judged(quality: Quality, drop: float | None) -> Quality:
    lost = None if drop is None else Estimate(value=drop, low=drop - 0.01, high=drop + 0.01)
    main = Estimate(value=0.4 - (drop or 0), low=0.38, high=0.42)
    changed = [replace(one, reference=["Der Mond", "Ein Mond"]) for one in quality.changed_answers]
    metrics = {"bleu": 0.2, "chrf": main.value}
    known = {"perplexity": None, "perplexity_increase": None}
    return replace(quality, metrics=metrics, main=main, drop=lost, changed_answers=changed, **known)


def rewriting_report() -> Report:
    """The report."""
    whole = generation_report()
    models = [
        replace(
            model,
            arrangements={name: _whole(one) for name, one in model.arrangements.items()},
            quality=_judged(model.quality, None if model.kind == "pytorch" else 0.03),
        )
        for model in whole.in_process
    ]
    assert whole.served is not None
    served = replace(whole.served, loads=[_whole(load) for load in whole.served.loads], quality=_judged(whole.served.quality, 0.03))
    return replace(
        whole,
        name="captions",
        task="translation",
        main_metric="chrf",
        settings=replace(whole.settings, num_beams=4),
        in_process=models,
        served=served,
        rounds=[{name: value for name, value in one.items() if not name.endswith(WAITS)} for one in whole.rounds],
        remarks=["ctranslate2 is left out: it is not installed in this environment"],
        samples={name: {key: value for key, value in one.items() if key != "token_us"} for name, one in whole.samples.items()},  # type: ignore[misc]
    )
