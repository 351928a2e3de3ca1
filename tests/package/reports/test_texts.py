"""The texts of every language: the same keys and placeholders, all used, and every placeholder filled."""

# ruff: noqa: RUF001 (Japanese punctuation)
import re
from pathlib import Path
from string import Formatter

import pytest

import multilevel.inspection
import multilevel.reports
import multilevel.study
from multilevel.levels.masks import POLICIES
from multilevel.levels.tasks import TASKS
from multilevel.recipes.evaluation import PROTOCOLS
from multilevel.reports.proportions import Proportion, Rate
from multilevel.reports.texts import LANGUAGES, Texts, read_texts
from multilevel.study.pictures import REFERENCES

FOLDERS = [Path(str(room.__file__)).parent for room in (multilevel.inspection, multilevel.reports, multilevel.study)]


def placeholders(text):
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_keys_and_placeholders(language):
    english, texts = read_texts("en"), read_texts(language)
    assert list(texts) == list(english)
    assert {key for key in texts if placeholders(texts[key]) != placeholders(english[key])} == set()


def test_every_text_is_used():
    code = "".join(
        path.read_text() for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".py", ".html")
    )
    built = "note_source_ note_good_ source_ rule_ score_ curve_ claim_ money_verdict_ trivial_ shares_missing_".split()
    built += ["split_", "protocol_", "encoder_", "metric_", "phrase_", "policy_", "about_"]  # of named texts
    built += ["study_money_", "study_figure_"]
    built += ["missed_", "false_", "suspicious_", "no_", "classifier_of", "distance_of", "reference_"]
    unused = [key for key in read_texts("en") if f'"{key}"' not in code and not key.startswith(tuple(built))]
    assert unused == []


def test_japanese_is_japanese():
    for key, text in read_texts("ja").items():
        words = re.sub(r"\{\w+\}|[（）～、。%\s]", "", text)
        assert not words or re.search(r"[぀-ヿ一-鿿]", words), key


def test_every_policy_and_protocol_of_the_project_has_its_texts():
    texts = read_texts("ja")
    assert {f"policy_{name}" for name in POLICIES} <= set(texts)
    assert {f"protocol_{name}" for name in [*PROTOCOLS, "supervised"]} <= set(texts)
    assert {f"metric_{metric}" for task in TASKS.values() for metric in task.metric_names} <= set(texts)
    assert {f"encoder_{name.replace(' ', '_')}" for name in REFERENCES} <= set(texts)


def test_numbers_are_written_in_the_language():
    english, japanese = Texts("en"), Texts("ja")
    assert english.proportion(Proportion.of(45, 78)) == "57.7% (45 of 78; 95% interval 46.0% to 68.8%)"
    assert japanese.proportion(Proportion.of(45, 78)) == "57.7%（78枚中45枚、95%信頼区間 46.0%～68.8%）"
    assert english.money_range(Rate(1234.5, -1, 2000), "EUR") == "1,234.50 EUR (-1.00 EUR to 2,000.00 EUR)"
    assert japanese.money(1234.5, "JPY") == "1,234 JPY"
    assert english.percent(0.9996) == "99.96%"
    assert english.days(Rate(float("inf"), 3.25, float("inf"))) == "never (3.2 days to never)"
    assert english.proportion(Proportion.of(0, 0)) == "none to count"
