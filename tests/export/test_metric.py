"""Figures of the metrics, and intervals of figures and of differences."""

from __future__ import annotations

import numpy as np
import pytest

from export import metric


def test_metric_module_is_local_and_right() -> None:
    figures = metric.compute("classification", [0, 0, 1, 2], [0, 1, 1, 2])
    assert figures == {
        "accuracy": pytest.approx(0.75),
        "f1_macro": pytest.approx((2 / 3 + 2 / 3 + 1) / 3),
        "f1_weighted": pytest.approx((2 / 3 + 2 * 2 / 3 + 1) / 4),
        "precision_macro": pytest.approx((1 / 2 + 1 + 1) / 3),
        "recall_macro": pytest.approx((1 + 1 / 2 + 1) / 3),
        "matthews_correlation": pytest.approx(0.7),
    }
    figures = metric.compute("classification", [0, 1, 1, 1], [0, 0, 1, 1])
    assert (figures["accuracy"], figures["f1_positive"]) == (0.75, pytest.approx(4 / 5))
    assert figures["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metric.compute("classification", [1, 1, 1], [1, 1, 0])["matthews_correlation"] == 0
    only = metric.compute("classification", [1, 1], [1, 1])
    assert (only["matthews_correlation"], only["f1_macro"], only["f1_positive"]) == (0, 1, 1), "one label that is always right"


def test_averages_are_those_of_sklearn() -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

    predictions, references = [0, 2, 1, 1, 0, 3, 2, 2, -1], [0, 1, 1, 1, 2, 2, 2, 0, 0]
    found = metric.compute("classification", predictions, references)
    both = {"y_true": references, "y_pred": predictions, "zero_division": 0}
    for name, value in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[f"{name}_macro"] == pytest.approx(value(**both, average="macro"))
    assert found["f1_weighted"] == pytest.approx(f1_score(**both, average="weighted"))
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(references, predictions))
    assert found["accuracy"] == pytest.approx(f1_score(**both, average="micro"))


def test_the_squared_error_is_negative() -> None:
    rows = [1.0, 2.0, 4.0], [1.0, 4.0, 4.0]
    found = metric.compute("regression", *rows)
    assert found["negative_mse"] == pytest.approx(-4 / 3)
    assert {name: found[name] for name in ("pearson", "spearman")} == metric.compute("correlation", *rows)
    value, low, high = metric.bootstrapped("regression", "negative_mse", *rows)
    assert low <= value <= high <= 0


