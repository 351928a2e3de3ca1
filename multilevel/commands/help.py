"""What --help says."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

OVERVIEW = """multilevel: multilevel optimization in PyTorch

  multilevel train [SETTING=VALUE ...]       train a recipe (guided_mae on digits, where nothing else is said)
  multilevel train resume=RUN                go on with a run that was stopped
  multilevel compare [SETTING=VALUE ...]     accuracy, memory and time of every hypergradient solver at one point
  multilevel study [SETTING=VALUE ...]       does guided masking pay on this data? a report, with a verdict
  multilevel recipes [NAME ...]              what can be trained, a line each, or all about some
  multilevel graph [SETTING=VALUE ...]       the levels of a recipe and who reads whom, as text and as graph.png
  multilevel evaluate RUN [SETTING=VALUE]    score a run's encoder: linear probe, neighbours, finetuning, few labels
  multilevel export RUN [SETTING=VALUE]      a folder that transformers or onnxruntime loads
  multilevel predict EXPORT FILE ...         label images with an exported model, as CSV
  multilevel monitor EXPORT FOLDER           how far new images have drifted from the training ones
  multilevel new KIND NAME                   starting files for a recipe, level or solver of your own, with a test
  multilevel completion bash|zsh             a script that completes commands, settings and choices

multilevel COMMAND --help says more about a command."""

TRAIN = """multilevel train [--multirun] [SETTING=VALUE ...]

Trains all levels of a recipe together, then scores what they have learned, and writes a run folder: config.yaml,
metrics.jsonl, summary.json, checkpoint/, curves.png, and pictures of the recipe.

  multilevel train                                             digits, a few minutes on two cores
  multilevel train recipe=hyper_cleaning                       another recipe: multilevel recipes lists them
  multilevel train data=cifar10 data.path=DIR steps=2000       a local copy in parquet; without a path, from the hub
  multilevel train data=folder data.path=DIR                   your own images, a subfolder for each class
  multilevel train solver=neumann solver.terms=5               another hypergradient solver at every level
  multilevel train levels.pretrain.solver=conjugate_gradient levels.pretrain.solver.damping=0.1    ... at one level
  multilevel train task=segmentation data=folder data.path=DIR masks in masks/CLASS/NAME.png; task=detection: boxes
  multilevel train --multirun mask.policy=random,topk,sampled  a run for each
  multilevel train --multirun hydra/sweeper=optuna hydra.sweeper.n_trials=20 solver=conjugate_gradient \
      'solver.damping=tag(log,interval(0.001,10))' objective=levels.mask.last_loss      search (pip install
                                                               hydra-optuna-sweeper): the best is printed
  multilevel train experiment=cifar10_small data.path=DIR      published settings, and small ones; yours win
  multilevel train init=facebook/vit-mae-base data=folder data.path=DIR data.image_size=224    from a released MAE
  multilevel train resume=RUN                                  go on where the last checkpoint stands; Ctrl-C or SIGTERM
                                                               writes one after the step, a second one ends at once
  torchrun --standalone --nproc-per-node=2 -m multilevel train SETTING=VALUE ...   data-parallel: each rank takes its
                                                               share of every batch; with --max-restarts=3 and
                                                               output=FOLDER a lost rank is started again

