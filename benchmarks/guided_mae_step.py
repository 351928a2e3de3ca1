"""One outer iteration of the guided autoencoder against the same steps with no hypergradient: time and peak memory.

An iteration is 2 pretraining steps, 1 finetuning step and 1 mask step. The plain side is written by hand in PyTorch:
the same modules, optimizers, batches and masks, the probabilities of the masking network taken as constants, no graph
through the encoder while the head is finetuned, and as its mask step that level's loss and its gradient in head and
encoder. Times alternate in one process; memory is the growth of the resident size, each side in a process of its own.

    python benchmarks/guided_mae_step.py data=cifar10 data.path=DIR
    python benchmarks/guided_mae_step.py --rounds 20 precision=bf16 solver=neumann
    python benchmarks/guided_mae_step.py --other "solver=identity solver.product=forward"

With --other, the engine's sides run once more with those settings, as ``direct other`` and ``both other``.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn import functional as F

from multilevel.configuration import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.problems.levels import Levels
from multilevel.recipes.guided_mae import GuidedMae

SIDES = ("plain", "direct", "both")


def recipe_of(overrides: list[str], paths: str) -> GuidedMae:
    recipe = build_recipe(compose_config(["data=cifar10", "model=small", *overrides, f"paths={paths}"]))
    assert isinstance(recipe, GuidedMae)
    return recipe


def engine_iteration(recipe: GuidedMae) -> Callable[[], None]:
    """The iteration as multilevel does it."""
    engine = Engine(recipe.graph, precision=recipe.settings.precision)
    return lambda: engine.run(1)


def plain_iteration(recipe: GuidedMae) -> Callable[[], None]:
    """The iteration with no hypergradient."""
    levels, batches = recipe.graph.problems, recipe.graph.batches
    mae, head = recipe.modules["pretrain"], recipe.modules["finetune"]
    mixed = recipe.settings.precision == "bf16"
    # The handles that a loss is given; here they are the modules themselves.
    handles = Levels(lambda name: recipe.modules[name], recipe.graph.names)

    def autocast():
        return torch.autocast(recipe.device.type, dtype=torch.bfloat16) if mixed else nullcontext()

    def step(name: str, loss: torch.Tensor) -> None:
        loss.backward()
        levels[name].optimizer.step()
        levels[name].optimizer.zero_grad(set_to_none=True)
        levels[name].scheduler.step()

    def pretrain() -> None:
        batch = batches["pretrain"].next()
        recipe.modules["mask"].requires_grad_(False)
        with autocast():
            with torch.no_grad():
                draws = levels["pretrain"].draw(handles, batch)
            loss, _ = levels["pretrain"].loss(handles, batch, draws)
        step("pretrain", loss)

    def iterate() -> None:
        for _ in range(levels["pretrain"].steps):
            pretrain()
        images, labels = batches["finetune"].next()
        with autocast():
            with torch.no_grad():
                tokens = mae.encode(images)
            loss = F.cross_entropy(head(tokens).float(), labels)
        step("finetune", loss)
        images, labels = batches["mask"].next()
        with autocast():
            loss = F.cross_entropy(head(mae.encode(images)).float(), labels)
        loss.backward()
        for module in (mae, head):
            module.zero_grad(set_to_none=True)

    return iterate


def iteration(side: str, recipe: GuidedMae) -> Callable[[], None]:
    return plain_iteration(recipe) if side == "plain" else engine_iteration(recipe)


def recipe_for(side: str, overrides: list[str], other: list[str]) -> GuidedMae:
    paths, _, changed = side.partition(" ")
    return recipe_of(overrides + (other if changed else []), "both" if paths == "plain" else paths)


def measure_growth(side: str, overrides: list[str], other: list[str], iterations: int) -> float:
    """Largest resident size over some iterations, less the resident size before the engine is made, in MiB (Linux)."""
    recipe = recipe_for(side, overrides, other)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    iterate = iteration(side, recipe)
    for _ in range(iterations):
        iterate()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """A size of this process as the kernel keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def peak_memory(side: str, overrides: list[str], other: list[str], iterations: int) -> float:
    """Growth of a fresh process's largest resident size over its iterations, in MiB."""
    given = ["--memory-of", side, "--other", " ".join(other), "--rounds", str(iterations)]
    command = [sys.executable, __file__, *given, *overrides]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def times(sides: Sequence[str], overrides: list[str], other: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side's iterations, the sides taking turns; the first round warms up and does not count."""
    iterations = {side: iteration(side, recipe_for(side, overrides, other)) for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(rounds + 1):
        for side, iterate in iterations.items():
            start = time.perf_counter()
            iterate()
            if round_number:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed iterations of each side (default 9)")
    parser.add_argument("--other", default="", help="settings of the sides to run beside the first ones")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train")
    options = parser.parse_args()
    other = options.other.split()
    if options.memory_of:
        print(measure_growth(options.memory_of, options.overrides, other, options.rounds))
        return
    sides = [*SIDES, *(["direct other", "both other"] if other else [])]
    memory = {side: peak_memory(side, options.overrides, other, 4) for side in sides}
    seconds = times(sides, options.overrides, other, options.rounds)
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds, {' '.join(options.overrides)}")
    for side in sides:
        ratios = sorted(one / plain for one, plain in zip(seconds[side], seconds["plain"], strict=True))
        print(
            f"{side:<12} {statistics.median(seconds[side]):6.2f} s, {statistics.median(ratios):.2f}x the plain steps "
            f"(rounds {ratios[0]:.2f} to {ratios[-1]:.2f}); peak memory {memory[side]:6.0f} MiB, "
            f"{memory[side] / memory['plain']:.2f}x"
        )
    for side in ("direct", "both") if other else ():
        ratios = sorted(one / before for one, before in zip(seconds[f"{side} other"], seconds[side], strict=True))
        spread = f"(rounds {ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{side}: {options.other} takes {statistics.median(ratios):.2f}x {spread}")


if __name__ == "__main__":
    main()
