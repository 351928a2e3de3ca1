"""The comparison with Betty at tiny sizes; Betty's part where it can be imported."""

import pytest


@pytest.fixture
def vs_betty():
    import vs_betty

    return vs_betty


def sides_printed(text):
    """First words of the table's rows."""
    rows = text.partition("\nside ")[2].splitlines()[1:]
    return [row.split()[0] for row in rows if not row.split()[0].endswith(":")]


def test_the_sides_of_multilevel_run_without_betty(vs_betty, tiny, capsys, monkeypatch):
    monkeypatch.setattr(vs_betty, "MISSING", "No module named 'betty'")
    chosen = [
        "--sides",
        "betty,plain,both,both-forward,direct-bf16,mine",
        "--variant",
        "mine=solver=neumann paths=direct",
    ]
    vs_betty.main([*chosen, "--rounds", "1", "--no-memory", *tiny])
    text = capsys.readouterr().out
    assert "pip install --no-deps --ignore-requires-python betty-ml==0.2.1 --target FOLDER" in text
    assert sides_printed(text) == ["plain", "both", "both-forward", "direct-bf16", "mine"]


def test_each_side_has_the_settings_of_its_variant(vs_betty, tiny):
    variants = vs_betty.VARIANTS | {"mine": "solver=neumann", "last": "paths=both paths=direct"}
    sides = vs_betty.Sides(variants, [*vs_betty.GENERATED.split(), *tiny], 0.01)
    for side, paths in {"betty": "both", "plain": "both", "both": "both", "mine": "both"}.items():
        assert sides.recipe(side).settings.paths == paths
    for side in ("direct", "direct-bf16", "last"):
        assert sides.recipe(side).settings.paths == "direct"
    assert sides.recipe("direct-bf16").settings.precision == "bf16"
    assert sides.recipe("both-forward").settings.solver["product"] == "forward"
    assert sides.recipe("mine").settings.solver["name"] == "neumann"


def test_memory_of_a_side_is_a_number(vs_betty, tiny, capsys):
    vs_betty.main(["--memory-of", "both", *tiny])
    assert float(capsys.readouterr().out) >= 0


def test_an_unknown_side_is_refused(vs_betty, capsys):
    with pytest.raises(SystemExit):
        vs_betty.main(["--sides", "both,mine"])
    assert "argument --sides: got mine; expected some of betty, plain, both" in capsys.readouterr().err


def test_other_losses_are_no_parity(vs_betty):
    ours = [("pretrain", 2.0), ("mask", 1.0)]
    assert vs_betty.difference(ours, [("pretrain", 2.00001), ("mask", 1.0)]) == pytest.approx(5e-6, rel=1e-3)
    with pytest.raises(AssertionError, match="losses differ"):
        vs_betty.difference(ours, [("pretrain", 2.0001), ("mask", 1.0)])
    with pytest.raises(AssertionError, match="updates"):
        vs_betty.difference(ours, ours[:1])


def test_the_first_iteration_on_betty_has_the_same_losses(vs_betty, tiny, capsys):
    if vs_betty.MISSING:
        pytest.skip(f"needs Betty ({vs_betty.MISSING}): {vs_betty.BETTY_COMMAND}")
    vs_betty.main(["--sides", "betty,both", "--rounds", "1", "--no-memory", *tiny])
    text = capsys.readouterr().out
    assert "losses agree within" in text
    assert sides_printed(text) == ["betty", "both"]


def test_betty_finds_both_paths(vs_betty, tiny):
    if vs_betty.MISSING:
        pytest.skip(f"needs Betty ({vs_betty.MISSING}): {vs_betty.BETTY_COMMAND}")
    sides = vs_betty.Sides(vs_betty.VARIANTS, [*vs_betty.GENERATED.split(), *tiny], 0.01)
    paths = vs_betty.BettyRun(sides.recipe("betty")).paths
    assert sorted(paths) == [["mask", "finetune", "pretrain", "mask"], ["mask", "pretrain", "mask"]]
