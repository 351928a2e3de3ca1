"""The guided autoencoder's outer iteration on Betty 0.2.1 and here: parity, time and memory.

The same modules, initial weights, batches, masks, losses and optimizers (Adam: Betty loses AdamW's settings). An
iteration is 2 pretraining steps, 1 finetuning step and 1 mask step of a ViT 192 wide, 6 deep, with 3 heads and patches
of 4, on images of 32 x 32, 128 a batch. First the losses of every update of the first iteration are held against each
other; then all sides take turns in one process; memory is the growth of the resident size, each side in a process of
its own. Betty comes from ``pip install ... --target FOLDER``; without it the sides of multilevel run alone.

    PYTHONPATH=FOLDER python benchmarks/vs_betty.py
    PYTHONPATH=FOLDER python benchmarks/vs_betty.py --data DIR --sides betty,both,direct --rounds 9
    PYTHONPATH=FOLDER python benchmarks/vs_betty.py --variant neumann5="solver=neumann solver.terms=5" mask.policy=topk
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch
from betty_guided_mae import BETTY_RADIUS, MISSING, BettyRun
from guided_mae_step import PlainSteps, engine_iteration, recipe_of
from peers import BETTY_COMMAND
from side_by_side import Iterate, Spread, add_clock, alternate, conditions, in_own_process, ratio, resident_growth

from multilevel.problems import Callback, Engine
from multilevel.problems.callbacks import Update
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.guided_mae import GuidedMae
from multilevel.runs.training import new_engine
from multilevel.solvers.vectors import flatten

#: Sides of multilevel, and their settings.
VARIANTS = {
    "both": "paths=both solver=finite_difference",
    "both-reverse": "paths=both solver=identity solver.product=reverse",
    "both-forward": "paths=both solver=identity solver.product=forward",
    "direct": "paths=direct solver=finite_difference",
    "both-bf16": "paths=both solver=finite_difference precision=bf16",
    "direct-bf16": "paths=direct solver=finite_difference precision=bf16",
}
BETTY, PLAIN, EXACT = "betty", "plain", "both-reverse"
LEVELS = ("pretrain", "finetune", "mask")
ADAM = [
    f"levels.{level}.{setting}"
    for level in LEVELS
    for setting in ("optimizer=adam", "weight_decay=0.0", "schedule=constant", "warmup=0.0")
]
GENERATED = "data=planted data.image_size=32 data.channels=3 data.batch_size=128 data.flip=true data.crop_scale=0.6"
TOLERANCE = 1e-5  # of losses, relative
WARM = 3  # iterations over which memory is measured

#: A level's name and its loss, one pair an update.
Losses = list[tuple[str, float]]


class Sides:
    """Makes the sides of one comparison.

    Args:
        variants: settings of the sides of multilevel by name.
        shared: settings of all sides.
        radius: radius of Betty's finite differences.
    """

    def __init__(self, variants: dict[str, str], shared: list[str], radius: float) -> None:
        self.variants = variants
        self.shared = shared
        self.radius = radius

    def recipe(self, side: str) -> GuidedMae:
        # Betty and the plain steps have both paths, whatever the settings of all sides say.
        own = self.variants.get(side, "paths=both").split()
        paths = next(
            (one.partition("=")[2] for one in reversed([*self.shared, *own]) if one.startswith("paths=")), "both"
        )
        return recipe_of([*ADAM, *self.shared, *own], paths)

    def iterate(self, side: str, recipe: GuidedMae) -> Iterate:
        """One outer iteration of a side."""
        if side == BETTY:
            return BettyRun(recipe, self.radius).iterate
        return PlainSteps(recipe).iterate if side == PLAIN else engine_iteration(recipe)

    def first_iteration(self, side: str) -> tuple[Losses, torch.Tensor]:
        """The loss of each update, and the mask level's hypergradient, flat."""
        recipe, losses = self.recipe(side), []
        if side == BETTY:
            run = BettyRun(recipe, self.radius, lambda level, loss: losses.append((level, loss)))
            optimizer, iterate = run.levels["mask"].optimizer, run.iterate
            draws = RandomState.seeded(recipe.settings.seed).active()
        else:
            engine = new_engine(recipe)
            engine.callbacks.append(Told(lambda level, loss: losses.append((level, loss))))
            optimizer, iterate = recipe.graph.problems["mask"].optimizer, lambda: engine.run(1)
            draws = nullcontext()
        found: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(lambda *_: found.append(gradient_of(recipe)))
        with draws:
            iterate()
        return losses, found[0]


class Told(Callback):
    """Calls a function with (level, loss) after each update."""

    def __init__(self, tell: Callable[[str, float], None]) -> None:
        self.tell = tell

    def on_update(self, engine: Engine, update: Update) -> None:
        self.tell(update.level, update.loss)


def gradient_of(recipe: GuidedMae) -> torch.Tensor:
    """What the mask level's parameters hold as their gradient."""
    return flatten({name: one.grad.clone() for name, one in recipe.graph.problems["mask"].variables().items()})


