"""Wrong input ends in one line on standard error, exit status 2, and leaves existing run folders alone."""

import pytest
from PIL import Image

from multilevel.__main__ import main

CASES = [
    (["foo"], "unknown command 'foo'; the commands are train, compare, study, recipes, graph, evaluate"),
    (["train", "recipe=none"], "recipe: got 'none'; expected one of architecture_search, "),
    (["train", "evaluation=null"], "evaluation: got None; expected one of protocols"),
    (["train", f"mask.options={'{a:' * 100}1{'}' * 100}"], "mask.options: got '{a:{a:{a:"),
    (["train", f"steps={'choice(' * 1000}1{')' * 1000}"], "steps: got 'choice(choice("),
    (["compare", f"shares={'[' * 3000}1{']' * 3000}"], "shares: got '[[[["),
    (["train", "=5"], "command line: got '=5'; expected SETTING=VALUE"),
    (["train", "steps=1,2"], "steps: got '1,2'; expected one value, [A,B] for a list, or --multirun"),
    (["train", "steps=null"], "steps: got 'null'; expected a whole number"),
    (["train", "solver.terms=5"], "solver.terms: got '5'; expected a setting of the chosen solver; terms belongs to"),
    (["train", "levels.mask.solver=neumann"], "levels.mask.solver: got 'neumann'; expected a known setting"),
    (["compare", "damping=inf"], "damping: got inf; expected a finite number of at least 0"),
    (["compare", "precisions=half"], "precisions: got 'half'; expected some of float32, bf16"),
    (["compare", "shares=1,0"], "shares: got 0.0; expected a list, each a share above 0 and at most 1"),
    (["compare", "shares=all"], "shares: got 'all'; expected a list, each a share above 0"),
    (["train", "levels.pretrain.solve_share=0"], "levels.pretrain.solve_share: got 0.0; expected a share above 0"),
    (["train", "solver=none"], "solver: got 'none'; expected one of auto, conjugate_gradient, dense, "),
    (["train", "levels.pretrain.solver=none"], "levels.pretrain.solver: got 'none'; expected one of"),
    (["train", "levels.mask.solver=neumann"], "levels.mask.solver: got "),
    (["train", "data=none"], "data: got 'none'; expected one of cifar10, cifar100, digits, folder, imagenet, planted"),
    (
        ["train", "experiment=none"],
        "experiment: got 'none'; expected one of cifar100_paper, cifar10_paper, cifar10_small, imagenet_paper",
    ),
    (["train", "model=none"], "model: got 'none'; expected one of base, checkpoint, mini, small, tiny"),
    (["train", "mask.policy=none"], "mask.policy: got 'none'; expected one of adversarial, attention, block, random, "),
    (
        ["train", "mask.policy=attention", "mask.options={hunt:0.1}"],
        "mask.options.hunt: got 0.1; expected a setting of attention: hint",
    ),
    (["train", "mask.options={hint:0.1}"], "mask.options.hint: got 0.1; expected a setting of sampled: none"),
    (["train", "mask.policy=attention", "mask.options={hint:2}"], "mask.options.hint: got 2; expected a share"),
    (["train", "mask.gradient=none"], "mask.gradient: got 'none'; expected one of weights, visibility, both"),
    (
        ["train", "mask.policy=topk", "mask.gradient=choice"],
        "mask.gradient: got 'choice'; expected weights, visibility or both, since choice needs a mask.policy that "
        "gives the likelihood of a draw: sampled",
    ),
    (["train", "mask.policy=random", "mask.gradient=weights+choice"], "mask.gradient: got 'weights+choice'; expected "),
    (
        ["train", "recipe=guided_text", "mask.policy=topk", "mask.gradient=choice"],
        "mask.gradient: got 'choice'; expected weights, visibility or both",
    ),
    (["train", "mask.guidance=1.5"], "mask.guidance: got 1.5; expected a share from 0 to 1"),
    (["train", "mask.temperature=0"], "mask.temperature: got 0.0; expected a number above 0"),
    (["train", "mask.entropy_bonus=-1"], "mask.entropy_bonus: got -1.0; expected a number of at least 0"),
    (["train", "mask.weights=none"], "mask.weights: got 'none'; expected one of normalized, raw"),
    (["train", "paths=none"], "paths: got 'none'; expected one of both, direct"),
    (["train", "precision=none"], "precision: got 'none'; expected one of float32, bf16"),
    (["train", "device=none"], "device: got 'none'; expected auto, or a device"),
    (["train", "maks.ratio=0.5"], "maks.ratio: got '0.5'; expected a known setting, such as mask.ratio"),
    (["train", "+extra=1"], "extra: got 1; expected a known setting"),
    (["train", "solver.terms=5"], "solver.terms: got '5'; expected a setting of the chosen solver"),
    (["train", "steps"], "steps: got 'steps'; expected SETTING=VALUE"),
    (["train", "steps=[1"], "steps: got '[1'; expected SETTING=VALUE"),
    (["train", "steps=many"], "steps: got 'many'; expected a whole number"),
    (["train", "solver.damping=much"], "solver.damping: got 'much'; expected a number"),
    (["train", "evaluate=perhaps"], "evaluate: got 'perhaps'; expected true or false"),
    (["train", "steps=0"], "steps: got 0; expected a whole number of at least 1"),
    (["train", "seed=-1"], "seed: got -1"),
    (["train", "diagnose=-1"], "diagnose: got -1"),
    (["train", "diagnose=often"], "diagnose: got 'often'; expected a whole number"),
    (["train", "checkpointing=perhaps"], "checkpointing: got 'perhaps'; expected true or false"),
    (["train", "approximate=perhaps"], "approximate: got 'perhaps'; expected true or false"),
    (["train", "checkpoint.every=0"], "checkpoint.every: got 0"),
    (["train", "evaluation.neighbours=0"], "evaluation.neighbours: got 0"),
    (["train", "evaluation.protocols=[svm]"], "evaluation.protocols: got 'svm'; expected some of finetune, head, knn"),
    (["train", "evaluation.protocols=knn"], "evaluation.protocols: got 'knn'; expected a list"),
    (["train", "evaluation.labels=0.1"], "evaluation.labels: got '0.1'; expected a list"),
    (["train", "evaluation.labels=[0]"], "evaluation.labels: got 0.0; expected a list, each a number above 0"),
    (["train", "evaluation.split=train"], "evaluation.split: got 'train'; expected one of test, validation"),
    (["train", "evaluation.split=validation"], "evaluation.split: got 'validation'; expected test, or data.validation"),
    (["train", "evaluation.metric=recall"], "evaluation.metric: got 'recall'; expected one of accuracy, balanced"),
    (["train", "data.validation_share=1"], "data.validation_share: got 1.0; expected a share of at least 0"),
    (["train", "evaluation.finetune.epochs=0"], "evaluation.finetune.epochs: got 0"),
    (["train", "mask.ratio=0"], "mask.ratio: got 0.0; expected a share above 0 and below 1"),
    (["train", "mask.ratio=1"], "mask.ratio: got 1.0; expected a share above 0 and below 1"),
    (["train", "mask.ratio=1.5"], "mask.ratio: got 1.5; expected a share above 0 and below 1"),
    (["train", "mask.ratio=0.99"], "mask.ratio: got 0.99; expected a share that hides at least one of 16 patches"),
    (["train", "model.patch_size=3"], "model.patch_size: got 3; expected a divisor of data.image_size=8"),
    (["train", "model.width=50"], "model.width: got 50; expected a multiple of 4 and of model.heads="),
    (
        ["train", "init={folder}/empty"],
        "expected a folder, or a name on the Hugging Face hub, of a ViTMAEForPreTraining checkpoint",
    ),
    (["train", "model.depth=0"], "model.depth: got 0"),
    (["train", "levels.pretrain.optimizer=lion"], "levels.pretrain.optimizer: got 'lion'; expected one of adamw"),
    (["train", "levels.pretrain.schedule=none"], "levels.pretrain.schedule: got 'none'; expected one of cosine"),
    (["train", "levels.finetune.learning_rate=0"], "levels.finetune.learning_rate: got 0.0"),
    (["train", "levels.mask.warmup=1"], "levels.mask.warmup: got 1.0"),
    (["train", "levels.pretrain.steps=0"], "levels.pretrain.steps: got 0"),
    (["train", "solver.damping=-1"], "solver.damping: got -1.0; expected a number of at least 0"),
    (
        ["train", "solver=finite_difference", "solver.product=reverse"],
        "solver.product: got 'reverse'; expected finite_difference",
    ),
    (
        ["train", "levels.pretrain.solver=neumann,dense"],
        "levels.pretrain.solver: got 'neumann,dense'; expected one solver",
    ),
    (["train", "solver=neumann", "solver.terms=0"], "solver.terms: got 0; expected a whole number of at least 1"),
    (
        ["train", "levels.pretrain.solver=neumann", "levels.pretrain.solver.terms=0"],
        "levels.pretrain.solver.terms: got 0",
    ),
    (["train", "data.batch_size=5000"], "fewer than data.batch_size=5000"),
    (["train", "data.mask_share=0"], "data.mask_share: got 0.0"),
    (
        ["train", "data=planted", "data.image_size=12"],
        "data.image_size: got 12; expected a multiple of 2 * data.patch_size=8",
    ),
    (["train", "data=folder"], "data.path: got None"),
    (["train", "data=folder", "data.path={folder}/nowhere"], "data.path"),
    (["train", "data=folder", "data.path={folder}/empty"], "no images"),
    (["train", "data=folder", "data.path={folder}/one", "data.batch_size=2"], "class"),
    (["train", "data=folder", "data.path={folder}/flat", "data.batch_size=2"], "the images have no labels"),
    (["train", "data=folder", "data.path={folder}/broken", "data.batch_size=2"], "cannot be read as an image"),
    (["train", "resume={folder}/nowhere"], "resume: got "),
    (["train", "resume={folder}/run", "steps=3"], "resume: got 'steps=3'; expected no other setting"),
    (["train", "resume={folder}/run"], "holds no checkpoint"),
    (["train", "output={folder}/run"], "a new or empty folder"),
    (["train", "output={folder}/run/config.yaml"], "a new or empty folder"),
    (["train", "--multirun", "output={folder}/new"], "output: got "),
    (["evaluate"], "one run folder: multilevel evaluate RUN"),
    (["evaluate", "{folder}/nowhere"], "evaluate: got "),
    (["evaluate", "{folder}/run"], "holds no checkpoint"),
    (
        ["evaluate", "{folder}/run", "evaluation.max_imges=3"],
        "evaluation.max_imges: got '3'; expected a known setting",
    ),
    (["graph", "solver=none"], "solver: got 'none'"),
    (["evaluate", "{folder}/run", "solver=neumann"], "solver: got 'neumann'; expected solver.SETTING=VALUE"),
    (["evaluate", "{folder}/run", "data=digits"], "data: got 'digits'; expected a data set other than the run's"),
    (["study", "metric=mean_iou"], "metric: got 'mean_iou'; expected a metric that linear_probe reports: accuracy"),
    (["study", "protocol=probing"], "protocol: got 'probing'; expected one of "),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("input")
    (root / "empty").mkdir()
    for name, classes in (("one", ["a"]), ("flat", [""]), ("broken", ["a", "b"])):
        for label in classes:
            (root / name / label).mkdir(parents=True, exist_ok=True)
            for index in range(12):
                Image.new("RGB", (64, 64), (20 * index, 0, 0)).save(root / name / label / f"{index}.png")
    (root / "broken" / "a" / "3.png").write_bytes(b"no image")
    assert main(["graph", f"output={root / 'graph.png'}"]) == 0
    from multilevel.configuration.composition import compose_config
    from multilevel.runs.folder import RunFolder

    RunFolder.create(root / "run", compose_config([]))
    return root


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "text"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_line_and_status_2(arguments, text, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder / "empty")
    before = contents(folder)
    assert main([argument.replace("{folder}", str(folder)) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("multilevel: ")
    assert text in lines[-1]
    assert len(lines) == 1
    assert contents(folder) == before
    assert list((folder / "empty").iterdir()) == []
