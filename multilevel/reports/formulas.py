"""Writes out the formulas of the costs, with their numbers."""

from __future__ import annotations

from multilevel.reports.costs import CostRow, MoneySettings, Way
from multilevel.reports.texts import Texts


def cost_formulas(
    way: Way, costs: CostRow, defect_rate: float, settings: MoneySettings, texts: Texts
) -> list[tuple[str, str]]:
    """Name what each formula gives, and write it with its numbers; see ``costs``.

    Args:
        way: the way of inspecting.
        costs: its costs.
        defect_rate: share of defective parts.
        settings: with the costs of errors.
        texts: of the language.
    """
    cost = settings.cost
    assert cost.miss is not None
    assert cost.false_alarm is not None

    def money(value: float) -> str:
        return texts.money(value, settings.currency)

    d, g, r, f = (f"{value:.6g}" for value in (defect_rate, 1 - defect_rate, way.recall.value, way.false_alarms.value))
    miss, alarm = f"{cost.miss:g}", f"{cost.false_alarm:g}"
    inspected, saving = costs.inspected.value, costs.saving_over_trivial.value
    trivial = min(costs.uninspected, costs.rejected)
    hours = f"{way.machine_hours:.4g} × {cost.machine_hour:g}"
    rows = [
        ("cost_inspected", f"1000 × ({d} × (1 − {r}) × {miss} + {g} × {f} × {alarm}) = {money(inspected)}"),
        ("cost_uninspected", f"1000 × {d} × {miss} = {money(costs.uninspected)}"),
        ("cost_rejected", f"1000 × {g} × {alarm} = {money(costs.rejected)}"),
        ("saving_none", f"{money(costs.uninspected)} − {money(inspected)} = {money(costs.saving.value)}"),
        ("saving_trivial", f"{money(trivial)} − {money(inspected)} = {money(saving)}"),
        ("training_cost", f"{hours} + {way.labels} × {cost.label:g} = {money(costs.training)}"),
    ]
    if costs.days is not None:
        days = texts.number(costs.days.value, 2)
        daily = f"({money(saving)} / 1000 × {settings.parts_per_day:g})"
        rows.append(("break_even", f"{money(costs.training)} / {daily} = {days}"))
    return [(texts(key), text) for key, text in rows]