def test_multi_label_figures_are_those_of_sklearn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    predictions, references = [[0, 2], [], [1], [0], [2]], [[0], [], [1, 2], [1], [2]]
    marks = [[[int(label in row) for label in range(3)] for row in rows] for rows in (references, predictions)]
    found = metric.compute("multi_label", predictions, references)
    assert found == {
        "f1_micro": pytest.approx(2 * 3 / (5 + 5)),
        "f1_macro": pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3),
        "exact": pytest.approx(2 / 5),
    }
    assert found["f1_micro"] == pytest.approx(f1_score(*marks, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(*marks, average="macro"))
    assert found["exact"] == pytest.approx(accuracy_score(*marks))


def test_multi_label_figures_at_the_ends() -> None:
    def figures(predictions: list[list[int]], references: list[list[int]]) -> list[float]:
        found = metric.compute("multi_label", predictions, references)
        return [found[name] for name in ("f1_micro", "f1_macro", "exact")]

    assert figures([[0], [5]], [[0], [5]]) == [1, 1, 1], "labels that never occur"
    assert figures([[0], [0]], [[1], [1]]) == [0, 0, 0]
    assert figures([[], []], [[], []]) == [0, 0, 1], "nothing to find"


def test_correlations_are_those_of_scipy() -> None:
    from scipy.stats import pearsonr, spearmanr

    predictions, references = [0.1, 2.0, 2.0, 3.5, -1.0, 9.0], [0.0, 1.0, 3.0, 3.0, 2.0, 5.0]
    found = metric.compute("correlation", predictions, references)
    assert found == {
        "pearson": pytest.approx(pearsonr(predictions, references).statistic),
        "spearman": pytest.approx(spearmanr(predictions, references).statistic),
    }
    assert found["pearson"] != pytest.approx(found["spearman"], abs=0.01), "told apart by these rows"
    assert metric.compute("correlation", [1, 2, 40], [1, 2, 3])["spearman"] == pytest.approx(1)
    assert metric.compute("correlation", [1, 2, 3], [3, 2, 1]) == {"pearson": pytest.approx(-1), "spearman": pytest.approx(-1)}
    assert metric.compute("correlation", [0.5, 0.5], [1.0, 2.0]) == {"pearson": 0, "spearman": 0}, "all the same follows nothing"


def test_share_interval_is_exact() -> None:
    low, high = metric.share_interval(970, 1000)
    assert (low, high) == (pytest.approx(0.95750, abs=1e-4), pytest.approx(0.97970, abs=1e-4))
    assert metric.share_interval(1000, 1000)[1] == 1
    assert metric.share_interval(999, 1000)[1] < 1


def test_paired_interval_covers_the_true_drop() -> None:
    """Simulated 400 times: the 95 % interval misses the truth about as rarely as it says."""
    draw = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        kind = draw.choice(4, size=300, p=[0.8, 0.06, 0.02, 0.12])  # both right, only the original, only the variant, both wrong
        drop, (low, high) = metric.paired_drop(np.isin(kind, (0, 1)), np.isin(kind, (0, 2)))
        assert low <= drop <= high
        missed += not low <= 0.04 <= high
    assert missed <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def drawn_multi_label(draw: np.random.Generator, rows: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """References, and two predictions of them: the first is wrong about 5 % of all decisions, the second about 15 %."""
    wanted = draw.random((rows, 4)) < 0.4
    sides = [wanted ^ (draw.random((rows, 4)) < share) for share in (0, 0.05, 0.15)]
    references, original, variant = ([np.flatnonzero(row).tolist() for row in side] for side in sides)
    return references, original, variant


@pytest.mark.slow
@pytest.mark.long
def test_bootstrapped_interval_covers_the_true_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a figure that is no share of rows: the truth is that of very many rows, the interval is of 200."""
    module = metric.load_metric("multi_label")
    monkeypatch.setattr(metric, "load_metric", lambda _: module)
    draw = np.random.default_rng(0)
    references, original, variant = drawn_multi_label(draw, 100_000)
    truth = module.compute(predictions=original, references=references)["f1_micro"]
    truth -= module.compute(predictions=variant, references=references)["f1_micro"]
    assert truth > 0.08
    missed = 0
    for _ in range(40):
        references, original, variant = drawn_multi_label(draw, 200)
        drop, (low, high) = metric.bootstrapped_drop("multi_label", "f1_micro", original, variant, references)
        assert low < drop < high
        assert high - low < 0.1, "not so wide that it would hold anything"
        missed += not low <= truth <= high
    assert missed <= 40 * 0.05 + 3 * (40 * 0.05 * 0.95) ** 0.5


def test_bootstrapped_drop_is_the_figures_difference_and_the_same_every_time() -> None:
    references = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    better, worse = [1.0, 2.0, 3.0, 4.0, 6.0, 5.0], [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]
    figures = [metric.compute("correlation", predictions, references)["spearman"] for predictions in (better, worse)]
    found = metric.bootstrapped_drop("correlation", "spearman", better, worse, references)
    assert found[0] == pytest.approx(figures[0] - figures[1])
    assert found[0] > 0, "worse is a drop"
    assert metric.bootstrapped_drop("correlation", "spearman", better, worse, references) == found
    assert metric.bootstrapped_drop("correlation", "spearman", worse, better, references)[0] == pytest.approx(-found[0])


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_equal_predictions_have_no_bootstrapped_drop_but_prove_only_so_much(rows: int) -> None:
    predictions = [[index % 3] for index in range(rows)]
    drop, (low, high) = metric.bootstrapped_drop("multi_label", "f1_micro", predictions, predictions, [[0]] * rows)
    most = 1 - 0.025 ** (1 / rows)
    assert (drop, low, high) == (0.0, pytest.approx(-most), pytest.approx(most))
