"""What --help says."""

from __future__ import annotations

import importlib
import inspect

OVERVIEW = """multilevel: multilevel optimization in PyTorch

  multilevel train [SETTING=VALUE ...]       train a recipe (guided_mae on digits, where nothing else is said)
  multilevel train resume=RUN                go on with a run that was stopped
  multilevel compare [SETTING=VALUE ...]     accuracy, memory and time of every hypergradient solver at one point
  multilevel graph [SETTING=VALUE ...]       the levels of a recipe and who reads whom, as text and as graph.png
  multilevel evaluate RUN [SETTING=VALUE]    linear probe and nearest neighbours on a run's frozen encoder

multilevel COMMAND --help says more about a command."""

TRAIN = """multilevel train [--multirun] [SETTING=VALUE ...]

Trains all levels of a recipe together, then evaluates the encoder, and writes a run folder: config.yaml,
metrics.jsonl, summary.json, checkpoint/, curves.png, masks.png.

  multilevel train                                             digits, a few minutes on two cores
  multilevel train data=cifar10 data.path=DIR steps=2000       a local copy in parquet; without a path, from the hub
  multilevel train data=folder data.path=DIR                   your own images, a subfolder for each class
  multilevel train solver=neumann solver.terms=5               another hypergradient solver at every level
  multilevel train levels.pretrain.solver=conjugate_gradient levels.pretrain.solver.damping=0.1    ... at one level
  multilevel train --multirun mask.policy=random,topk,sampled  a run for each
  multilevel train experiment=cifar10_small data.path=DIR      published settings, and small ones; yours win
  multilevel train init=facebook/vit-mae-base data=folder data.path=DIR data.image_size=224    from a released MAE
  multilevel train resume=RUN                                  go on where the last checkpoint stands

Settings (all: the config.yaml of any run)
  steps               updates of the top level
  output              the run folder (runs/RECIPE-DATA-TIME)
  diagnose=N          compare with a reference hypergradient every N steps (diagnosis.jsonl)
  seed, device, precision=float32|bf16, checkpoint.every, evaluate=true|false
  data.batch_size, data.limit (use only so many training images), data.image_size, data.mask_share
  model.width, model.depth, model.heads, model.patch_size
  mask.policy, mask.ratio, mask.weights=normalized|raw, mask.gradient=weights|visibility|both, paths=both|direct
  mask.guidance, mask.temperature, mask.entropy_bonus (against collapse), mask.options (of the policy)
  levels.LEVEL.steps, .optimizer, .learning_rate, .weight_decay, .schedule, .warmup, .clip_norm, .accumulate, .solver"""

COMPARE = """multilevel compare [SETTING=VALUE ...]

Computes the top level's hypergradient at one and the same point with every solver, each in a process of its own, and
prints a table: relative error and cosine against a reference in float64 (dense where a level is small, else MINRES),
residual, peak memory beyond what training needs anyway, time, evaluations of losses and products. Writes
compare.json, compare.csv and compare.png. Settings are those of multilevel train, and

  solvers=A,B          which (all); A.OPTION=VALUE sets an option of one
  products=P,Q         try each solver with each of reverse, forward, finite_difference (its own)
  warmup=10            outer steps before the comparison
  resume=RUN           compare at a run's last checkpoint, after warmup steps from there (0 will do)
  damping=30           of the one system that every solver and the reference are given; too small a one leaves it
                       indefinite, and where the reference's residual is above 1e-6 there is no error column
  rounds=3             timed repetitions
  iterations=1000      most of the reference's MINRES

  multilevel compare recipe=guided_mae data=digits
  multilevel compare solvers=neumann,conjugate_gradient products=reverse,forward conjugate_gradient.iterations=40"""

GRAPH = """multilevel graph [SETTING=VALUE ...]

Prints the levels of a recipe, who reads whom and what each hypergradient goes through, and draws them
(output=FILE.png, graph.png where it is not given). Settings are those of multilevel train.

  multilevel graph recipe=guided_mae paths=direct"""

EVALUATE = """multilevel evaluate RUN [SETTING=VALUE ...]

A linear probe and k nearest neighbours on the frozen features of a run's encoder, beside those of an untrained
encoder and of raw pixels: fitted on the training labels, scored on the test split. Writes RUN/evaluation.json.

  multilevel evaluate runs/guided_mae-digits-20260101-120000 evaluation.max_images=1000"""


def help_for(command: str) -> str:
    """The help of one command, what its groups offer included."""
    if command == "evaluate":
        return EVALUATE
    return f"{ {'train': TRAIN, 'compare': COMPARE, 'graph': GRAPH}[command] }\n\n{_offers()}"


def _offers() -> str:
    # Only here, as these take seconds to import.
    choices = importlib.import_module("multilevel.configuration").choices
    solvers = importlib.import_module("multilevel.solvers").SOLVERS
    policies = importlib.import_module("multilevel.levels.masks").POLICIES
    lines = ["Choices"]
    lines += [
        f"  {group + '=':<14}{', '.join(choices(group))}" for group in ("recipe", "data", "model", "task", "experiment")
    ]
    lines.append(f"  mask.policy=  {', '.join(policies)}")
    for name, solver in solvers.items():
        lines.append(f"  solver={name}: {inspect.getdoc(importlib.import_module(solver.__module__))}")
        lines.append(f"      {', '.join(solver.__dataclass_fields__)}")
    return "\n".join(lines)
