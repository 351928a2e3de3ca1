"""engine=betty and the rows of Betty in multilevel compare, as users run them; and what they say without betty-ml."""

import json
import subprocess
import sys

import pytest

from multilevel.__main__ import main
from multilevel.betty.solvers import BETTY_COMMAND
from multilevel.compare import command as compare

SMALL = ["recipe=hyper_cleaning", "data.limit=100", "data.batch_size=20", "evaluate=false"]
ADAM = "levels.classify.optimizer=adam"


@pytest.fixture
def in_this_process(monkeypatch):
    """Solvers are measured here: a process of its own for each takes most of the time (test_compare has that)."""

    monkeypatch.setattr(compare, "_in_a_process", lambda call, *arguments: call(*arguments))


def without_betty(code):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['betty'] = None; {code}"], capture_output=True, text=True
    )


def test_only_the_bridge_needs_betty():
    done = without_betty(
        "from multilevel.__main__ import main; from multilevel.betty import BETTY_SOLVERS; "
        "sys.exit(main(['compare', 'precisions=half']))"
    )
    assert done.returncode == 2
    assert "precisions: got 'half'; expected some of float32" in done.stderr
    for name in ("from_betty", "BettyEngine"):
        done = without_betty(f"from multilevel.betty import {name}")
        assert done.returncode == 1
        assert BETTY_COMMAND in done.stderr.splitlines()[-1]
        assert "BettyMissingError" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("in_this_process")
def test_one_table_has_bettys_hypergradients_and_those_here(tmp_path):
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    solvers = ["finite_difference", "neumann", "betty/darts", "betty/neumann", "betty/cg"]
    same = ["neumann.terms=4", "neumann.step_size=0.1"]
    theirs = ["betty/neumann.neumann_iterations=3", "betty/neumann.neumann_alpha=0.1", "betty/cg.cg_iterations=20"]
    asked = [f"solvers={','.join(solvers)}", *same, *theirs, "damping=1", "warmup=2", "rounds=1"]
    assert main(["compare", *SMALL, ADAM, *asked, f"output={tmp_path / 'out'}"]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert result["reference"]["usable"]
    assert rows["betty/darts"]["error"] == pytest.approx(rows["finite_difference"]["error"], rel=1e-2)
    assert rows["betty/neumann"]["error"] == pytest.approx(rows["neumann"]["error"], rel=1e-4)
    assert rows["betty/cg"]["error"] > 0.05  # conjugate gradients come to 1e-6 in as many iterations
    assert [rows[name]["products"] for name in solvers] == [1, 5, 1, 4, 21]
    assert all(row["memory_mib"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("levels.classify.optimizer=adamw", "from its defaults, which AdamW refuses"),
        ("shares=0.5", "shares: got 0.5; expected no value: Betty uses the recipe's precision, and all rows"),
        ("precisions=bf16", "precisions: got 'bf16'; expected no value: Betty uses"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_what_betty_refuses_is_said_in_its_row(asked, text, tmp_path):
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    command = ["compare", *SMALL, ADAM, asked, "solvers=betty/darts", "warmup=1", "rounds=1", "iterations=1"]
    assert main([*command, f"output={tmp_path / 'out'}"]) == 0
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert text in row["problem"]


def test_training_on_betty(tmp_path):
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    asked = ["engine=betty", ADAM, "levels.classify.steps=2"]
    assert main(["train", *SMALL, *asked, "steps=3", "diagnose=3", f"output={tmp_path / 'run'}"]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["level"] for record in log] == ["classify", "classify", "clean"] * 3
    assert [one["products"] for one in log[2]["solves"].values()] == [1]
    assert (tmp_path / "run" / "diagnosis.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["engine=jax"], "engine: got 'jax'; expected one of multilevel, betty"),
        (["engine=betty", "compile=true"], "compile: got True; expected false with engine=betty"),
    ],
)
def test_wrong_settings_are_one_line(arguments, text, capsys, tmp_path):
    assert main(["train", *SMALL, ADAM, *arguments, f"output={tmp_path / 'run'}"]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_solver_that_betty_has_not_is_one_line(capsys, tmp_path):
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    assert main(["train", *SMALL, ADAM, "engine=betty", "solver=minres", f"output={tmp_path / 'run'}"]) == 2
    assert (
        "levels.classify.solver: got 'Minres()'; expected identity, finite_difference, neumann"
        in capsys.readouterr().err
    )


def test_without_betty_the_error_has_the_command(capsys, monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name.partition(".")[0] == "betty":
            monkeypatch.setitem(sys.modules, name, None)
        elif "betty" in name and name.startswith("multilevel") and not name.endswith("betty_solvers"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "betty", None)
    assert main(["train", *SMALL, ADAM, "engine=betty", f"output={tmp_path / 'run'}"]) == 2
    assert BETTY_COMMAND in capsys.readouterr().err
