"""Every experiment composes, with the published numbers, and the command line wins over it."""

import pytest
from omegaconf import OmegaConf

from multilevel.configuration.composition import choices, compose_config, typed_settings
from multilevel.recipes.guided_mae import GuidedMaeSettings

PAPER = {
    "mask.policy": "topk", "mask.ratio": 0.75, "data.mask_share": 0.2, "model.width": 768, "model.depth": 12,
    "model.heads": 12, "levels.pretrain.steps": 2, "levels.finetune.steps": 1, "levels.mask.steps": 1,
    "levels.pretrain.optimizer": "adamw", "solver.name": "finite_difference",
}  # fmt: skip
CIFAR = {
    **PAPER, "model.patch_size": 2, "data.batch_size": 128, "levels.pretrain.learning_rate": 1e-4,
    "levels.finetune.learning_rate": 1e-3, "levels.mask.learning_rate": 1e-3,
}  # fmt: skip
EXPECTED = {
    "cifar10_paper": {**CIFAR, "data.name": "cifar10"},
    "cifar100_paper": {**CIFAR, "data.name": "cifar100"},
    "imagenet_paper": {
        **PAPER, "data.name": "imagenet", "model.patch_size": 16, "data.batch_size": 256,
        "levels.pretrain.learning_rate": 1.5e-4, "levels.pretrain.weight_decay": 0.05,
    },
    "cifar10_small": {"data.name": "cifar10", "model.patch_size": 4, "data.batch_size": 64, "model.width": 96},
}  # fmt: skip
EPOCHS = {"cifar10_paper": (50_000, 200), "cifar100_paper": (50_000, 200), "imagenet_paper": (1_281_167, 50)}


def test_every_experiment_is_known_here():
    assert choices("experiment") == sorted(EXPECTED)


@pytest.mark.parametrize("experiment", list(EXPECTED))
def test_its_values(experiment):
    config = compose_config([f"experiment={experiment}"])
    assert {key: OmegaConf.select(config, key) for key in EXPECTED[experiment]} == EXPECTED[experiment]
    settings = typed_settings(config, GuidedMaeSettings)
    settings.validate()


@pytest.mark.parametrize("experiment", list(EPOCHS))
def test_steps_are_the_published_epochs(experiment):
    images, epochs = EPOCHS[experiment]
    config = compose_config([f"experiment={experiment}"])
    pretrained = images - round(config.data.mask_share * images)
    assert config.steps * config.levels.pretrain.steps == epochs * (pretrained // config.data.batch_size)


def test_the_command_line_wins():
    config = compose_config(
        ["experiment=cifar10_paper", "steps=7", "data=digits", "mask.policy=random", "solver=neumann"]
    )
    assert (config.steps, config.data.name, config.mask.policy) == (7, "digits", "random")
    assert config.solver.name == "neumann"
    small = compose_config(["experiment=cifar10_small"]).model
    assert compose_config(["experiment=cifar10_small", "model=small"]).model != small
    assert compose_config(["experiment=cifar10_small", "init=somewhere"]).model.width == 0  # the checkpoint's
