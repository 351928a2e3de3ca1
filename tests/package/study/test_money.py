"""A study in money: counts, costs and intervals against sums by hand and scipy."""

import json
from math import sqrt

import pytest
from scipy.stats import binomtest

from multilevel.reports.costs import CostSettings, MoneySettings
from multilevel.study.inspection import FILE
from multilevel.study.plan import Arm, Study
from multilevel.study.report import write_report
from multilevel.study.results import collect

PLAN = {
    "arguments": [], "settings": [], "labels": [1.0], "transfer": [], "transfer_name": "", "equal": "updates",
    "protocol": "linear_probe", "split": "test", "minimum_effect": 0.01, "threads": 1, "jobs": 1, "launcher": [],
    "data": "parts", "version": 2, "metric": "accuracy", "training_labels": 80, "good": "good",
}  # fmt: skip
#: Defects found of 10 and good images stopped of 50, at the threshold, of seeds 0 and 1.
COUNTS = {"random": [(8, 1), (6, 2)], "sampled": [(9, 0), (9, 1)], "raw pixels": [(5, 0), (5, 0)]}
COSTS = CostSettings(miss=100, false_alarm=5, machine_hour=3, label=0.5)
MONEY = MoneySettings(cost=COSTS, parts_per_day=500, defect_rate=0.01)


def stored(detected, stopped):
    """Scores of an encoder: at most 2% of the good held-out images are above 0.495."""
    held_out = [number / 100 for number in range(1, 51)]
    return {
        "images": 60,
        "held_out": {"score": [*held_out, *[0.9] * 10], "defect": [False] * 50 + [True] * 10},
        "scored": {
            "score": [0.9] * detected + [0.494] * (10 - detected) + [0.6] * stopped + [0.1] * (50 - stopped),
            "defect": [True] * 10 + [False] * 50,
        },
    }


def study(folder, money=MONEY, **changes):
    arms = [Arm(name, name, None, name != "random", float(name != "random"), 2, 10) for name in ("random", "sampled")]
    plan = Study(arms=arms, seeds=[0, 1], money=money, **{**PLAN, **changes})
    for arm in arms:
        for seed in (0, 1):
            run = folder / "runs" / f"{arm.name}-seed{seed}"
            run.mkdir(parents=True)
            row = {
                "encoder": "trained encoder",
                "protocol": "linear_probe",
                "labels": 1.0,
                "metrics": {"accuracy": 0.8},
            }
            summary = {
                "evaluation": [row], "evaluation_problem": None, "scored_images": {"good": 50, "dent": 10},
                "levels": {}, "device": "cpu", "seconds": 7200.0 + 1800 * seed, "peak_memory_mib": 100.0,
            }  # fmt: skip
            (run / "summary.json").write_text(json.dumps(summary))
            scores = {"trained encoder": stored(*COUNTS[arm.name][seed])}
            if arm.name == "random":
                scores["raw pixels"] = stored(*COUNTS["raw pixels"][seed])
            (run / FILE).write_text(json.dumps(scores))
    return collect(plan, folder)


def test_counts_and_costs_are_those_computed_by_hand(tmp_path):
    result = study(tmp_path)
    assert {error["threshold"] for error in result["inspection"]} == {0.495}
    money = result["money"]
    ways = {way["way"]["name"]: way for way in money["ways"]}
    assert list(ways) == ["sampled", "random", "raw pixels"]  # the largest saving first
    # random: recall 0.7, false alarms 0.03: 10 x 0.3 x 100 + 990 x 0.03 x 5 = 448.5 per thousand parts, of 1000 without
    assert ways["random"]["costs"]["inspected"]["value"] == pytest.approx(448.5)
    assert ways["random"]["costs"]["saving"]["value"] == pytest.approx(551.5)
    # 2.25 hours at 3 and 60 labels at 0.5; masks that the task guides take all 80 labels
    assert ways["random"]["costs"]["training"] == pytest.approx(6.75 + 30)
    assert ways["sampled"]["costs"]["training"] == pytest.approx(6.75 + 40)
    assert ways["raw pixels"]["costs"]["training"] == pytest.approx(30)
    # sampled: recall 0.9, false alarms 0.01: 100 + 49.5; 850.5 saved on a thousand parts are 425.25 a day
    assert ways["sampled"]["costs"]["saving"]["value"] == pytest.approx(850.5)
    assert ways["sampled"]["costs"]["days"]["value"] == pytest.approx(46.75 / 425.25)
    assert ways["raw pixels"]["counts"]["missed"]["value"] == pytest.approx(5)
    assert ways["random"]["counts"]["false_alarms"]["value"] == pytest.approx(29.7)


