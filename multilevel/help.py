"""What --help says."""

from __future__ import annotations

import importlib
import inspect

OVERVIEW = """multilevel: multilevel optimization in PyTorch

  multilevel train [SETTING=VALUE ...]       train a recipe (guided_mae on digits, where nothing else is said)
  multilevel train resume=RUN                go on with a run that was stopped
  multilevel compare [SETTING=VALUE ...]     accuracy, memory and time of every hypergradient solver at one point
  multilevel study [SETTING=VALUE ...]       does guided masking pay on this data? a report, with a verdict
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
  multilevel train resume=RUN                                  go on where the last checkpoint stands

Settings (all: the config.yaml of any run)
  steps               updates of the top level
  output              the run folder (runs/RECIPE-DATA-TIME)
  diagnose=N          compare with a reference hypergradient every N steps (diagnosis.jsonl)
  seed, device, precision=float32|bf16, checkpoint.every, evaluate=true|false
  data.batch_size, data.limit (use only so many training images), data.image_size, data.mask_share
  model.width, model.depth, model.heads, model.patch_size
  mask.policy, mask.ratio, mask.weights=normalized|raw, paths=both|direct
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

STUDY = """multilevel study [SETTING=VALUE ...]

Does guided masking pay on your data, and at what cost? Trains the recipe with each way of masking at equal budget, over
seeds, evaluates every encoder on the same test split, and writes report.html (one file, opens offline), study.json and
pictures, with a verdict in one sentence: it pays, it does not pay, or this many seeds do not decide it and how many
more would. Every part is an ordinary run in FOLDER/runs. Settings are those of multilevel train, and

  policies=A,B            mask policies (random and the recipe's own); the first is the baseline, or baseline=A
  seeds=5                 how many, or which: seeds=0,3,7; the seeds are the pairs of the comparison
  labels=0.01,0.1,1.0     shares of the labels that the evaluation is given (1.0); the verdict is at the largest
  guidance=0.25,0.5       further arms: each learned policy with mask.guidance of these
  transfer=NAME           evaluate every encoder on another data set too: transfer.path=DIR, transfer.SETTING=VALUE
  equal=updates|time      the same number of pretraining updates, or the same training time: seconds a step are
                          measured once, before the first part, and the cheaper arms are given more steps
  metric, protocol        what the verdict is about (the task's own metric; linear_probe)
  minimum_effect=0.01     the smallest difference that would be worth it
  jobs=N                  parts side by side (1); each takes its share of the cores
  hydra/launcher=joblib   leave the parts to a Hydra launcher: joblib (pip install multilevel[study], jobs=N says how
                          many), or one for a cluster, such as submitit_slurm with hydra.launcher.partition=NAME
  output=FOLDER           where (runs/study-DATA-TIME)
  resume=FOLDER           go on with a study that was stopped; with seeds=8, add seeds to one that has ended

  multilevel study data=folder data.path=DIR
  multilevel study data=cifar10 data.path=DIR policies=random,sampled,topk seeds=10 jobs=2 steps=2000"""

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
    return f"{ {'train': TRAIN, 'compare': COMPARE, 'study': STUDY, 'graph': GRAPH}[command] }\n\n{_offers()}"


def _offers() -> str:
    # Only here, as these take seconds to import.
    choices = importlib.import_module("multilevel.configuration").choices
    solvers = importlib.import_module("multilevel.solvers").SOLVERS
    policies = importlib.import_module("multilevel.levels.masks").POLICIES
    lines = ["Choices"]
    lines += [f"  {group + '=':<14}{', '.join(choices(group))}" for group in ("recipe", "data", "model", "task")]
    lines.append(f"  mask.policy=  {', '.join(policies)}")
    for name, solver in solvers.items():
        lines.append(f"  solver={name}: {inspect.getdoc(importlib.import_module(solver.__module__))}")
        lines.append(f"      {', '.join(solver.__dataclass_fields__)}")
    return "\n".join(lines)