def difference(ours: Losses, theirs: Losses) -> float:
    """Largest relative difference of two sides' losses.

    Raises:
        AssertionError: other updates, or a difference above the tolerance.
    """
    assert [level for level, _ in ours] == [level for level, _ in theirs], f"updates {ours} here, {theirs} on Betty"
    largest = max(abs(one - other) / abs(one) for (_, one), (_, other) in zip(ours, theirs, strict=True))
    assert largest <= TOLERANCE, f"losses differ by {largest:.1e}: {ours} here, {theirs} on Betty"
    return largest


def print_parity(sides: Sides) -> None:
    """Losses of the first iteration here and on Betty, and how far hypergradients are from exact products."""
    ours, exact = sides.first_iteration(EXACT)
    theirs, on_betty = sides.first_iteration(BETTY)
    print("first iteration    loss here   loss on Betty")
    for (level, one), (_, other) in zip(ours, theirs, strict=True):
        print(f"  {level:<14} {one:>12.7f}    {other:>12.7f}")
    print(f"losses agree within {difference(ours, theirs):.1e} (asserted: {TOLERANCE:.0e})")
    at_radius = Sides({"both": f"{VARIANTS['both']} solver.radius={sides.radius}"}, sides.shared, sides.radius)
    found = {
        f"Betty, radius {sides.radius}": on_betty,
        f"here, radius {sides.radius}": at_radius.first_iteration("both")[1],
        "here, radius chosen by itself": sides.first_iteration("both")[1],
    }
    print("hypergradient of the mask level by finite differences, against exact products")
    for name, one in found.items():
        error = ((one - exact).norm() / exact.norm()).item()
        cosine = torch.nn.functional.cosine_similarity(one, exact, dim=0).item()
        print(f"  {name:<30} relative error {error:.2g}, cosine {cosine:.4f}")


def print_costs(sides: Sides, names: list[str], seconds: dict[str, list[float]], memory: dict[str, float]) -> None:
    print(f"\n{'side':<14} {'seconds an iteration':<24} {'x Betty':<24} {'x plain steps':<24} {'MiB':>6}  x Betty")
    for name in names:
        against = [ratio(seconds[name], seconds[one]).text() if one in seconds else "-" for one in (BETTY, PLAIN)]
        grown = f"{memory[name]:>6.0f}" if memory else f"{'-':>6}"
        share = f"{memory[name] / memory[BETTY]:.2f}" if BETTY in memory else "-"
        print(f"{name:<14} {Spread.of(seconds[name]).text():<24} {against[0]:<24} {against[1]:<24} {grown}  {share}")
    for name in names:
        if name in sides.variants:
            print(f"{name}: {sides.variants[name]}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10 in parquet; without it images are generated")
    parser.add_argument("--rounds", type=int, default=5, help="timed iterations of each side (default 5)")
    parser.add_argument(
        "--sides",
        type=lambda text: text.split(","),
        metavar="A,B,C",
        help=f"which to run, of {BETTY}, {PLAIN} and the variants (default all)",
    )
    parser.add_argument("--variant", action="append", default=[], metavar='NAME="A=B C=D"', help="one more side")
    parser.add_argument("--radius", type=float, default=BETTY_RADIUS, help="Betty's darts_alpha (default 0.01)")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--no-parity", action="store_true", help="do not compare the first iteration")
    parser.add_argument("--memory-of", metavar="SIDE", help=argparse.SUPPRESS)
    add_clock(parser)
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="of all sides, as for multilevel train")
    options = parser.parse_intermixed_args(arguments)
    options.variants = VARIANTS | {name: text for name, _, text in (one.partition("=") for one in options.variant)}
    known = [BETTY, PLAIN, *options.variants]
    for name in options.sides or ():
        if name not in known:
            parser.error(f"argument --sides: got {name}; expected some of {', '.join(known)}")
    return options


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    data = ["data=cifar10", f"data.path={options.data}"] if options.data else GENERATED.split()
    sides = Sides(options.variants, [*data, *options.overrides], options.radius)
    if options.memory_of:
        recipe = sides.recipe(options.memory_of)
        print(resident_growth(lambda: sides.iterate(options.memory_of, recipe), WARM))
        return
    names = options.sides or [BETTY, PLAIN, *options.variants]
    if MISSING:
        print(f"Betty is not there ({MISSING}): {BETTY_COMMAND} --target FOLDER, then PYTHONPATH=FOLDER")
        names = [name for name in names if name != BETTY]
    elif BETTY in names and not options.no_parity:
        print_parity(sides)
    memory = {}
    if not options.no_memory:
        memory = {name: in_own_process(__file__, [*arguments, "--memory-of", name]) for name in names}
    iterations = {name: sides.iterate(name, sides.recipe(name)) for name in names}
    seconds = alternate(iterations, options.rounds, options.clock)
    print(conditions(options.rounds, options.clock, sides.shared))
    print_costs(sides, names, seconds, memory)


if __name__ == "__main__":
    main(sys.argv[1:])
