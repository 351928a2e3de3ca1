from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import multilevel.recipes.config
from multilevel.configuration.composition import compose_config
from multilevel.recipes.data import DataSettings
from multilevel.solvers.errors import SettingError

CONFIGURATIONS = Path(multilevel.recipes.config.__file__).parent / "data"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", ""),
        ("path", ""),
        ("hub", " "),
        ("image_size", 0),
        ("image_size", 8.0),
        ("channels", 2),
        ("patch_size", 0),
        ("batch_size", -1),
        ("batch_size", True),
        ("mask_share", 1.0),
        ("mask_share", -0.1),
        ("mask_share", float("nan")),
        ("mask_share", "0.2"),
        ("test_share", 1.5),
        ("split_seed", -1),
        ("limit", 0),
        ("image_column", ""),
        ("train_split", ""),
        ("train_split", None),
        ("test_split", ""),
        ("flip", 1),
        ("crop_scale", 0.0),
        ("crop_scale", 1.1),
        ("memory_gib", -1.0),
    ],
)
def test_value_that_cannot_work_is_named(settings, setting, value):
    with pytest.raises(SettingError) as caught:
        settings(**{setting: value})
    assert caught.value.setting == f"data.{setting}"
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_the_ranges_are_accepted(settings):
    settings(mask_share=0.0, test_share=0.0, crop_scale=1.0, memory_gib=0, limit=1, batch_size=1)


def test_is_a_schema_for_configurations():
    schema = OmegaConf.structured(DataSettings)
    merged = OmegaConf.merge(
        schema,
        {"name": "a", "image_size": "16", "channels": 1, "patch_size": 2, "batch_size": 3, "limit": "7"},
    )
    settings = OmegaConf.to_object(merged)
    assert isinstance(settings, DataSettings)
    assert (settings.image_size, settings.limit, settings.path) == (16, 7, None)
    with pytest.raises(SettingError, match=r"data\.channels"):
        OmegaConf.to_object(OmegaConf.merge(merged, {"channels": 5}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "digits",
            {"hub": None, "image_size": 8, "channels": 1, "patch_size": 2, "batch_size": 64, "flip": False},
        ),
        (
            "cifar10",
            {"hub": "uoft-cs/cifar10", "image_column": "img", "label_column": "label", "patch_size": 4},
        ),
        ("cifar100", {"hub": "uoft-cs/cifar100", "image_column": "img", "label_column": "fine_label"}),
        (
            "imagenet",
            {"hub": "ILSVRC/imagenet-1k", "image_size": 224, "test_split": "validation", "crop_scale": 0.2},
        ),
        (
            "folder",
            {"hub": None, "path": None, "image_size": 64, "patch_size": 8, "batch_size": 32, "flip": True},
        ),
        ("planted", {"hub": None, "path": None, "flip": False}),
        ("surfaces", {"hub": None, "path": None, "image_size": 32, "channels": 1, "patch_size": 4, "flip": True}),
    ],
)
def test_every_configuration_fits_the_schema_and_gives_every_field(name, expected):
    values = compose_config([f"data={name}"]).data
    assert set(values) == set(OmegaConf.structured(DataSettings))
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataSettings), values))
    assert settings.name == name
    assert {field: getattr(settings, field) for field in expected} == expected
    assert settings.image_size % settings.patch_size == 0


def test_every_configuration_is_tested():
    assert {file.stem for file in CONFIGURATIONS.glob("*.yaml")} == {
        "digits",
        "cifar10",
        "cifar100",
        "imagenet",
        "folder",
        "planted",
        "surfaces",
    }
