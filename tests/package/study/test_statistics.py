"""Intervals, decisions and sample sizes of a study, against scipy, formulas written out, and simulation."""

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from multilevel.reports.texts import Texts
from multilevel.study.images import noise_at_chance, step
from multilevel.study.statistics import compare_pairs, decide, seeds_needed, summarize_seeds
from multilevel.study.verdict import cost_clause, opening, sentence, times, too_few_images

BASELINE = {0: 0.861, 1: 0.858, 2: 0.872, 3: 0.866, 4: 0.850}
GUIDED = {0: 0.880, 1: 0.871, 2: 0.885, 3: 0.889, 4: 0.861, 9: 0.1}  # nothing pairs with seed 9

ENGLISH = Texts("en")


def test_a_comparison_is_the_paired_t_test_of_scipy_and_of_the_textbook():
    found = compare_pairs(GUIDED, BASELINE, 0.01)
    seeds = sorted(BASELINE)
    reference = stats.ttest_rel([GUIDED[seed] for seed in seeds], [BASELINE[seed] for seed in seeds])
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-9)
    differences = np.array([GUIDED[seed] - BASELINE[seed] for seed in seeds])
    deviation = sqrt(((differences - differences.mean()) ** 2).sum() / 4)
    reach = 2.7764451 * deviation / sqrt(5)  # t(0.975, 4), from the table
    assert found.interval == pytest.approx((differences.mean() - reach, differences.mean() + reach), rel=1e-6)
    assert found.effect_size == pytest.approx(differences.mean() / deviation)
    assert list(found.differences) == seeds
    assert found.median == pytest.approx(np.median(differences))


def test_a_summary_is_mean_median_and_the_interval_of_students_t():
    values = [0.1, 0.2, 0.4, 0.7]
    found = summarize_seeds(values)
    reach = 3.1824463 * np.std(values, ddof=1) / 2  # t(0.975, 3)
    assert found.interval == pytest.approx((0.35 - reach, 0.35 + reach), rel=1e-6)
    assert (found.mean, found.median, found.seeds) == (pytest.approx(0.35), pytest.approx(0.3), 4)
    assert summarize_seeds([0.5]).interval is None
    assert summarize_seeds([0.5, 0.5]).interval is None


def test_intervals_cover_the_true_difference_19_times_in_20():
    random = np.random.default_rng(0)
    draws = 500
    covered = 0
    for values in random.normal(0.013, 0.02, (draws, 5)):
        low, high = summarize_seeds(values).interval
        covered += low < 0.013 < high
    assert covered / draws == pytest.approx(0.95, abs=3 * sqrt(0.95 * 0.05 / draws))


