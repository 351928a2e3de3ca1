"""What a step of tiny levels costs beside the mathematics, counted beside Betty."""

import pytest
import torch

from multilevel.betty.solvers import BETTY_COMMAND


@pytest.fixture
def overhead():
    import overhead

    return overhead


def weights(side):
    return torch.cat([value.detach().reshape(1) for module in side.modules for value in module])


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 2), (3, 2, 2)], ids=str)
def test_every_side_takes_the_same_steps(overhead, shape):
    trained = overhead.sides(overhead.Size(*shape))
    for side in trained.values():
        for _ in range(4):
            side.step()
    expected = weights(trained["by hand"])
    assert (expected - weights(overhead.Side(None, overhead.Size(*shape).modules()))).norm() > 0.5
    torch.testing.assert_close(weights(trained["multilevel"]), expected, rtol=1e-6, atol=1e-6)
    if "betty" in trained:  # its differences of gradients are of float32
        torch.testing.assert_close(weights(trained["betty"]), expected, rtol=1e-2, atol=1e-3)


def test_a_step_makes_at_most_twice_the_calls_and_operations_of_bettys(overhead):
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    sides = overhead.sides(overhead.Size(levels=2, tensors=1, updates=1))
    calls, operations = overhead.counted(sides["multilevel"])
    others, other_operations = overhead.counted(sides["betty"])
    assert calls <= 2.0 * others
    assert operations <= 2.0 * other_operations


def test_the_table_has_a_row_for_every_size(overhead, capsys):
    overhead.main("--levels 2 3 --tensors 1 --updates 1 2 --rounds 1 --steps 1".split())
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["2 x 1 x 1", "2 x 1 x 2", "3 x 1 x 1", "3 x 1 x 2"]
    assert all(row.count("|") == rows[0].count("|") and "ms" in row for row in rows[2:])
