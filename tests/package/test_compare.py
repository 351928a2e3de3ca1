"""multilevel compare and diagnose=N, run as users run them, on a small model."""

import csv
import json
import os
import signal
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from multilevel.__main__ import main
from multilevel.compare import command as compare
from multilevel.compare.picture import pareto_front
from multilevel.compare.table import ComparisonTable

SMALL = [
    "data.limit=200",
    "data.batch_size=16",
    "model.width=8",
    "model.depth=1",
    "model.heads=2",
    "model.decoder_width=8",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
    "evaluate=false",
]
#: Above the size of the pretraining Hessian's negative eigenvalues, so that the system is definite.
DAMPING = 60


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "out"
    solvers = "minres,conjugate_gradient,finite_difference,unrolled,unrolled_forward"
    options = ["minres.iterations=300", "conjugate_gradient.iterations=300", "minres.tolerance=1e-7"]
    asked = [f"solvers={solvers}", "products=reverse,forward", f"damping={DAMPING}", "warmup=2", "rounds=1"]
    assert main(["compare", *SMALL, *asked, *options, f"output={folder}"]) == 0
    return folder, json.loads((folder / "compare.json").read_text())


def test_solvers_that_converge_agree_with_the_reference(compared):
    _, result = compared
    assert result["reference"]["usable"]
    assert result["reference"]["solver"] == {"finetune": "dense", "pretrain": "minres"}
    rows = {row["solver"]: row for row in result["rows"]}
    for product in ("reverse", "forward"):
        exact = rows[f"minres(iterations=300, tolerance=1e-07, product={product})"]
        assert exact["error"] < 1e-3
        assert exact["cosine"] > 0.999
        assert rows[f"conjugate_gradient(iterations=300, product={product})"]["error"] < 1e-2
    assert rows["finite_difference"]["error"] > 0.1
    assert rows["finite_difference"]["evaluations"] == 4
    assert rows["finite_difference"]["products"] == 2


def test_each_row_says_what_it_cost(compared):
    _, result = compared
    for row in result["rows"]:
        if row["name"] == "unrolled_forward":
            assert "solver.limit" in row["problem"]
        else:
            assert row["memory_mib"] > 0
            assert row["seconds"] > 0


@pytest.mark.slow
def test_precisions_and_shares_of_the_batch_stand_beside_each_other(tmp_path):
    axes = ["solvers=minres,unrolled", "precisions=float32,bf16", "shares=1,0.5", "minres.iterations=300"]
    asked = [f"damping={DAMPING}", "warmup=1", "rounds=1", f"output={tmp_path / 'out'}"]
    assert main(["compare", *SMALL, *axes, *asked]) == 0
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert len(rows) == 8
    errors = {(row["precision"], row["share"]): row["error"] for row in rows if row["name"] == "minres"}
    assert errors["float32", 1.0] < 1e-3 < errors["bf16", 1.0] < errors["float32", 0.5]
    refused = [row["problem"] for row in rows if row["name"] == "unrolled" and row["share"] == 0.5]
    assert len(refused) == 2
    assert all(
        "solve_share: got 0.5; expected 1, since Unrolled differentiates whole updates" in one for one in refused
    )


def test_table_csv_and_picture_hold_the_same_rows(compared):
    folder, result = compared
    text = str(ComparisonTable.load(folder / "compare.json"))
    with (folder / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["solver"] for row in rows] == [row["solver"] for row in result["rows"]]
    assert all(row["solver"] in text for row in rows)
    assert "residual" in text
    assert (folder / "compare.png").stat().st_size > 10_000


def test_no_error_column_where_the_reference_did_not_converge(tmp_path, capsys):
    asked = ["solvers=identity", "iterations=2", "warmup=1", "rounds=1", f"output={tmp_path / 'out'}"]
    assert main(["compare", *SMALL, *asked]) == 0
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert row["error"] is None
    assert "no error column" in capsys.readouterr().out


