"""multilevel compare reliability=K and the noise in diagnosis.jsonl, run as users run them, on a small model."""

import csv
import json
from statistics import fmean

import pytest
from torch.nn.functional import cosine_similarity

from multilevel.__main__ import main
from multilevel.compare import command as compare
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.runs.diagnosis import Diagnosis, noise_message
from multilevel.runs.training import new_engine
from multilevel.solvers import Neumann, SolveError, Unrolled
from multilevel.solvers.vectors import flatten

SMALL = [
    "data.limit=200", "data.batch_size=16", "model.width=8", "model.depth=1", "model.heads=2", "model.decoder_width=8",
    "model.decoder_depth=1", "model.decoder_heads=2", "evaluate=false",
]  # fmt: skip
DAMPING = 60
STEPS = 5


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliability") / "out"
    asked = ["solvers=unrolled,neumann,unrolled_forward", "neumann.terms=3", f"reliability={STEPS}"]
    point = [f"damping={DAMPING}", "warmup=2", "rounds=1", "iterations=1"]
    assert main(["compare", *SMALL, *asked, *point, f"output={folder}"]) == 0
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    return folder, {row["name"]: row for row in rows}


def hypergradients_by_hand(solver, share=1.0):
    """The hypergradients at the point and the steps of ``compared``, as vectors."""
    engine = new_engine(build_recipe(compose_config(SMALL)))
    engine.recorded_steps = 2
    engine.run(2)
    levels = [engine.graph.problems[level] for level in engine.graph.passes("mask")]
    vectors = []
    for _ in range(STEPS):
        engine.advance()
        for level in levels:
            level.solve_share = share
        vectors.append(flatten(engine.solve_hypergradient("mask", {level.name: solver for level in levels}).values))
        for level in levels:
            level.solve_share = 1.0
    return vectors


def mean_cosine(vectors):
    total = sum(vectors)
    return fmean(cosine_similarity(vector, total - vector, dim=0).item() for vector in vectors)


@pytest.mark.parametrize(
    ("name", "solver"), [("unrolled", Unrolled()), ("neumann", Neumann(terms=3, damping=float(DAMPING)))]
)
def test_every_solver_is_measured_at_the_same_points(compared, name, solver):
    _, rows = compared
    measured = rows[name]["reliability"]
    assert measured["noise"]["value"] == pytest.approx(mean_cosine(hypergradients_by_hand(solver)), abs=1e-5)
    assert (measured["steps"], measured["examples"]) == (STEPS, 16)
    assert all(-1 <= measured[key][end] <= 1 for key in ("noise", "halves") for end in ("low", "value", "high"))


def test_a_solver_without_a_hypergradient_has_no_reliability(compared):
    _, rows = compared
    assert "solver.limit" in rows["unrolled_forward"]["problem"]
    assert "reliability" not in rows["unrolled_forward"]


def test_csv_and_table_have_the_figures_of_the_json_file(compared):
    folder, rows = compared
    with (folder / "compare.csv").open() as file:
        lines = {line["solver"]: line for line in csv.DictReader(file)}
    measured = rows["unrolled"]["reliability"]
    assert float(lines["unrolled"]["noise"]) == measured["noise"]["value"]
    assert float(lines["unrolled"]["halves_high"]) == measured["halves"]["high"]
    assert lines["unrolled_forward"]["noise"] == ""


