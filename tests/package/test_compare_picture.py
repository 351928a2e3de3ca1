"""The picture and the marks of multilevel compare, for rows made up here."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from multilevel.compare.picture import comparison_figure
from multilevel.compare.table import ComparisonTable

AGAINST = "opposite: the cosine is negative, so the answer points against that reference"


def row(solver, error=0.1, cosine=0.9, memory=10.0, seconds=1.0, **others):
    costs = {"memory_mib": memory, "seconds": seconds, "evaluations": 2, "products": 2}
    return {"solver": solver, "error": error, "cosine": cosine, "residual": 0.5, "failed": [], **costs, **others}


def result(rows):
    reference = {"solver": {"fit": "dense"}, "residual": 1e-9, "usable": True}
    return {"recipe": "r", "data": "d", "step": 1, "damping": 1.0, "reference": reference, "rows": rows}


def coincident(count):
    return [row(f"minres(iterations={index}, product=finite_difference)") for index in range(count)]


def clustered(count):
    random = np.random.default_rng(0)
    draws = random.lognormal(sigma=(3, 0.2, 0.2), size=(count, 3))
    return [row(f"neumann(terms={index})", *values[:1], 0.9, *values[1:]) for index, values in enumerate(draws)]


@pytest.mark.parametrize("rows", [coincident(1), coincident(60), clustered(40), clustered(200)], ids=len)
def test_no_two_labels_overlap(rows):
    figure = comparison_figure(result(rows))
    figure.set_dpi(120)  # as in the file
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    assert len(figure.axes) == 2
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text, renderer) for text in axis.texts]  # without the lines to the points
        assert [text.get_text() for text in axis.texts] == [str(number) for number in range(1, len(rows) + 1)]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        assert all(axis.bbox.containsx(x) and axis.bbox.containsy(y) for box in boxes for x, y in box.corners())
    (legend,) = figure.legends
    names = [text.get_window_extent(renderer) for text in legend.get_texts()]
    assert not any(one.overlaps(other) for one, other in combinations(names, 2))
    others = [axis.get_tightbbox(renderer) for axis in figure.axes] + [figure._suptitle.get_window_extent(renderer)]
    extent = legend.get_window_extent(renderer)
    assert not any(extent.overlaps(other) for other in others)
    assert all(figure.bbox.containsx(x) and figure.bbox.containsy(y) for x, y in extent.corners())


def test_numbers_go_by_error_and_markers_by_direction():
    rows = [
        row("sama", 5.0, -0.8),
        row("minres", 1e-4),
        row("neumann", 0.2, 0.5, failed=["fit"]),
        row("auto", 2.0, -0.1),
    ]
    (legend,) = comparison_figure(result(rows)).legends
    assert [text.get_text().split() for text in legend.get_texts()] == [
        ["1", "minres"], ["2", "neumann"], ["3", "auto"], ["4", "sama"]
    ]  # fmt: skip
    assert [handle.get_marker() for handle in legend.legend_handles] == ["o", "x", "v", "v"]


def test_a_negative_cosine_is_marked_and_explained():
    table = ComparisonTable(result([row("minres"), row("sama", 5.0, -0.8), row("auto", 6.0, -0.1, failed=["fit"])]))
    exact, sama, auto, *notes = str(table).splitlines()[1:]
    assert "opposite" not in exact
    assert sama.endswith("  opposite to reference")
    assert auto.endswith("  opposite to reference  failed at fit")
    assert AGAINST in notes
    assert "sama  opposite to reference" in table._repr_html_()
    assert AGAINST in table._repr_html_()
    for cosine in (0.0, None):
        assert "opposite" not in str(ComparisonTable(result([row("minres", cosine=cosine)])))


def test_each_reference_that_an_answer_points_against_is_named():
    path = {**row("identity", 3.0, 0.9), "cosine_unrolled": -0.2}
    both = {**row("sama", 4.0, -0.9), "cosine_unrolled": -0.2}
    shown = {**result([row("minres"), path, both]), "reference": {**result([])["reference"], "unrolled": {}}}
    lines = str(ComparisonTable(shown)).splitlines()
    assert lines[2].endswith("  opposite to unrolled")
    assert lines[3].endswith("  opposite to both")
    assert any(line.startswith("cosine: ") and "unrolled: " in line for line in lines)
    shown["reference"]["unrolled"] = {"problem": "no update is recorded"}
    assert "no cosine with unrolled updates: no update is recorded" in str(ComparisonTable(shown)).splitlines()