Settings (all: the config.yaml of any run; those of a recipe of its own: recipes/config/recipe/NAME.yaml)
  steps               updates of the top level
  output              the run folder (runs/RECIPE-DATA-TIME)
  diagnose=N          compare with a reference hypergradient every N steps (diagnosis.jsonl)
  seed, device, precision=float32|bf16, checkpoint.every, evaluate=true|false
  checkpointing=true (activations are computed again instead of being kept: less memory, more time, the same result)
  compile=true (torch.compile in updates, wherever it works; needs a C++ compiler)
  engine=betty (Betty 0.2.1 runs the levels, with its own hypergradients: docs/from_betty.md)
  check=false (leaves out the comparison of each level's first products with products formed in another way)
  loggers=[tensorboard,mlflow], or MODULE.CLASS of your own
  max_skipped (updates in a row that may be skipped where a loss or hypergradient is not finite)
  data.batch_size, data.limit (use only so many training images), data.image_size, data.mask_share,
  data.fit=crop|stretch (how an image becomes a square),
  data.validation_share (held out, to choose settings by: evaluation.split=validation)
  evaluation.protocols, evaluation.labels, ... (see multilevel evaluate --help)
  data.image_column, .label_column, .mask_column, .boxes_column (found where not given), data.min_area (of a mark)
  data.mask_classes=binary|labels|values (what a mask says: a defect, one of its image's class, class numbers)
  task.loss=cross_entropy|balanced_cross_entropy, task.metric=accuracy|balanced_accuracy|macro_f1, task.overlap
  model.width, model.depth, model.heads, model.patch_size
  mask.policy, mask.ratio, mask.weights=normalized|raw, mask.gradient=weights|visibility|both, paths=both|direct
  mask.guidance, mask.temperature, mask.entropy_bonus (against collapse), mask.options (of the policy)
  levels.LEVEL.steps, .optimizer, .learning_rate, .weight_decay, .schedule, .warmup, .clip_norm, .accumulate, .solver,
  .solve_share (of each batch, that solves take)"""

COMPARE = """multilevel compare [SETTING=VALUE ...]

Computes the top level's hypergradient at one and the same point with every solver, each in a process of its own, and
prints a table: relative error and cosine against a reference in float64 (dense where a level is small, else MINRES),
residual, peak memory beyond what training needs anyway, time, evaluations of losses and products. Writes
compare.json, compare.csv and compare.png. Settings are those of multilevel train, and

  solvers=A,B          which (all); A.OPTION=VALUE sets an option of one; betty/darts, betty/neumann and betty/cg are
                       computed by Betty 0.2.1 (docs/from_betty.md), betty/neumann.neumann_iterations=5 sets an option
  products=P,Q         try each solver with each of forward, reverse, finite_difference, auto (its own)
  precisions=P,Q       try each with float32 and bf16 (the recipe's); the reference is in float64 all the same
  shares=1,0.5         try each with solves on so much of the batch; the reference takes all of it
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
  arm.NAME="A=B C=D"      a further arm with any settings of its own, such as another solver (the data stay the same)
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
  multilevel study data=cifar10 data.path=DIR policies=random,sampled,topk seeds=10 jobs=2 steps=2000
  multilevel study data=folder data.path=DIR policies=random arm.solved="solver=conjugate_gradient solver.damping=0.1"
"""

COMPLETION = """multilevel completion bash|zsh

Prints a script that completes commands, settings and choices. Into ~/.bashrc or ~/.zshrc:

  eval "$(multilevel completion bash)"

or, as printing takes seconds, once into a file that is read there: multilevel completion bash > FILE"""

RECIPES = """multilevel recipes [NAME ...]

A line for each recipe; of those that are named, all: what it learns, the published result that it follows, and its own
with the command.

  multilevel recipes hyper_cleaning"""

NEW = """multilevel new recipe|level|solver NAME [output=FOLDER]

Writes a short, working file for a recipe, a level or a solver of your own and a test of it, all or none, into the
current folder: recipes/NAME.py and recipes/config/recipe/NAME.yaml, levels/NAME.py or solvers/NAME.py, and
tests/test_NAME.py. It prints how to test it and how to use it.

  multilevel new solver my_solver
  MULTILEVEL_PATH=. python -m pytest tests/test_my_solver.py
  MULTILEVEL_PATH=. multilevel train solver=my_solver

MULTILEVEL_PATH lists folders, separated as in PATH, whose recipes/, levels/ and solvers/ (and recipes/config/GROUP/)
every command then finds beside the project's own. docs/extending.md goes through it step by step."""

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
  evaluation.references=true   score an untrained encoder and raw pixels as well
  evaluation.max_images=10000  training images that protocols are fitted to; null: all
  evaluation.neighbours, evaluation.batch_size, evaluation.seed
  data.name=NAME               another name for the file, where several sets are folders"""

EXPORT = """multilevel export RUN [SETTING=VALUE ...]

Writes a run's model into one folder, whole or not at all: configuration, weights, image processor, model card
(README.md), and features of a sample of the training images, for multilevel monitor.

  output=FOLDER        where to (RUN/export); it must not be there yet
  format=transformers  model.safetensors: AutoModel (the encoder), AutoModelForImageClassification (the finetuned
                       classifier) and ViTMAEForPreTraining (the autoencoder) load the folder
  format=onnx          model.onnx in its place, a classifier for onnxruntime: pixel_values [B, C, H, W], normalized,
                       to logits [B, classes] and features; checked against PyTorch to 1e-4
  data.path=DIR        and other settings of the run: where its data has moved

  multilevel export runs/guided_mae-digits-20260101-120000 format=onnx output=line"""

PREDICT = """multilevel predict EXPORT FILE ... [SETTING=VALUE ...]

Labels images (files, or folders of them) with what multilevel export has written, of either format; neither the run
nor its data is needed. Writes CSV: file, label, probability, error, and the probability of each class. A file that
cannot be read as an image has an empty label and the reason under error.

  output=predictions.csv    - prints to standard output
  batch_size=64             images at a time
  device=auto               where PyTorch computes

Exit status: 0; 1 where a file could not be read (the others are labelled); 2 for wrong input (nothing is written).

  multilevel predict runs/guided_mae-digits-20260101-120000/export images/ output=-"""

MONITOR = """multilevel monitor EXPORT FOLDER ... [SETTING=VALUE ...]

Says how far new images (files, or folders of them; at least {fewest}) have drifted from the training ones, by the
features of the exported encoder. Writes monitor.json and, beside it, monitor.png.

{rule}

  output=monitor.json
  batch_size=64             images at a time
  device=auto               where PyTorch computes

Exit status: 0 whatever the verdict; 1 where a file could not be read (it is named); 2 for wrong input.

  multilevel monitor runs/guided_mae-digits-20260101-120000/export images/today"""


def help_for(command: str) -> str:
    """The help of one command, what its groups offer included."""
    if command == "evaluate":
        return f"{EVALUATE}\n\n{_protocols()}"
    short = {"export": EXPORT, "predict": PREDICT, "recipes": RECIPES, "new": NEW, "completion": COMPLETION}
    if command in short:
        return short[command]
    if command == "monitor":
        drift = importlib.import_module("multilevel.recipes.export.drift")
        return MONITOR.format(fewest=drift.FEWEST, rule=drift.RULE)
    return f"{ {'train': TRAIN, 'compare': COMPARE, 'study': STUDY, 'graph': GRAPH}[command] }\n\n{_offers()}"


def _protocols() -> str:
    lines = ["Protocols"]
    for name, protocol in importlib.import_module("multilevel.recipes.evaluation").PROTOCOLS.items():
        lines.append(f"  {name}: {inspect.getdoc(protocol)}")
        options = [f"{one.name}={one.default}" for one in dataclasses.fields(protocol)]
        lines += [f"      evaluation.{name}.OPTION: {', '.join(options)}"] if options else []
    return "\n".join(lines)


def _offers() -> str:
    # Only here, as these take seconds to import.
    choices = importlib.import_module("multilevel.configuration.composition").choices
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
