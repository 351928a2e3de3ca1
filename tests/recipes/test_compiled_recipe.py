"""The guided autoencoder's modules are compiled whole, and a compiled run is the same run."""

import json

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Callback, Engine

SMALL = "data=digits data.batch_size=16 model.width=12 model.depth=1 model.decoder_width=12 model.heads=3".split()


class Losses(Callback):
    def __init__(self):
        self.losses, self.notices = [], []

    def on_update(self, engine, update):
        self.losses.append((update.level, update.loss, update.gradient_norm))

    def on_notice(self, engine, notice):
        self.notices.append(notice)


def counting(compiled):
    """A backend that keeps in ``compiled`` how often each of its graphs has been called."""

    def backend(graph, inputs):
        function, number = lookup_backend("aot_eager")(graph, inputs), len(compiled)
        compiled.append(0)

        def counted(*arguments):
            compiled[number] += 1
            return function(*arguments)

        return counted

    return backend


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_every_call_of_the_guided_autoencoder_is_compiled(precision):
    torch._dynamo.reset()
    calls: list[int] = []
    found = {}
    for backend in (False, counting(calls)):
        recipe = build_recipe(compose_config([*SMALL, f"precision={precision}"]))
        heard = Losses()
        Engine(recipe.graph, precision=precision, compile=backend, callbacks=[heard]).run(1)
        found[bool(backend)] = heard
    assert not found[True].notices
    # Updates alone: 3 for each of two of pretrain, 2 for finetune, 2 for mask.
    assert sum(calls) == 10
    for (level, loss, norm), (_, other, other_norm) in zip(found[True].losses, found[False].losses, strict=True):
        assert loss == pytest.approx(other, rel=1e-5 if precision == "float32" else 1e-2), level
        # differences of gradients in the arithmetic of the run
        assert norm == pytest.approx(other_norm, rel=1e-3 if precision == "float32" else 0.2), level


@pytest.mark.slow
def test_with_checkpointing_the_autoencoder_is_not_compiled_and_a_line_says_so():
    torch._dynamo.reset()
    calls: list[int] = []
    found = []
    for backend in (False, counting(calls)):
        heard = Losses()
        graph = build_recipe(compose_config([*SMALL, "checkpointing=true"])).graph
        Engine(graph, compile=backend, callbacks=[heard]).run(2)
        found.append([one[1:] for one in heard.losses])
    assert ["not compiled" in line for line in heard.notices] == [True]  # said once
    assert sum(calls) > 0
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_a_run_compiled_for_this_machine_is_the_run_that_is_not(tmp_path):
    torch._dynamo.reset()
    losses = {}
    for value in ("true", "false"):
        output = tmp_path / value
        given = [*SMALL, f"compile={value}", "steps=2", "evaluate=false", f"output={output}"]
        assert main(["train", *given]) == 0
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert not [line for line in lines if "notice" in line]
        losses[value] = [line["loss"] for line in lines]
    assert len(losses["true"]) == 8
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-5)
