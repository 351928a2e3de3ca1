"""The verdict's sentence names the true reason, on made-up results of whole studies."""

import json

import pytest

from multilevel.study.plan import Arm, Study
from multilevel.study.report import write_report
from multilevel.study.results import collect

MANY = {"good": 4000, "dent": 4000}
REFERENCES = {"untrained encoder": 0.6, "raw pixels": 0.7, "majority class": 0.5}
SETTINGS = {
    "arguments": [], "settings": [], "labels": [1.0], "transfer": [], "transfer_name": "", "equal": "updates",
    "protocol": "linear_probe", "split": "test", "minimum_effect": 0.01, "threads": 1, "jobs": 1, "launcher": [],
    "data": "parts", "version": 2,
}  # fmt: skip


def row(encoder, value, metric, protocol="linear_probe", labels=1.0):
    return {"encoder": encoder, "protocol": protocol, "labels": labels, "metrics": {metric: value}}


def study(
    folder,
    scores,
    references=REFERENCES,
    supervised=None,
    counts=MANY,
    metric="accuracy",
    seconds=(10.0, 20.0),
    few=None,
):
    """The result of a study with these scores of every arm and seed, and those with a tenth of the labels."""
    arms = [Arm(name, name, None, name != "random", float(name != "random"), 2, 10) for name in scores]
    count = len(scores["random"])
    labels = [0.1, 1.0] if few else [1.0]
    plan = Study(arms=arms, seeds=list(range(count)), metric=metric, **{**SETTINGS, "labels": labels})
    for number, arm in enumerate(arms):
        for seed, value in enumerate(scores[arm.name]):
            rows = [row("trained encoder", few[arm.name][seed], metric, labels=0.1)] if few else []
            rows.append(row("trained encoder", value, metric))
            if number == 0:
                rows += [row(name, reference, metric) for name, reference in references.items()]
                rows += [row("supervised from scratch", supervised, metric, "supervised")] if supervised else []
            summary = {
                "evaluation": rows, "evaluation_problem": None, "scored_images": counts, "levels": {}, "device": "cpu",
                "seconds": seconds[number] + seed / 10, "peak_memory_mib": 100.0 + number,
            }  # fmt: skip
            run = folder / "runs" / f"{arm.name}-seed{seed}"
            run.mkdir(parents=True)
            (run / "summary.json").write_text(json.dumps(summary))
    return collect(plan, folder)


BOTH = "raw pixels (90.0%) or the same network supervised from scratch (95.0%)"
RANDOM, SAMPLED = [0.80, 0.81, 0.79], [0.84, 0.855, 0.83]


def test_an_encoder_better_than_all_references_is_judged_by_its_masks(tmp_path):
    sentence = study(tmp_path, {"random": RANDOM, "sampled": SAMPLED}, supervised=0.80)["verdict"]["sentence"]
    assert sentence.startswith("sampled masks pay: linear probe accuracy is 4.2 points higher than with random masks")


def test_the_verdict_is_at_the_largest_number_of_labels(tmp_path):
    few = {"random": [0.70, 0.71, 0.69], "sampled": [0.60, 0.61, 0.59]}
    result = study(tmp_path, {"random": RANDOM, "sampled": SAMPLED}, supervised=0.80, few=few)
    assert result["verdict"]["labels"] == result["question"]["labels"] == 1.0
    assert result["verdict"]["sentence"].startswith("sampled masks pay: linear probe accuracy is 4.2 points higher")
    assert [comparison["labels"] for comparison in result["comparisons"]] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("references", "supervised", "named"),
    [
        ({**REFERENCES, "raw pixels": 0.9}, None, "raw pixels (90.0%)"),
        ({**REFERENCES, "untrained encoder": 0.85}, None, "an untrained encoder (85.0%)"),
        ({**REFERENCES, "majority class": 0.88}, None, "the majority class (88.0%)"),
        (REFERENCES, 0.95, "the same network supervised from scratch (95.0%)"),
        ({**REFERENCES, "raw pixels": 0.9}, 0.95, BOTH),
    ],
)  # fmt: skip
def test_the_first_sentence_names_the_references_that_no_encoder_surpasses(tmp_path, references, supervised, named):
    result = study(tmp_path, {"random": RANDOM, "sampled": SAMPLED}, references, supervised)
    first, _, rest = result["verdict"]["sentence"].partition(" masks. ")
    assert first == f"No encoder here is better than {named}: linear probe accuracy is 84.2% at best, with sampled"
    assert rest.startswith("sampled masks pay: " if "majority class (88" not in named else "3 seeds cannot decide")
    write_report(result, tmp_path)
    report = (tmp_path / "report.html").read_text()
    assert result["verdict"]["sentence"] in report
    assert report.count("No encoder here is better") == 1


