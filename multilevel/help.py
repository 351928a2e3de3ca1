"""What --help says."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

OVERVIEW = """multilevel: multilevel optimization in PyTorch

  multilevel train [SETTING=VALUE ...]       train a recipe (guided_mae on digits, where nothing else is said)
  multilevel train resume=RUN                go on with a run that was stopped
  multilevel compare [SETTING=VALUE ...]     accuracy, memory and time of every hypergradient solver at one point
  multilevel graph [SETTING=VALUE ...]       the levels of a recipe and who reads whom, as text and as graph.png
  multilevel evaluate RUN [SETTING=VALUE]    score a run's encoder: linear probe, neighbours, finetuning, few labels

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
  data.batch_size, data.limit (use only so many training images), data.image_size, data.mask_share,
  data.validation_share (held out, to choose settings by: evaluation.split=validation)
  evaluation.protocols, evaluation.labels, ... (see multilevel evaluate --help)
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

GRAPH = """multilevel graph [SETTING=VALUE ...]

Prints the levels of a recipe, who reads whom and what each hypergradient goes through, and draws them
(output=FILE.png, graph.png where it is not given). Settings are those of multilevel train.

  multilevel graph recipe=guided_mae paths=direct"""

EVALUATE = """multilevel evaluate RUN [SETTING=VALUE ...]

Scores a run's encoder beside an untrained one and raw pixels: each protocol is fitted to the labelled training images
and scored on the test split, on the run's own data or on another set. Writes RUN/evaluation.json, or
RUN/evaluation-NAME.json for another set. Every setting is one of multilevel train as well, for the end of a run.

  multilevel evaluate RUN evaluation.protocols=[linear_probe,finetune] evaluation.finetune.epochs=50
  multilevel evaluate RUN evaluation.labels=[0.01,0.1,1.0]             few labels: fitted to shares of them
  multilevel evaluate RUN data=cifar100 data.path=DIR                  another set: its images are brought to the size
                                                                       and channels that the encoder takes, and
                                                                       normalized by their own statistics

Settings
  evaluation.protocols=[A,B]   the task's own where it names none (linear_probe and knn for classification)
  evaluation.labels=[1.0]      shares of the labelled training images; small ones lie within larger ones
  evaluation.split=test        or validation, images that data.validation_share held out from training
  evaluation.metric            what the table shows: accuracy, balanced_accuracy, macro_f1, or one of the task's
  evaluation.max_images=10000  training images that protocols are fitted to; null: all
  evaluation.neighbours, evaluation.batch_size, evaluation.seed
  data.name=NAME               another name for the file, where several sets are folders"""


def help_for(command: str) -> str:
    """The help of one command, what its groups offer included."""
    if command == "evaluate":
        return f"{EVALUATE}\n\n{_protocols()}"
    return f"{ {'train': TRAIN, 'compare': COMPARE, 'graph': GRAPH}[command] }\n\n{_offers()}"


def _protocols() -> str:
    lines = ["Protocols"]
    for name, protocol in importlib.import_module("multilevel.recipes.evaluation").PROTOCOLS.items():
        lines.append(f"  {name}: {inspect.getdoc(protocol)}")
        options = [f"{one.name}={one.default}" for one in dataclasses.fields(protocol)]
        lines += [f"      evaluation.{name}.OPTION: {', '.join(options)}"] if options else []
    return "\n".join(lines)


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
