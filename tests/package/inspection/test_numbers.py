"""Intervals, areas, thresholds, costs and distances of an inspection, against scipy, plain loops and sums by hand."""

from math import inf, isclose, sqrt

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from multilevel.inspection import curves
from multilevel.inspection.distance import measure_distances
from multilevel.inspection.results import (
    area_under_precision_recall,
    area_under_roc,
    check_claim,
    count_confusions,
    defects_needed,
    one_sided_lower_bound,
    score_classes,
)
from multilevel.recipes.export.operating_point import candidates, choose_threshold, defect_probability
from multilevel.reports.costs import CostSettings, Way, cost_row, cost_table, count_parts
from multilevel.reports.proportions import Proportion, Rate
from multilevel.solvers import DataError, SettingError


@pytest.mark.parametrize(("count", "total"), [(0, 5), (5, 5), (45, 78), (1, 1), (3, 190), (999, 1000)])
def test_intervals_are_those_of_scipy(count, total):
    expected = binomtest(count, total).proportion_ci(0.95, method="exact")
    proportion = Proportion.of(count, total)
    assert (proportion.low, proportion.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    bound = binomtest(count, total, alternative="greater").proportion_ci(0.95, method="exact").low
    assert one_sided_lower_bound(count, total) == pytest.approx(bound, abs=1e-9)


def test_without_images_nothing_is_known():
    nothing = Proportion.of(0, 0)
    assert (nothing.share, nothing.low, nothing.high, nothing.rate) == (None, 0.0, 1.0, None)


@pytest.mark.parametrize(("recall", "misses"), [(0.99, 0), (0.99, 2), (0.9, 0), (0.5, 1), (0.01, 0), (0.95, 7)])
def test_the_number_of_defects_is_the_first_that_supports_the_claim(recall, misses):
    def supports(total):
        test = binomtest(total - misses, total, alternative="greater")
        return test.proportion_ci(0.95, method="exact").low >= recall

    expected = next(total for total in range(misses + 1, 2000) if supports(total))
    assert defects_needed(recall, misses) == expected


def test_a_claim_is_supported_open_contradicted_or_unknown():
    verdicts = [check_claim(*counts, 0.9).verdict for counts in [(29, 29), (28, 28), (20, 29), (0, 0)]]
    assert verdicts == ["supported", "open", "contradicted", "unknown"]


def delong_by_loops(defects, good):
    """The structural components of DeLong et al. (1988), equations 4 and 5, pair by pair."""
    psi = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in good] for x in defects]
    rows = [sum(row) / len(good) for row in psi]
    columns = [sum(row[j] for row in psi) / len(defects) for j in range(len(good))]
    area = sum(rows) / len(rows)
    spread = [sum((v - area) ** 2 for v in values) / (len(values) - 1) / len(values) for values in (rows, columns)]
    return area, sum(spread)


def test_the_area_under_the_roc_curve_and_its_interval():
    random = np.random.default_rng(0)
    scores, defect = random.normal(size=60).round(1), random.random(60) < 0.4  # rounded, so with ties
    scores[defect] += 0.5
    area, variance = delong_by_loops(scores[defect], scores[~defect])
    rate = area_under_roc(scores, defect)
    assert rate.value == pytest.approx(area, abs=1e-12) == pytest.approx(roc_auc_score(defect, scores), abs=1e-12)
    half = 1.959964 * sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + (1 - area) / area * np.exp(-shift)) for shift in (-half, half))
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("defects", [1, 4])
def test_perfect_separation_leaves_an_interval(defects):
    scores = np.array([0.0] * 6 + [1.0] * defects)
    rate = area_under_roc(scores, scores > 0.5)
    assert (rate.value, rate.high) == (1.0, 1.0)
    mean = (defects + 6) / 2 - 1  # the smallest area within 1.96 standard errors of 1, on a grid

    def error(area):
        inner = 1 + mean * (1 - area) / (2 - area) + mean * area / (1 + area)
        return sqrt(area * (1 - area) * inner / (defects * 6))

    grid = np.arange(1e-5, 1, 1e-5)
    assert rate.low == pytest.approx(next(area for area in grid if 1 - area <= 1.959964 * error(area)), abs=2e-5)
    flipped = area_under_roc(-scores, scores > 0.5)
    assert (flipped.low, flipped.value, flipped.high) == pytest.approx((0, 0, 1 - rate.low), abs=1e-9)