def test_the_table_of_reliability():
    noise, halves = {"value": 0.3, "low": 0.2, "high": 0.4}, {"value": 0.5, "low": 0.4, "high": 0.6}
    figures = {"steps": 24, "examples": 64.0, "noise": noise, "halves": halves, "failed": ["finetune"]}
    known = {**figures, "cosine": 0.35, "limit": 0.7, "needed": {"0.5": 120, "0.8": None}}
    unknown = {**figures, "noise": halves, "cosine": None, "limit": None, "needed": {"0.5": None, "0.8": None}}
    rows = [
        {"solver": "refused", "reliability": {"problem": "no halves"}},
        {"solver": "known", "reliability": known},
        {"solver": "unknown", "reliability": {**unknown, "failed": []}},
        {"solver": "not measured", "problem": "diverged"},
    ]
    lines = [" ".join(line.split()) for line in compare.reliability_table(rows).splitlines()]
    assert lines[0] == "solver noise halves to mean ex. for 0.5 ex. for 0.8"
    assert lines[1] == "unknown 0.50 (0.40 to 0.60) 0.50 (0.40 to 0.60) ? ? ?"
    assert lines[2] == "known 0.30 (0.20 to 0.40) 0.50 (0.40 to 0.60) 0.35 120 none failed at finetune"
    assert lines[3] == "refused no halves"
    assert not any(line.startswith("not measured") for line in lines)


def test_a_share_of_the_batch_changes_the_solves_and_not_the_points(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_in_a_process", lambda call, *arguments: call(*arguments))
    asked = ["solvers=neumann", "neumann.terms=3", "shares=0.5", f"reliability={STEPS}", f"damping={DAMPING}"]
    assert main(["compare", *SMALL, *asked, "warmup=2", "rounds=1", "iterations=1", f"output={tmp_path / 'out'}"]) == 0
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    by_hand = hypergradients_by_hand(Neumann(terms=3, damping=float(DAMPING)), share=0.5)
    assert row["reliability"]["noise"]["value"] == pytest.approx(mean_cosine(by_hand), abs=1e-5)


def test_a_held_out_batch_of_1_has_no_halves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_in_a_process", lambda call, *arguments: call(*arguments))
    asked = ["solvers=identity", "reliability=4", "data.batch_size=1", "warmup=1", "rounds=1", "iterations=1"]
    assert main(["compare", *SMALL, *asked, f"output={tmp_path / 'out'}"]) == 0
    assert "has 1 row, and has no halves to compare: give the level batches of at least 2" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 3, -1])
def test_too_few_steps_are_refused(count, capsys):
    assert main(["compare", f"reliability={count}"]) == 2
    assert f"reliability: got {count}; expected" in capsys.readouterr().err


def test_a_run_says_that_its_hypergradients_are_noise(tmp_path, monkeypatch, capsys):
    def unusable(*arguments):
        raise SolveError("no reference")

    vectors = []

    class Kept(Diagnosis):
        def on_step(self, engine):
            super().on_step(engine)
            vectors.append(flatten(engine.histories["mask"].hypergradient))

    monkeypatch.setattr("multilevel.runs.training.Diagnosis", Kept)
    monkeypatch.setattr("multilevel.runs.diagnosis.reference_hypergradient", unusable)
    monkeypatch.setattr("multilevel.runs.diagnosis.NOISY", 1.1)  # any cosine is noise
    run = tmp_path / "run"
    assert main(["train", *SMALL, "steps=24", "diagnose=4", f"output={run}"]) == 0
    records = [json.loads(line) for line in (run / "diagnosis.jsonl").read_text().splitlines()]
    assert [(record["step"], record["error"]) for record in records] == [(step, None) for step in range(4, 25, 4)]
    assert all(record["noise"] is None for record in records[:4])
    for record, window in zip(records[4:], (vectors[:20], vectors[4:]), strict=True):
        assert record["noise"]["value"] == pytest.approx(mean_cosine(window), abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())["levels"]
    assert summary["mask"]["reliability"] == {"step": 24, **records[-1]["noise"]}
    assert "reliability" not in summary["pretrain"]
    printed = capsys.readouterr()
    assert "an update follows mostly noise" in printed.out
    assert "not compared: no reference" in printed.err


def test_noise_is_a_cosine_below_a_tenth():
    noise = {"step": 40, "value": 0.04, "low": -0.02, "high": 0.1}
    assert noise_message("mask", noise).startswith(
        "step 40: hypergradients of mask have a cosine of 0.04 (-0.02 to 0.10) with the mean of 19 others: an update "
    )
    assert noise_message("mask", {**noise, "value": 0.11}) is None
