"""The setting checkpointing=true: the same run, its blocks' activations computed again."""

import pytest
import torch
from safetensors.torch import load_file

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe, compose_config

TINY = [
    "model.width=16", "model.heads=2", "model.depth=2", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "evaluation.max_images=100",
]  # fmt: skip


@pytest.mark.parametrize(
    "settings", [[], ["precision=bf16", "solver=identity", "solver.product=forward"]], ids=["float32", "bf16"]
)
def test_a_run_with_checkpointing_is_the_run_without(tmp_path, settings):
    weights = {}
    for value in ("false", "true"):
        folder = tmp_path / value
        given = ["steps=1", "evaluate=false", *settings, f"checkpointing={value}", f"output={folder}"]
        assert main(["train", *TINY, *given]) == 0
        weights[value] = load_file(folder / "checkpoint" / "step-1" / "weights.safetensors")
    assert any(key.startswith("mask.") for key in weights["true"])
    for key, one in weights["false"].items():
        torch.testing.assert_close(weights["true"][key], one, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_block_is_computed_again(checkpointing):
    recipe = build_recipe(compose_config([*TINY, f"checkpointing={str(checkpointing).lower()}"]))
    module = recipe.modules["pretrain"]
    calls = []
    for block in (*module.mae.vit.layers, *module.mae.decoder.decoder_layers):
        block.attention.register_forward_hook(lambda *_, block=block: calls.append(block))
    prediction, _ = module.reconstruct(torch.randn(2, 1, 8, 8), torch.rand(2, 16))
    assert len(calls) == 3
    prediction.sum().backward()
    assert len(calls) == (6 if checkpointing else 3)
    assert len(set(calls)) == 3


def test_a_run_with_checkpointing_is_evaluated_and_exported(tmp_path):
    folder = tmp_path / "run"
    assert main(["train", *TINY, "steps=1", "evaluate=false", "checkpointing=true", f"output={folder}"]) == 0
    fit = ["evaluation.protocols=[knn]", "evaluation.references=false"]
    assert main(["evaluate", str(folder), *fit]) == 0
    assert main(["export", str(folder), "head=own", "references=false"]) == 0


def test_a_run_from_before_the_setting_is_evaluated(tmp_path):
    folder = tmp_path / "run"
    assert main(["train", *TINY, "steps=1", "evaluate=false", f"output={folder}"]) == 0
    text = (folder / "config.yaml").read_text()
    assert "checkpointing: false\n" in text
    (folder / "config.yaml").write_text(text.replace("checkpointing: false\n", ""))
    assert main(["evaluate", str(folder), "evaluation.protocols=[knn]", "evaluation.references=false"]) == 0