def test_permuted_labels_have_an_area_of_one_half():
    random = np.random.default_rng(0)
    scores, defect = random.random(400), np.arange(400) < 80
    areas = [area_under_roc(scores, random.permutation(defect)) for _ in range(200)]
    assert abs(np.mean([area.value for area in areas]) - 0.5) < 0.01  # standard error 0.0026
    covered = sum(area.low <= 0.5 <= area.high for area in areas)
    assert 180 <= covered <= 199  # of 200; 190 +- 3.1


def test_one_kind_of_image_has_no_area():
    for defect in (np.zeros(5, bool), np.ones(5, bool)):
        assert area_under_roc(np.arange(5.0), defect) is None
        assert area_under_precision_recall(np.arange(5.0), defect) is None


def test_the_average_precision_is_that_of_scikit_learn_and_of_the_drawn_curve():
    random = np.random.default_rng(0)
    defect = random.random(80) < 0.3
    scores = (random.normal(size=80) + defect).round(1)
    rate = area_under_precision_recall(scores, defect)
    assert rate.value == average_precision_score(defect, scores)
    random = np.random.default_rng(5)  # the interval by scikit-learn, with other draws
    kinds, truth = (scores[defect], scores[~defect]), np.sort(defect)[::-1]
    drawn = [
        average_precision_score(truth, np.concatenate([random.choice(kind, len(kind)) for kind in kinds]))
        for _ in range(1000)
    ]
    assert (rate.low, rate.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03)
    curve = curves.precision_recall("", scores, defect)
    area = -float(np.sum(np.diff(curve.x) * (curve.y[1:] + curve.y[:-1]) / 2))
    assert area == pytest.approx(rate.value, abs=1e-12)
    _, recall, _ = precision_recall_curve(defect, scores)
    assert set(curve.x) <= set(recall)


def test_confusions_and_classes():
    truth, predicted = ["a", "a", "b", "c", "c"], ["a", "b", "b", "a", "b"]
    counts = count_confusions(truth, predicted, ["a", "b", "c"], ["b", "a", "d"])  # c is unknown, d never seen
    assert counts.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0]]
    scores = {score.name: score for score in score_classes(counts, ["a", "b", "c"], ["b", "a", "d"])}
    assert (scores["a"].recall, scores["a"].precision) == (Proportion.of(1, 2), Proportion.of(1, 2))
    assert (scores["b"].recall, scores["b"].precision) == (Proportion.of(1, 1), Proportion.of(1, 3))
    assert scores["d"].recall.total == scores["d"].precision.total == 0


def best_by_trying(scores, defect, rule, limit):
    """The errors of the best threshold among all that matter: every score, and one above all."""
    outcomes = []
    for cut in [*scores, scores.max() + 1]:
        recall = sum(score >= cut for score in scores[defect]) / max(defect.sum(), 1)
        alarms = sum(score >= cut for score in scores[~defect]) / max((~defect).sum(), 1)
        if (recall >= limit) if rule == "recall" else (alarms <= limit):
            outcomes.append((recall, alarms))
    return min(outcomes) if rule == "recall" else max(outcomes)


