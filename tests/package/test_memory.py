"""The tracker of live tensors against closed counts, and against the resident size of a process."""

import json
import subprocess
import sys

import pytest
import torch

from multilevel.compare.memory import MemoryTracker

CPU = torch.device("cpu")
MIB = 2**20


def test_it_counts_what_lives_at_one_time():
    x = torch.ones(MIB // 4)
    with MemoryTracker(CPU) as tracker:
        y = x + 1
        z = y + 1
        del y
        w = z.view(-1, 2)[:, 0] + z.view(-1, 2)[:, 1]  # views are no storage of their own
        z.add_(1)
        del w
    assert tracker.peak == 2 * MIB


def test_what_was_there_before_does_not_count():
    x = torch.ones(MIB // 4)
    with MemoryTracker(CPU) as tracker:
        x.mul_(2)
        x.view(-1).sum()
    assert tracker.peak < 1024


def test_it_sees_backward_passes_and_function_transforms():
    weight = torch.randn(256, 1024)

    def loss(p):
        return (p @ p.T).tanh().square().sum()

    with MemoryTracker(CPU) as tracker:
        torch.func.jvp(torch.func.grad(loss), (weight,), (weight,))
    assert tracker.peak > 3 * MIB  # the gradient, its tangent and the product of the way there
    del weight


PRODUCTS = ["reverse", "forward", "finite_difference"]
OPTIONS = {"identity": {}, "conjugate_gradient": {"iterations": 3}}
MEASURED = """
import ctypes, json, sys, torch
from pathlib import Path
from multilevel.compare.memory import MemoryTracker
from multilevel.solvers import SOLVERS, LowerLevel

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

torch.manual_seed(0)
x, y = torch.randn(2048, 256), torch.randn(2048, 256)
parameters = {str(k): torch.randn(256, 256) / 16 for k in range(6)}

def loss(p, reads):
    hidden = x * reads["u"]["scale"]
    for weight in p.values():
        hidden = (hidden @ weight).tanh()
    return (hidden - y).square().mean()

lower = LowerLevel([loss], parameters, {"u": {"scale": torch.ones(256)}})
for name, options in json.loads(sys.argv[1]):
    solver = SOLVERS[name](**options)
    solver.respond(lower, parameters)  # kernels load their workspaces
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    solver.respond(lower, parameters)
    growth = resident("VmHWM") - before
    with MemoryTracker(torch.device("cpu")) as tracker:
        solver.respond(lower, parameters)
    print(json.dumps([tracker.peak, growth]))
"""


@pytest.fixture(scope="module")
def measured():
    """Tracked and resident bytes of each solver with each product, in a process of their own."""
    cases = [(name, product) for name in OPTIONS for product in PRODUCTS]
    asked = [(name, {**OPTIONS[name], "product": product}) for name, product in cases]
    # Large blocks go back to the system at once, so that the resident size is what lives.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_agrees_with_the_resident_size(name, product, measured):
    tracked, resident = measured[name, product]
    assert tracked > 20 * MIB
    assert tracked == pytest.approx(resident, rel=0.05)