@pytest.mark.parametrize(("effect_size", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_the_published_tables(effect_size, pairs):
    assert seeds_needed(effect_size * 0.02, 0.02) == pairs  # G*Power 3.1, paired, two tails, 5%, power 0.8


def test_the_power_at_the_needed_number_is_what_simulation_finds():
    pairs = seeds_needed(0.01, 0.012)
    random = np.random.default_rng(1)
    for count, enough in ((pairs, True), (pairs - 2, False)):
        values = random.normal(0.01, 0.012, (40_000, count))
        statistic = values.mean(1) / (values.std(1, ddof=1) / sqrt(count))
        power = (statistic > stats.t.ppf(0.975, count - 1)).mean()
        assert (power > 0.795) == enough


@pytest.mark.parametrize(
    ("interval", "decision"),
    [
        ((0.002, 0.03), "pays"),
        ((0.0, 0.03), "not decided"),
        ((-0.02, 0.011), "not decided"),
        ((-0.02, 0.009), "does not pay"),
        ((-0.02, -0.01), "does not pay"),
        ((0.001, 0.009), "does not pay"),  # better, but surely by less than would be worth it
    ],
)
def test_decisions(interval, decision):
    assert decide(interval, 0.01) == decision


def test_an_undecided_comparison_always_asks_for_more():
    random = np.random.default_rng(2)
    undecided = 0
    for _ in range(60):
        values = dict(enumerate(random.normal(random.uniform(0.49, 0.52), 0.01, random.integers(2, 9))))
        found = compare_pairs(values, dict.fromkeys(values, 0.5), 0.01)
        assert (found.more_seeds is None) == (found.decision != "not decided")
        undecided += found.decision == "not decided"
        if found.more_seeds is not None:
            nearest = max(found.mean, 0.01 - found.mean)
            assert found.more_seeds == seeds_needed(nearest, found.deviation) - len(values) >= 1
    assert undecided > 10


def said(arm, baseline, cost="training took 1.70 times as long"):
    return sentence(
        compare_pairs(arm, baseline, 0.01), "sampled", "random", "linear probe accuracy", 0.01, cost, ENGLISH
    )


def test_verdicts_in_words():
    assert said(GUIDED, BASELINE) == (
        "sampled masks pay: linear probe accuracy is 1.6 points higher than with random masks "
        "(95% interval 1.0 to 2.2, 5 seeds); training took 1.70 times as long."
    )
    assert said(BASELINE, GUIDED) == (
        "sampled masks do not pay: linear probe accuracy is 1.6 points lower than with random masks "
        "(95% interval -2.2 to -1.0, 5 seeds), that is worse; training took 1.70 times as long."
    )
    little = {seed: value + 0.001 * (1 + seed % 2) for seed, value in BASELINE.items()}
    assert "masks do not pay" in said(little, BASELINE)
    assert "less than the 1.0 points that count as worthwhile" in said(little, BASELINE)
    spread = {seed: value + (0.03, -0.02)[seed % 2] for seed, value in BASELINE.items()}
    more = seeds_needed(0.01, np.std([0.03, -0.02, 0.03, -0.02, 0.03], ddof=1)) - 5
    assert said(spread, BASELINE).startswith("5 seeds cannot decide whether sampled masks pay: ")
    assert f"; about {more} more would be needed; training took" in said(spread, BASELINE)


def test_one_seed_and_no_spread_decide_nothing():
    one = compare_pairs({3: 0.9}, {3: 0.5}, 0.01)
    assert (one.decision, one.interval, one.more_seeds) == ("not decided", None, None)
    assert "1 seed cannot decide whether " in said({3: 0.9}, {3: 0.5})
    assert "interval" not in said({3: 0.9}, {3: 0.5})
    same = compare_pairs({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6}, 0.01)
    assert (same.decision, same.interval) == ("not decided", None)
    assert "all seeds gave exactly this difference" in said({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6})
    assert "accuracy is the same as with random masks; all seeds gave the same scores with both" in said(
        BASELINE, BASELINE
    )
    with pytest.raises(ValueError, match="no seed"):
        compare_pairs({0: 0.6}, {1: 0.5}, 0.01)


@pytest.mark.parametrize(
    ("arm", "baseline", "bound", "advice"),
    [
        ([0.001, 0.0, 0.004], [0.002, 0.003, 0.001], 0, "all runs are at chance (0.0%): train longer, or take other"),
        ([1.0, 0.993, 0.998], [0.996, 0.997, 0.998], 1, "points of 100.0: take fewer labels, or another metric"),
    ],
)
def test_scores_that_leave_no_room_decide_nothing(arm, baseline, bound, advice):
    arm, baseline = dict(enumerate(arm)), dict(enumerate(baseline))
    found = compare_pairs(arm, baseline, 0.01)
    assert (found.decision, found.bound, found.more_seeds) == ("not decided", bound, None)
    assert advice in said(arm, baseline)
    assert compare_pairs({**arm, 3: 0.5}, {**baseline, 3: 0.501}, 0.01).bound is None


def test_without_room_an_arm_can_still_be_better_or_worse():
    low, high = {0: 0.991, 1: 0.9915, 2: 0.9905}, {0: 0.9995, 1: 0.9995, 2: 0.9999}
    assert [compare_pairs(*pair, 0.01).bound for pair in ((low, high), (high, low))] == [1, 1]
    assert compare_pairs(low, high, 0.01).decision == "does not pay"
    assert compare_pairs(high, low, 0.01).decision == "pays"


def test_the_cost_says_what_was_equal():
    assert cost_clause("updates", "1.70", 1.0, ENGLISH) == "training took 1.70 times as long"
    assert "0.59 times as many pretraining updates" in cost_clause("time", "1.01", 0.588, ENGLISH)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.7043, 0.004, "1.70"), (1.7043, 0.02, "1.70"), (1.7043, 0.3, "1.7"), (1.7043, 4.0, "2"),
        (17.04, 0.5, "17.0"), (17.04, 2.0, "17"), (1.7043, 0.0, "1.70"), (1.7043, None, "1.7"), (123.4, None, "123"),
        (0.042, None, "0.04"),
    ],
)  # fmt: skip
def test_ratios_have_the_digits_that_their_spread_allows(value, error, text):
    assert times(value, error) == text


COUNTS = {"good": 152, "dent": 40, "scratch": 8}


