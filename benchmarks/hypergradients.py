"""Compares every solver here with those of other libraries: error, evaluations and memory over condition number and
budget.

Two lower levels in float64, each at its minimum: a quadratic with a Hessian of given condition number, and a logistic
regression with a penalty for each weight, its inputs scaled to that condition. The ground truth is dense linear
algebra. A budget is a number of Hessian-vector products; a peer's solver is compared with ours of the same kind at the
same budget.

    python benchmarks/hypergradients.py
    python benchmarks/hypergradients.py --conditions 10 1e6 --budgets 20 --output results.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peers import available
from torch import Tensor
from tqdm import tqdm

from multilevel.compare.memory import MemoryTracker
from multilevel.solvers import SOLVERS, LowerLevel, MultilevelError, Step
from multilevel.solvers.update_rules import UpdateRule

SIZE = 100
FORWARD_BUDGET = 5
CPU = torch.device("cpu")
AHEAD = 1.05  # a peer is ahead where our error is more than this times its own


@dataclass
class Case:
    """A lower loss of (parameters [N], upper [M]), its point, and the exact contribution for a cotangent [N]."""

    loss: Callable[[Tensor, Tensor], Tensor]
    p: Tensor
    upper: Tensor
    cotangent: Tensor

    def __post_init__(self) -> None:
        self.calls = 0
        hessian = torch.func.hessian(self.loss)(self.p, self.upper)
        self.largest = torch.linalg.eigvalsh(hessian)[-1].item()
        x = torch.linalg.solve(hessian, self.cotangent)
        slope = torch.func.grad(self.loss)
        self.exact = -torch.func.vjp(lambda upper: slope(self.p, upper), self.upper)[1](x)[0]

    def counted(self, p: Tensor, upper: Tensor) -> Tensor:
        self.calls += 1
        return self.loss(p, upper)

    def level(self) -> LowerLevel:
        """As a solver sees it, with the gradient steps that lead to the point for those that unroll."""

        def loss(parameters: Any, reads: Any) -> Tensor:
            return self.counted(parameters["p"], reads["upper"]["value"])

        variable = torch.nn.Parameter(self.p.clone())
        rule = UpdateRule.of(torch.optim.SGD([variable], 1 / self.largest), {"p": variable})
        assert rule is not None
        parameters, reads = {"p": self.p}, {"upper": {"value": self.upper}}
        steps = [Step([loss], parameters, reads, rule)] * 80  # at the minimum a step stands still
        return LowerLevel([loss], parameters, reads, torch.float64, rule=rule, steps=steps)


def quadratic(condition: float) -> Case:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(randn(SIZE, SIZE))[0]
    matrix = basis @ torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), SIZE).double().diag() @ basis.T
    coupling, upper, cotangent = randn(SIZE, SIZE), randn(SIZE), randn(SIZE)
    p = torch.linalg.solve(matrix, coupling @ upper)
    return Case(lambda p, u: p @ matrix @ p / 2 - p @ coupling @ u, p, upper, cotangent)


def logistic(condition: float) -> Case:
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(0, -torch.log10(torch.tensor(condition)).item() / 2, SIZE).double()
    x, held_out = (torch.randn(400, SIZE, generator=generator, dtype=torch.float64) * scales for _ in range(2))
    truth = torch.randn(SIZE, generator=generator, dtype=torch.float64) / scales
    labels = (x @ truth + torch.randn(400, generator=generator).double() * 5 > 0).double()
    upper = torch.log(1e-2 * scales**2)

    def loss(p: Tensor, log_penalty: Tensor) -> Tensor:
        fit = torch.nn.functional.binary_cross_entropy_with_logits(x @ p, labels)
        return fit + (log_penalty.exp() * p.square()).sum() / 2

    p = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(50):
        p = p - torch.linalg.solve(torch.func.hessian(loss)(p, upper), torch.func.grad(loss)(p, upper))

    def above(p: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(held_out @ p, labels)

    return Case(loss, p, upper, torch.func.grad(above)(p))


CASES = {"quadratic": quadratic, "logistic": logistic}


def options_for(name: str, budget: int, case: Case) -> dict[str, Any]:
    """The settings that give a solver a budget."""
    step = 1 / case.largest
    known = {
        "terms": budget,
        "iterations": budget,
        "rank": budget,
        "steps": budget,
        "step_size": step,
        "tolerance": 0.0,
        "limit": 10**4,
    }
    if name == "identity":
        known["scale"] = step
    return {one.name: known[one.name] for one in fields(SOLVERS[name]) if one.name in known}  # type: ignore[arg-type]


def measured(case: Case, run: Callable[[], Tensor]) -> dict[str, Any]:
    """Error, evaluations of the loss and memory of one call."""
    case.calls = 0
    with MemoryTracker(CPU) as tracker:
        found = run()
    error = ((found - case.exact).norm() / case.exact.norm()).item()
    return {"error": error, "evaluations": case.calls, "memory_mib": tracker.peak / 2**20}


def rows_of(problem: str, condition: float, budget: int) -> list[dict[str, Any]]:
    """A row for each solver and peer."""
    case = CASES[problem](condition)
    peers, _ = available()
    place = {"problem": problem, "condition": condition, "budget": budget}
    rows = []
    for name, solver in SOLVERS.items():
        if name == "unrolled_forward" and budget > FORWARD_BUDGET:
            continue  # what unrolled computes, at a product for each upper parameter
        made = solver(**options_for(name, budget, case))

        def ours(made: Any = made) -> Tensor:
            return made.respond(case.level(), {"p": case.cotangent}).contributions["upper"]["value"]

        try:
            rows.append({**place, "solver": name, "kind": name, "peer": False, **measured(case, ours)})
        except MultilevelError as error:
            rows.append({**place, "solver": name, "kind": name, "peer": False, "problem_met": str(error)})
    for name, (kind, peer) in peers.items():

        def theirs(peer: Any = peer) -> Tensor:
            return peer(case.counted, case.p, case.upper, case.cotangent, budget, 1 / case.largest)

        rows.append({**place, "solver": name, "kind": kind, "peer": True, **measured(case, theirs)})
    return rows


def compared(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each peer: its error and ours of the same kind, and which is ahead."""
    lines = []
    for row in rows:
        if not row["peer"]:
            continue
        ours = next(
            one
            for one in rows
            if one["solver"] == row["kind"] and all(one[key] == row[key] for key in ("problem", "condition", "budget"))
        )
        # Below this both are at the limit of float64.
        floor = 1e-16 * row["condition"] * 100
        ahead = ours["error"] > AHEAD * row["error"] and ours["error"] > floor
        lines.append(
            f"{row['problem']:<10} {row['condition']:>8.0e} {row['budget']:>4}  {row['solver']:<26} "
            f"{row['error']:>9.2e} {row['memory_mib']:>7.2f}   {row['kind']:<20} {ours['error']:>9.2e} "
            f"{ours['memory_mib']:>7.2f}{'   the peer is ahead' if ahead else ''}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", type=float, nargs="+", default=[1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 20, 80])
    parser.add_argument("--output", type=Path, help="write every row to this file, as JSON")
    options = parser.parse_args()
    rows = []
    places = [(p, c, b) for p in CASES for c in options.conditions for b in options.budgets]
    for place in tqdm(places, disable=None):
        rows += rows_of(*place)
    print(f"{'problem':<10} {'condition':>8} {'budget':>4}  {'solver':<26} {'error':>9} {'evals':>6} {'MiB':>7}")
    for row in rows:
        if "problem_met" not in row:
            where = f"{row['problem']:<10} {row['condition']:>8.0e} {row['budget']:>4}  {row['solver']:<26}"
            print(f"{where} {row['error']:>9.2e} {row['evaluations']:>6} {row['memory_mib']:>7.2f}")
    print("\npeers (error, MiB) next to the solver of the same kind here (error, MiB), at equal budget")
    print("\n".join(compared(rows) + available()[1]))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