def test_comparing_at_a_runs_checkpoint(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", *SMALL, "steps=2", f"output={run}"]) == 0
    assert main(["compare", f"resume={run}", "solvers=identity", "warmup=0", "iterations=1", f"output={out}"]) == 0
    assert json.loads((out / "compare.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("call", "given", "problem"),
    [
        (os._exit, 3, "its process ended with status 3"),
        (signal.raise_signal, signal.SIGKILL, "its process ended with status -9"),
        (json.loads, "{", "JSONDecodeError: Expecting property name"),
    ],
)
def test_a_process_that_ends_early_is_its_own_rows_problem(call, given, problem):
    assert compare._in_a_process(call, given)["problem"].startswith(problem)
    assert compare._in_a_process(json.loads, "{}") == {}


@pytest.mark.parametrize(
    "number", [None, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))]
)
def test_the_command_ends_without_warnings(tmp_path, number):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    asked = ["solvers=identity,finite_difference,sama", "iterations=2", "warmup=0", "rounds=1", "output=out"]
    command = subprocess.Popen(
        [sys.executable, "-m", "multilevel", "compare", *SMALL, *asked],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    said = list(iter(command.stderr.readline, "1/3 identity\n"))
    assert said[-1] == "computing the references, then each solver in its own process\n"
    if number is not None:
        command.send_signal(number)
    rest = command.communicate(timeout=600)[1].splitlines()
    if number is None:
        assert (command.returncode, rest) == (0, ["2/3 finite_difference", "3/3 sama"])
    else:
        assert command.returncode == 128 + number
        (line,) = [line for line in rest if "/3 " not in line]
        assert line.startswith("multilevel: stopped")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(("out", "pymp", "tmp"))]


def hear_interrupts():
    """A shell has what it starts in the background ignore SIGINT, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_front_is_what_nothing_is_below_in_both():
    points = [(1.0, 9.0), (2.0, 3.0), (3.0, 5.0), (4.0, 1.0), (2.0, 4.0)]
    assert pareto_front(points) == [0, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["solvers=none"], "solvers: got 'none'; expected some of auto, "),
        (["products=exact"], "products: got 'exact'; expected some of auto, forward, reverse, finite_difference"),
        (["warmup=-1"], "warmup: got -1; expected a whole number of at least 0"),
        (["damping=much"], "damping: got 'much'; expected a finite number of at least 0"),
        (["neumann.iterations=3"], "neumann.iterations: got '3'; expected a setting of neumann: "),
        (["neumann.terms=0"], "neumann.terms: got 0; expected a whole number of at least 1"),
        (["neumann.terms=few"], "neumann.terms: got 'few'; expected a whole number"),
        (["unrolled.steps=2.5"], "unrolled.steps: got '2.5'; expected a whole number"),
        (["conjugate_gradient.warm_start=maybe"], "warm_start: got 'maybe'; expected true or false"),
        (["damping=inf"], "damping: got inf; expected a finite number of at least 0"),
        (["mask.policy=random"], "there is nothing to compare"),
        (["resume=/nowhere"], "resume: got '/nowhere'; expected a run folder"),
    ],
)
def test_wrong_input_is_one_line(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *([] if "resume" in arguments[0] else SMALL), *arguments]) == 2
    assert text in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_diagnosis_of_a_converged_solver_finds_no_error(tmp_path):
    run = tmp_path / "run"
    solver = ["solver=minres", "solver.iterations=300", "solver.tolerance=1e-7", f"solver.damping={DAMPING}"]
    assert main(["train", *SMALL, *solver, "steps=4", "diagnose=2", f"output={run}"]) == 0
    records = [json.loads(line) for line in (run / "diagnosis.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    for record in records:
        assert record["error"] < 1e-3
        assert record["cosine"] > 0.999
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    cosines = [record["cosine"] for record in log if record["level"] == "mask"]
    assert cosines[0] is None
    assert all(-1 <= value <= 1 for value in cosines[1:])
    assert all(record["cosine"] is None for record in log if record["level"] != "mask")
    levels = json.loads((run / "summary.json").read_text())["levels"]
    expected = {"pretrain": None, "finetune": None, "mask": sorted(cosines[1:])[1]}
    assert {name: level["median_cosine"] for name, level in levels.items()} == expected
    assert all(one["products"] > 1 for record in log for one in record["solves"].values())


def test_a_notebook_shows_the_same_table(compared):
    folder, result = compared
    shown = ElementTree.fromstring(f"<div>{ComparisonTable(result)._repr_html_()}</div>")
    text = str(ComparisonTable.load(folder / "compare.json"))
    rows = [["".join(cell.itertext()) for cell in row] for row in shown.findall(".//tbody/tr")]
    assert sorted(row[0].split("  ")[0] for row in rows) == sorted(row["solver"] for row in result["rows"])
    assert all(cell.strip() in text for row in rows for cell in row)
    assert [note.text for note in shown.findall("./div")] == text.splitlines()[len(rows) + 1 :]