def test_intervals_cover_the_images_and_the_seeds(tmp_path):
    ways = {way["way"]["name"]: way for way in study(tmp_path)["money"]["ways"]}
    of_seeds = [binomtest(count, 10).proportion_ci(0.95, method="exact") for count in (6, 8)]
    recall = ways["random"]["way"]["recall"]
    assert (recall["low"], recall["high"]) == pytest.approx((of_seeds[0].low, of_seeds[1].high), abs=1e-9)
    stopped = binomtest(2, 50).proportion_ci(0.95, method="exact").high
    worst = 10 * (1 - of_seeds[0].low) * 100 + 990 * stopped * 5
    assert ways["random"]["costs"]["saving"]["low"] == pytest.approx(1000 - worst)


def test_the_arm_is_compared_with_the_baseline_in_pairs(tmp_path):
    extra = study(tmp_path)["money"]["extra"]
    # random costs 200 + 99 and 400 + 198, sampled 100 + 0 and 100 + 99
    assert extra["saving"] == pytest.approx((199 + 399) / 2)
    half = 12.706204736 * sqrt((100**2 + 100**2) / 1) / sqrt(2)  # t of one degree of freedom
    assert extra["interval"] == pytest.approx([299 - half, 299 + half])
    assert extra["training"] == pytest.approx(10)
    assert extra["days"] == pytest.approx(10 / (0.299 * 500))


def test_the_report_has_the_formulas_with_their_numbers(tmp_path):
    write_report(study(tmp_path), tmp_path)
    report = (tmp_path / "report.html").read_text()
    assert "1000 × (0.01 × (1 − 0.7) × 100 + 0.99 × 0.03 × 5) = 448.50 EUR" in report
    assert "2.25 × 3 + 80 × 0.5 = 46.75 EUR" in report
    assert "46.75 EUR / (850.50 EUR / 1000 × 500) = 0.11" in report
    assert "sampled saves the most" in report
    assert "by +299.00 EUR" in report
    assert "the cost of training by +10.00 EUR. That pays for itself after 0.1 days." in report
    assert "raw pixels (not trained)" in report


def test_without_costs_there_are_counts_and_without_a_good_class_there_is_nothing(tmp_path):
    result = study(tmp_path / "counts", MoneySettings())
    assert result["money"]["defect_rate"] == pytest.approx(10 / 60)  # that of the scored images
    assert [way["costs"] for way in result["money"]["ways"]] == [None] * 3
    write_report(result, tmp_path / "counts")
    report = (tmp_path / "counts" / "report.html").read_text()
    assert "Per thousand parts" in report
    assert "With cost.miss and cost.false_alarm this section also gives money." in report
    result = study(tmp_path / "none", MoneySettings(), good=None)
    assert (result["money"], result["inspection"]) == (None, [])
    write_report(result, tmp_path / "none")
    assert "Per thousand parts" not in (tmp_path / "none" / "report.html").read_text()


def test_more_false_alarms_may_be_allowed(tmp_path):
    errors = study(tmp_path, MoneySettings(max_false_alarms=0.06))["inspection"]
    assert {error["threshold"] for error in errors} == {0.475}  # three of the fifty good images are above it
    assert [error["detected"] for error in errors if error["way"] == "random"] == [10, 10]