@pytest.mark.parametrize("rule", ["false_alarms", "recall"])
@pytest.mark.parametrize("limit", [0.0, 0.02, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("digits", [1, 8])  # with ties, and without
def test_no_threshold_does_better(rule, limit, digits):
    random = np.random.default_rng(1)
    for count in (2, 7, 100):
        scores, defect = random.random(count).round(digits), np.arange(count) < max(1, count // 4)
        cut = choose_threshold(scores, defect, rule, limit)
        errors = (scores[defect] >= cut).mean(), (scores[~defect] >= cut).mean()
        assert errors == pytest.approx(best_by_trying(scores, defect, rule, limit), abs=1e-12)


def test_where_all_scores_are_equal_nothing_or_everything_is_stopped():
    scores, defect = np.full(10, 0.3), np.arange(10) < 3
    assert choose_threshold(scores, defect, "false_alarms", 0.5) > 0.3
    assert choose_threshold(scores, defect, "recall", 0.1) == 0.3


def test_neighbouring_floats_stay_apart():
    low = 0.1
    high = np.nextafter(low, 1)
    assert candidates(np.array([low, high])).tolist() == [low, high, np.nextafter(high, 1)]


def test_a_rule_needs_images_of_its_kind():
    scores = np.array([0.1, 0.2])
    with pytest.raises(DataError, match="threshold=recall needs defects"):
        choose_threshold(scores, np.zeros(2, bool), "recall", 0.9)
    with pytest.raises(DataError, match="threshold=false_alarms needs good images"):
        choose_threshold(scores, np.ones(2, bool), "false_alarms", 0.1)
    assert choose_threshold(scores, np.zeros(2, bool), "false_alarms", 0.5) == pytest.approx(0.15)


#: 1% of 1,000 parts are defects: 10. Recall 0.8 (0.7 to 0.9) misses 2 (1 to 3); 3% (2% to 4%) of 990 good parts are
#: 29.7 (19.8 to 39.6). A miss costs 100, a false alarm 5; ten hours at 3 and 400 labels at 0.5 cost 230.
WAY = Way("model", Rate(0.8, 0.7, 0.9), Rate(0.03, 0.02, 0.04), machine_hours=10, labels=400)
COSTS = CostSettings(miss=100, false_alarm=5, machine_hour=3, label=0.5)


def test_costs_are_those_computed_by_hand():
    counts = count_parts(WAY, 0.01)
    assert counts.defects == 10
    assert tuple(counts.missed) == (2, 1, 3)
    assert tuple(counts.detected) == (8, 7, 9)
    assert tuple(counts.false_alarms) == pytest.approx((29.7, 19.8, 39.6))
    row = cost_row(WAY, COSTS, 0.01, parts_per_day=500)
    assert tuple(row.inspected) == pytest.approx((200 + 148.5, 100 + 99, 300 + 198))
    assert (row.uninspected, row.rejected, row.training) == (1000, 4950, 230)
    assert tuple(row.saving) == pytest.approx((651.5, 502, 801))
    assert row.saving_over_trivial == row.saving
    # a day's 500 parts save 325.75 (251 to 400.5)
    assert tuple(row.days) == pytest.approx((230 / 325.75, 230 / 400.5, 230 / 251))


def test_rejecting_everything_is_the_better_trivial_policy_where_defects_are_frequent():
    row = cost_row(WAY, COSTS, 0.5)
    assert (row.uninspected, row.rejected) == (50_000, 2_500)
    assert row.inspected.value == pytest.approx(500 * 0.2 * 100 + 500 * 0.03 * 5)
    assert row.saving_over_trivial.value == pytest.approx(2_500 - 10_075)
    assert row.days is None


def test_what_saves_nothing_never_pays_for_its_training():
    row = cost_row(WAY, CostSettings(miss=1, false_alarm=5, machine_hour=3), 0.01, parts_per_day=500)
    assert tuple(row.days) == (inf, inf, inf)
    rows = cost_table([WAY, Way("better", Rate(0.9, 0.8, 1.0), Rate(0, 0, 0.01))], COSTS, 0.01, parts_per_day=500)
    assert [row.name for row in rows] == ["better", "model"]
    assert tuple(rows[0].days) == (0, 0, 0)


def test_one_cost_asks_for_the_other():
    with pytest.raises(SettingError, match=r"cost\.false_alarm: got None"):
        _ = CostSettings(miss=1).known
    assert not CostSettings().known
    assert COSTS.known


def test_distances_are_those_of_plain_loops():
    random = np.random.default_rng(0)
    reference, features = random.normal(size=(30, 4)), random.normal(size=(9, 4))
    features[0] = reference[3]
    distances = measure_distances(reference, features)

    def nearest(point, points):
        return sum(sorted(sqrt(sum((point - other) ** 2)) for other in points)[:5]) / 5

    expected = [nearest(point, reference) for point in features]
    assert distances.values == pytest.approx(expected, abs=1e-12)
    apart = [nearest(point, np.delete(reference, row, axis=0)) for row, point in enumerate(reference)]
    assert distances.of_reference == pytest.approx(apart, abs=1e-12)
    assert distances.repeated.tolist() == [True] + [False] * 8
    with pytest.raises(DataError, match="too few"):
        measure_distances(reference[:6], features)
    with pytest.raises(DataError, match="not finite"):
        measure_distances(reference, features * np.nan)


def test_the_probability_of_a_defect_does_not_round_to_nothing():
    probabilities = np.array([[1.0, 1e-20, 2e-20], [1.0, 3e-20, 2e-20]])
    first, second = defect_probability(probabilities, 0)
    assert isclose(first, 3e-20)
    assert first < second