def test_one_image_changes_a_score_by_its_share():
    """By recomputing each metric with one more image right."""
    assert step("accuracy", COUNTS) == pytest.approx(1 / 200)
    assert step("balanced_accuracy", COUNTS) == pytest.approx(1 / 8 / 3)
    assert step("macro_roc_auc", {"good": 20, "bad": 5}) == pytest.approx(1 / 5)
    assert step("macro_roc_auc", COUNTS) == pytest.approx(1 / 8 / 3)
    assert step("balanced_accuracy", {"good": 10, "dent": 0, "scratch": 5}) == pytest.approx(1 / 5 / 2)
    assert step("mean_iou", COUNTS) is None
    assert step("accuracy", {}) is None


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_roc_auc"])
def test_the_noise_at_chance_is_what_simulation_finds(metric):
    """200 images scored at random 2,000 times: 95% of the scores are within the noise, to three standard errors of that
    share. Of areas the noise is a bound, since those of several classes depend on each other."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), list(COUNTS.values()))
    draws, found = 2000, []
    chance = {"accuracy": 1 / 3, "balanced_accuracy": 1 / 3, "macro_roc_auc": 0.5}[metric]
    for _ in range(draws):
        scores = random.random((200, 3))
        if metric == "macro_roc_auc":
            ranks = [stats.rankdata(scores[:, kind])[labels == kind] for kind in range(3)]
            areas = [(rank.sum() - len(rank) * (len(rank) + 1) / 2) / (len(rank) * (200 - len(rank))) for rank in ranks]
            found.append(np.mean(areas))
        else:
            right = scores.argmax(1) == labels
            found.append(
                right.mean() if metric == "accuracy" else np.mean([right[labels == k].mean() for k in range(3)])
            )
    within = np.mean(np.abs(np.array(found) - chance) < noise_at_chance(metric, COUNTS, chance))
    if metric == "macro_roc_auc":
        assert within > 0.95
    else:
        assert within == pytest.approx(0.95, abs=0.02)  # steps of one image are coarse beside three standard errors
    assert noise_at_chance("mean_iou", COUNTS, 0.0) == noise_at_chance("accuracy", {}, 0.5) == 0


def reasoned(arm, baseline, chance=0.0, noise=0.0, too_few=""):
    comparison = compare_pairs(arm, baseline, 0.01, chance, noise)
    return comparison.decision, sentence(comparison, "sampled", "random", "accuracy", 0.01, "cost", ENGLISH, too_few)


def test_runs_at_chance_decide_nothing_and_the_reason_is_named():
    arm, baseline = {0: 0.170, 1: 0.175, 2: 0.180}, {0: 0.155, 1: 0.16, 2: 0.166}
    assert compare_pairs(arm, baseline, 0.01).decision == "pays"
    decision, text = reasoned(arm, baseline, chance=1 / 6, noise=0.05)
    assert decision == "not decided"
    assert "; all runs are at chance (16.7%, the majority class): train longer" in text
    # the same differences above chance are what they were
    higher = [{seed: value + 0.3 for seed, value in scores.items()} for scores in (arm, baseline)]
    assert reasoned(*higher, chance=1 / 6, noise=0.05)[0] == "pays"
    # within a worthwhile difference above chance, without any noise
    near = reasoned({0: 0.711, 1: 0.706}, {0: 0.710, 1: 0.71}, chance=0.71)
    assert near[0] == "not decided"
    assert "all runs are at chance (71.0%" in near[1]
    # below chance is no better
    assert "at chance" in reasoned({0: 0.65, 1: 0.61, 2: 0.66}, {0: 0.64, 1: 0.65, 2: 0.60}, chance=0.71)[1]


def test_too_few_images_are_the_reason_rather_than_too_few_seeds():
    spread = {seed: value + (0.03, -0.02)[seed % 2] for seed, value in BASELINE.items()}
    clause = too_few_images("balanced_accuracy", COUNTS, 0.01, "test", ENGLISH)
    assert clause == (
        "one of the 200 test images changes the score by 4.2 points, more than the 1.0 that count as worthwhile: it "
        "takes at least 34 images of each class"
    )
    assert clause in reasoned(spread, BASELINE, too_few=clause)[1]
    assert "more would be needed" not in reasoned(spread, BASELINE, too_few=clause)[1]
    assert clause in reasoned(BASELINE, BASELINE, too_few=clause)[1]  # one seed like all others
    assert clause not in reasoned(GUIDED, BASELINE, too_few=clause)[1]  # decided all the same
    assert too_few_images("accuracy", COUNTS, 0.01, "test", ENGLISH) == ""
    assert too_few_images("accuracy", {"a": 30, "b": 20}, 0.01, "validation", ENGLISH).endswith(
        "it takes at least 100 images"
    )


def test_the_opening_names_every_reference_that_no_arm_surpasses():
    references = {
        "untrained encoder": 0.90,
        "raw pixels": 0.975,
        "majority class": 0.1,
        "supervised from scratch": 0.95,
    }
    assert opening(("topk", 0.98), references, "accuracy", ENGLISH) == ""
    assert opening(("topk", 0.96), references, "accuracy", ENGLISH) == (
        "No encoder here is better than raw pixels (97.5%): accuracy is 96.0% at best, with topk masks."
    )
    assert opening(("topk", 0.90), references, "accuracy", ENGLISH).startswith(
        "No encoder here is better than an untrained encoder (90.0%), raw pixels (97.5%) or the same network "
        "supervised from scratch (95.0%): "
    )
