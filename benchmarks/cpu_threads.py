"""Measures from which size a second CPU thread pays: an outer step of the guided autoencoder on one thread and on all.

The size is the number of token elements in a batch: images x patches x width. Both sides take turns in one process.
``multilevel train`` takes one thread up to ``SMALL`` of ``recipes/guided_mae.py``, unless ``threads=N`` is given.

    python benchmarks/cpu_threads.py --rounds 9
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from side_by_side import Iterate, Spread, alternate, conditions, ratio

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.runs.training import new_engine

#: Model, images in a batch and pixels on a side, patches being of 4 x 4.
SIZES = [("tiny", 64, 16), ("mini", 64, 16), ("mini", 128, 16), ("tiny", 128, 32), ("mini", 128, 32)]
STEPS = 5  # of a round


def steps_on(threads: int, engine: Engine) -> Iterate:
    """Some outer steps on so many threads."""

    def iterate() -> None:
        torch.set_num_threads(threads)
        engine.run(STEPS)

    return iterate


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help=f"of {STEPS} counted steps on each side (default 5)")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train, at all sizes")
    options = parser.parse_intermixed_args(arguments)
    threads = torch.get_num_threads()
    print(conditions(options.rounds, "wall", options.overrides))
    for model, batch, pixels in SIZES:
        data = ["data=planted", f"data.batch_size={batch}", f"data.image_size={pixels}"]
        recipe = build_recipe(compose_config([*data, f"model={model}", *options.overrides]))
        seconds = alternate({count: steps_on(count, new_engine(recipe)) for count in (1, threads)}, options.rounds)
        once = Spread.of([second / STEPS for second in seconds[1]]).median
        print(
            f"{recipe.numbers_in_a_batch():>9,} numbers ({'small' if recipe.one_thread else 'large'}; {model}): "
            f"{once:.3f} s a step on one thread, {ratio(seconds[threads], seconds[1]).text()} times that on {threads}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