@pytest.mark.parametrize(
    ("metric", "chance", "counts"),
    [
        ("accuracy", 0.71, {"good": 152, "dent": 62}),
        ("balanced_accuracy", 1 / 6, dict.fromkeys("abcdef", 36)),
        ("macro_roc_auc", 0.5, {"good": 152, "dent": 62}),
    ],
)
def test_runs_at_chance(tmp_path, metric, chance, counts):
    low, high = [[chance + change for change in changes] for changes in ([-0.02, 0.0, 0.01], [0.0, 0.02, 0.03])]
    references = {"raw pixels": chance - 0.1, "majority class": chance}
    result = study(tmp_path, {"random": low, "sampled": high}, references, counts=counts, metric=metric)
    assert result["verdict"]["decision"] == "not decided"
    text = f"all runs are at chance ({100 * chance:.1f}%, the majority class): train longer"
    assert text in result["verdict"]["sentence"]


def test_fewer_images_than_the_interval_needs(tmp_path):
    scores = {"random": [0.80, 0.85, 0.75], "sampled": [0.85, 0.80, 0.75]}
    sentence = study(tmp_path, scores, counts={"good": 12, "dent": 8})["verdict"]["sentence"]
    assert "one of the 20 test images changes the score by 5.0 points, more than the 1.0 that count" in sentence
    assert "it takes at least 100 images" in sentence
    assert "more would be needed" not in sentence


def test_few_scored_images_are_said(tmp_path):
    result = study(tmp_path, {"random": RANDOM, "sampled": SAMPLED}, counts={"good": 12, "dent": 3})
    assert result["notes"] == ["few test images: 15 in all, 3 of dent"]
    write_report(result, tmp_path)
    assert "Few test images: 15 in all, 3 of dent." in (tmp_path / "report.html").read_text()


def test_too_few_seeds(tmp_path):
    scores = {"random": [0.80, 0.85, 0.75], "sampled": [0.85, 0.80, 0.75]}
    assert "more would be needed" in study(tmp_path, scores)["verdict"]["sentence"]


def test_equal_scores(tmp_path):
    sentence = study(tmp_path, {"random": RANDOM, "sampled": RANDOM})["verdict"]["sentence"]
    assert "all seeds gave the same scores with both" in sentence


def test_the_cost_has_the_digits_that_its_spread_allows(tmp_path):
    result = study(tmp_path, {"random": RANDOM, "sampled": SAMPLED})
    ratios = [20.0 / 10.0, 20.1 / 10.1, 20.2 / 10.2]
    error = (sum((ratio - sum(ratios) / 3) ** 2 for ratio in ratios) / 2) ** 0.5 / 3**0.5
    assert result["verdict"]["cost_ratio_error"]["seconds"] == pytest.approx(error)
    assert 0.001 < error < 0.01
    assert "training took 1.99 times as long" in result["verdict"]["sentence"]
    # 10, 4 and 2.8: a mean of 0.6 / 0.15 with a standard error of 2.2
    result = study(tmp_path / "spread", {"random": RANDOM, "sampled": SAMPLED}, seconds=(0.05, 0.5))
    assert "training took 4 times as long" in result["verdict"]["sentence"]
    one = study(tmp_path / "one", {"random": RANDOM[:1], "sampled": SAMPLED[:1]}, seconds=(3.0, 5.1))
    assert "training took 1.7 times as long" in one["verdict"]["sentence"]
