"""Renders the counts and costs of a study for its report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from multilevel.reports.costs import MoneySettings, money_settings
from multilevel.reports.formulas import cost_formulas
from multilevel.reports.texts import Texts
from multilevel.study.money import Extra, StudyMoney, WayOfTraining, study_money
from multilevel.study.words import labels_in_words


def render_money(result: Mapping[str, Any], texts: Texts) -> Markup:
    """The section of the report, as HTML; empty without counts.

    Args:
        result: the contents of study.json.
        texts: of the language.
    """
    settings = money_settings(result["study"]["money"])
    money = study_money(result, settings)
    if money is None:
        return Markup("")
    study, question = result["study"], result["question"]
    split = texts.named("split", question["split"])
    template = resources.files("multilevel.study").joinpath("money.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return Markup(
        environment.from_string(template).render(
            t=texts,
            money=money,
            settings=settings,
            name=lambda way: _name(way, texts),
            verdict=money_sentences(money, settings, texts),
            intro=texts(
                "study_money_intro",
                good=money.good,
                protocol=texts.named("protocol", study["inspection_protocol"]),
                labels=labels_in_words(question["labels"], texts),
                limit=texts.limit(settings.allowed_false_alarms),
                defects=money.defects,
                good_images=money.good_images,
                split=split,
            ),
            rate=texts(
                "study_defect_rate" if money.from_images else "defect_rate_set",
                rate=texts.percent(money.defect_rate),
                **({"split": split} if money.from_images else {}),
            ),
            formulas={
                _name(way, texts): cost_formulas(way.way, way.costs, money.defect_rate, settings, texts)
                for way in money.ways
                if way.costs is not None
            },
        )
    )


def money_sentences(money: StudyMoney, settings: MoneySettings, texts: Texts) -> list[str]:
    """Which way of training saves most, and what the arm of the verdict changes; empty without costs."""
    best = money.ways[0]
    if best.costs is None:
        return []
    saving, currency = best.costs.saving_over_trivial, settings.currency
    state = "saves" if saving.low > 0 else "loses" if saving.high < 0 else "open"
    trivial = "trivial_none" if best.costs.uninspected <= best.costs.rejected else "trivial_reject"
    sentence = texts(
        f"study_money_{state}",
        way=_name(best, texts),
        trivial=texts(trivial),
        saving=texts.money_range(best.costs.saving, currency),
        over_trivial=texts.money_range(saving, currency),
    )
    return [sentence, *([_extra(money.extra, currency, texts)] if money.extra is not None else [])]


def _extra(extra: Extra, currency: str, texts: Texts) -> str:
    saving = texts.money_change(extra.saving, currency)
    if extra.interval is not None:
        low, high = (texts.money_change(end, currency) for end in extra.interval)
        saving = texts("with_interval", value=saving, interval=texts("interval", low=low, high=high))
    sentence = texts(
        "study_money_extra",
        arm=extra.arm,
        baseline=extra.baseline,
        saving=saving,
        training=texts.money_change(extra.training, currency),
    )
    if extra.days is None or extra.training <= 0:
        return sentence
    if extra.days == float("inf"):
        return sentence + texts("between_sentences") + texts("study_money_extra_never")
    days = texts("days", days=texts.number(extra.days))
    return sentence + texts("between_sentences") + texts("study_money_extra_days", days=days)


def _name(way: WayOfTraining, texts: Texts) -> str:
    if not way.reference:
        return way.way.name
    return texts("study_reference", name=texts.named("encoder", way.way.name))
