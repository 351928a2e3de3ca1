"""The texts of a report, one file a language."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

from multilevel.reports.proportions import Proportion, Rate

LANGUAGES = ("en", "ja")


@cache
def read_texts(language: str) -> dict[str, str]:
    """The texts of a language by key, with placeholders in braces."""
    file = resources.files("multilevel.reports").joinpath(f"languages/{language}.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


class Texts:
    """Texts and numbers in a language.

    >>> Texts("en")("images_of", count=3, folder="tiles")
    '3 images of the folder tiles'
    >>> Texts("ja").percent(0.577)
    '57.7%'
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts = read_texts(language)

    def __call__(self, key: str, **values: Any) -> str:
        return self._texts[key].format(**values)

    def named(self, group: str, name: str, default: str | None = None) -> str:
        """The text for a name, such as ``metric_accuracy`` for a metric; the default if there is none.

        >>> Texts("en").named("protocol", "knn"), Texts("en").named("protocol", "my_probe")
        ('nearest neighbours', 'my_probe')
        """
        return self._texts.get(f"{group}_{name.replace(' ', '_')}", name if default is None else default)

    def limit(self, share: float) -> str:
        """A share that someone set, as a percentage without decimals that say nothing.

        >>> Texts("en").limit(0.02), Texts("en").limit(0.995)
        ('2%', '99.5%')
        """
        return f"{100 * share:g}%"

    def percent(self, share: float) -> str:
        """A measured share as a percentage with one decimal, or two where one would round it to 0 or 100%."""
        digits = 2 if 0 < share < 0.001 or 0.999 < share < 1 else 1
        return f"{100 * share:.{digits}f}%"

    def interval(self, interval: Proportion | Rate) -> str:
        """The interval of a share, in percent."""
        return self("interval", low=self.percent(interval.low), high=self.percent(interval.high))

    def proportion(self, proportion: Proportion) -> str:
        """A share with its counts and interval."""
        if proportion.share is None:
            return self("none_to_count")
        return self("proportion", share=self.percent(proportion.share), detail=self.detail(proportion))

    def detail(self, proportion: Proportion) -> str:
        """The counts and the interval of a share."""
        interval = self.interval(proportion)
        return self("detail", count=proportion.count, total=proportion.total, interval=interval)

    def shares(self, **proportions: Proportion) -> dict[str, str]:
        """For each name of images, ``NAME`` the share and ``NAME_detail`` its counts and interval."""
        shares = {name: self.percent(each.share or 0.0) for name, each in proportions.items()}
        return shares | {f"{name}_detail": self.detail(each) for name, each in proportions.items()}

    def area(self, area: Rate | None) -> str:
        """An area under a curve with its interval."""
        if area is None:
            return self("none_to_count")
        interval = self("interval", low=f"{area.low:.3f}", high=f"{area.high:.3f}")
        return self("with_interval", value=f"{area.value:.3f}", interval=interval)

    def score(self, score: float) -> str:
        """A score or threshold with four significant digits."""
        return f"{score:.4g}"

    def number(self, value: float, digits: int = 1) -> str:
        """A number with thousands separated, and with whole numbers without decimals."""
        if value == float("inf"):
            return self("never")
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text

    def range(self, rate: Rate) -> str:
        """A number with its interval."""
        value, low, high = (self.number(number) for number in rate)
        return self("with_interval", value=value, interval=self("interval", low=low, high=high))

    def share_range(self, rate: Rate) -> str:
        """A share with its interval, in percent."""
        return self("with_interval", value=self.percent(rate.value), interval=self.interval(rate))

    def days(self, rate: Rate) -> str:
        """A number of days with its interval."""
        value, low, high = (
            self("never") if days == float("inf") else self("days", days=self.number(days)) for days in rate
        )
        return self("with_interval", value=value, interval=self("interval", low=low, high=high))

    def money(self, value: float, currency: str) -> str:
        """An amount; yen and won have no decimals."""
        return f"{value:,.{_decimals(currency)}f} {currency}"

    def money_change(self, value: float, currency: str) -> str:
        """A change of an amount, with its sign."""
        return f"{value:+,.{_decimals(currency)}f} {currency}"

    def money_range(self, rate: Rate, currency: str) -> str:
        """An amount with its interval."""
        value, low, high = (self.money(number, currency) for number in rate)
        return self("with_interval", value=value, interval=self("interval", low=low, high=high))


def _decimals(currency: str) -> int:
    return 0 if currency in ("JPY", "KRW", "円") else 2
