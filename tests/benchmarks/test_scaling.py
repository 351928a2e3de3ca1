"""The scaling tables at tiny sizes."""

import pytest


@pytest.fixture
def scaling():
    import scaling

    return scaling


def rows(text):
    """(value, side, products) of each row of one axis."""
    lines = text.partition(" side ")[2].splitlines()[1:]
    return [(int(words[0]), words[1], words[-1]) for words in map(str.split, lines)]


def test_sizes_compare_three_sides_at_each_value(scaling, tiny, capsys):
    scaling.main(["--axes", "depth", "--values", "1,2", "--rounds", "1", *tiny])
    found = rows(capsys.readouterr().out)
    assert [(value, side) for value, side, _ in found] == [
        (value, side) for value in (1, 2) for side in ("plain", "direct", "both")
    ]
    assert [products for _, _, products in found] == ["-", "1", "2"] * 2


@pytest.mark.parametrize("axis", ["terms", "iterations"])
def test_a_longer_solve_spends_more_products(scaling, tiny, capsys, axis):
    scaling.main(["--axes", axis, "--values", "1,3", "--rounds", "1", *tiny])
    (_, _, few), (_, _, many) = rows(capsys.readouterr().out)
    assert int(many) - int(few) == 2 * 2  # two terms more at each of two levels


def test_chains_have_so_many_levels(scaling, capsys):
    scaling.main(["--axes", "levels", "--values", "2,5", "--rounds", "1"])
    assert rows(capsys.readouterr().out) == [(2, "chain", "1"), (5, "chain", "4")]
    scaling.main(["--axes", "nested", "--values", "2,3", "--rounds", "1"])
    assert [value for value, _, _ in rows(capsys.readouterr().out)] == [2, 3]


def test_values_are_of_one_axis(scaling, capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--values", "1,2"])
    assert "expected one axis" in capsys.readouterr().err
