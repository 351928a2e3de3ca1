"""Claims about training: starting weights are moved by what is said, and old or too few runs show nothing."""

import ast

import pytest
import torch
import training_claims
from claims import Claims, above, below, moved_starts, start

from multilevel import Engine, Graph, Problem

VALUES = [1.0, 1.1, 1.2, 1.3, 1.4] * 2  # standard deviation 0.149


class Level(Problem):
    def loss(self, levels, batch, draws):
        return levels.low.weight.square().sum()


def test_engines_start_from_weights_moved_by_a_share_of_their_root_mean_square():
    linear = torch.nn.Linear(100, 100).double()
    before = linear.weight.detach().clone()
    with moved_starts(1e-6):
        Engine(Graph(Level("low", linear)))
    moved = (linear.weight - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert moved.item() == pytest.approx(1e-6, rel=0.05)
    after = linear.weight.detach().clone()
    Engine(Graph(Level("low", start(linear))))
    assert torch.equal(linear.weight, after)


def test_a_claim_that_fails_is_told_with_its_number():
    claim = Claims(lambda seed: {"error": 0.5 + seed}, {"error": below(1)})
    claim.check()
    with pytest.raises(AssertionError, match=r"error of 1\.5, claimed below 1"):
        claim.check(seeds=range(5))


@pytest.mark.parametrize(
    ("bound", "values", "expected"),
    [
        (above(0.69), VALUES, "yes"),
        (above(0.72), VALUES, "NO"),  # less than two standard deviations to spare
        (below(1.71), VALUES, "yes"),
        (below(1.35), VALUES, "NO"),
        (above(0.5), [1.0] * 10, "yes"),
        (above(1.0), [1.0] * 10, "NO"),
        (above(0.0), VALUES[:9], "9 of 10 runs"),
    ],
)
def test_a_claim_holds_in_all_ten_runs_with_room(bound, values, expected):
    assert training_claims.verdict(bound, values) == expected


def test_rows_of_other_code_or_other_numbers_are_run_again():
    claim = Claims(lambda seed: {"error": 0.0}, {"error": below(1)})
    row = training_claims.measure("name", claim, 0, 0.0, "abc")
    assert training_claims.is_current(row, claim, "abc")
    assert not training_claims.is_current(row, claim, "abd")
    assert not training_claims.is_current({**row, "values": {"loss": 0.0}}, claim, "abc")
    keys = training_claims.keys_of(["name"])
    rows = {key: training_claims.measure(key[0], claim, *key[1:], "abc") for key in keys}
    assert [training_claims.table({"name": claim}, rows, version)[1] for version in ("abc", "abd")] == [True, False]


def test_code_is_the_same_code_with_other_docstrings_and_comments():
    def dumped(text):
        return ast.dump(training_claims.without_docstrings(text))

    code = 'def area(a, b):\n    """Of a rectangle."""\n    return a * b  # exact\n'
    assert dumped(code) == dumped('"""Areas."""\n\ndef area(a, b):\n    return a * b\n')
    assert dumped(code) != dumped(code.replace("*", "+"))
