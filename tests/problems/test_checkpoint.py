"""Checkpoints: a resumed run is bit for bit the run that never stopped; broken ones are named errors."""

import copy
import itertools
import json
import os
import random
import resource
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from multilevel import Callback, Engine, Graph, Problem
from multilevel.problems import CheckpointError, Checkpointing, load_checkpoint, load_weights, save_checkpoint
from multilevel.problems.checkpoint import write_digests
from multilevel.solvers import ConjugateGradient, Neumann, SolveError, Unrolled

generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 5, generator=generator), torch.randn(40, 1, generator=generator)


class Fit(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        decay = (levels.decay.weight.exp() * levels.fit.last.weight**2).mean()
        return (levels.fit(x) - y).square().mean() + decay


class Decay(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.fit(x) - y).square().mean() + np.random.rand()


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Dropout(0.3))
        self.last = nn.Linear(width, 1)

    def forward(self, x):
        return self.last(self.layers(x))


def engine(width=5, names=("fit", "decay"), callbacks=(), solver=None):
    torch.manual_seed(0)
    net, decay = Net(width), nn.Linear(width, 1)
    data = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    adam, sgd = torch.optim.AdamW(net.parameters(), 0.01), torch.optim.SGD(decay.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda update: 0.99**update)
    fit = Fit(names[0], net, optimizer=adam, scheduler=scheduler, data=data, steps=3, solver=solver or Neumann())
    return Engine(Graph(fit, Decay(names[1], decay, optimizer=sgd, data=data)), seed=4, callbacks=callbacks)


def weights(of):
    return {
        f"{name}.{key}": value.clone()
        for name, problem in of.graph.problems.items()
        for key, value in problem.module.state_dict().items()
    }


def assert_equal(one, other):
    assert all(torch.equal(value, other[key]) for key, value in one.items())


class Updates(Callback):
    """Keeps what was logged of each update."""

    def __init__(self):
        self.seen = []

    def on_update(self, engine, update):
        self.seen.append((update.step, update.level, update.loss, update.gradient_norm, update.cosine, update.solves))


@pytest.mark.parametrize(
    "solver", [Neumann(), ConjugateGradient(iterations=2, damping=1.0, warm_start=True)], ids=["cold", "warm start"]
)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, solver):
    log, resumed_log = Updates(), Updates()
    whole = engine(solver=solver, callbacks=[log])
    whole.run(4)
    save_checkpoint(whole, tmp_path)
    log.seen.clear()
    whole.run(7)
    resumed = engine(solver=solver, callbacks=[resumed_log])
    load_checkpoint(resumed, tmp_path)
    assert resumed.step == 4
    torch.manual_seed(123)
    np.random.seed(123)
    resumed.run(7)
    assert_equal(weights(whole), weights(resumed))
    assert log.seen == resumed_log.seen


def test_checkpointing_keeps_the_newest_two_and_saves_the_last_step(tmp_path):
    (tmp_path / ".step-9.partial").mkdir()
    engine(callbacks=[Checkpointing(tmp_path, every=2)]).run(5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-5"]


def test_weights_alone(tmp_path):
    trained, fresh = engine(), engine()
    trained.run(2)
    save_checkpoint(trained, tmp_path)
    load_weights(fresh.graph, tmp_path)
    assert_equal(weights(trained), weights(fresh))


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    saved = save_checkpoint(engine(), tmp_path)
    files = ["digests.json", "state.json", "state.safetensors", "weights.safetensors"]
    assert sorted(path.name for path in saved.iterdir()) == files
    json.loads((saved / "state.json").read_text())


def cut(name, keep=0.5):
    def change(folder):
        path = folder / "step-1" / name
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

    return change


def remove(name):
    return lambda folder: (folder / "step-1" / name).unlink()


def empty(folder):
    for path in (folder / "step-1").iterdir():
        path.unlink()
    (folder / "step-1").rmdir()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (empty, "holds no checkpoint"),
        *(
            (cut(name), f"{name} is missing, cut off or altered")
            for name in ("weights.safetensors", "state.safetensors", "state.json")
        ),
        *((cut(name, 0), f"{name} is missing, cut off or altered") for name in ("weights.safetensors", "state.json")),
        *((remove(name), f"{name} is missing, cut off or altered") for name in ("weights.safetensors", "state.json")),
    ],
)
def test_a_broken_checkpoint_is_a_named_error_and_changes_nothing(tmp_path, change, text):
    trained = engine()
    trained.run(1)
    save_checkpoint(trained, tmp_path)
    change(tmp_path)
    fresh = engine()
    before = weights(fresh)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_checkpoint(fresh, tmp_path)
    assert "\n" not in str(caught.value)
    assert_equal(before, weights(fresh))
    assert fresh.step == 0


def flip(name, seed):
    """Change one bit."""

    def change(checkpoint):
        path = checkpoint / name
        content = bytearray(path.read_bytes())
        place = random.Random(seed).randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)

    return change


FILES = ("weights.safetensors", "state.safetensors", "state.json", "digests.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(5))
def test_after_a_flipped_bit_the_checkpoint_before_is_used_and_that_is_said(tmp_path, name, seed):
    trained, fresh = engine(), engine()
    trained.run(1)
    save_checkpoint(trained, tmp_path)
    expected = weights(trained)
    trained.run(1)
    flip(name, seed)(save_checkpoint(trained, tmp_path))
    (said,) = load_checkpoint(fresh, tmp_path)
    assert "step-2" in said
    assert "is missing, cut off or altered" in said
    assert said.endswith("; using step-1 instead")
    assert fresh.step == 1
    assert_equal(expected, weights(fresh))


def encoded(state, *names):
    """The pair of a name and its value in the encoded state."""
    for name in names[:-1]:
        state = next(value for key, value in state["dict"] if key == name)
    return next(pair for pair in state["dict"] if pair[0] == names[-1])


@pytest.mark.parametrize("step", ["1", None, -1, 1.5, float("inf"), True])
@pytest.mark.parametrize("names", [("step",), ("skipped", "fit")])
def test_a_number_of_steps_that_no_engine_has_is_a_named_error_and_changes_nothing(tmp_path, names, step):
    assert_refused(tmp_path, names, step, "is not a number of steps")


@pytest.mark.parametrize("state", [{"tuple": [3, {"tuple": [1]}]}, {"tuple": []}, None])
@pytest.mark.parametrize("name", ["python", "numpy", "cpu"])
def test_a_random_state_that_no_generator_has_is_a_named_error_and_changes_nothing(tmp_path, name, state):
    assert_refused(tmp_path, ("random", name), state, "is missing, cut off or altered")


def assert_refused(folder, names, value, text):
    trained = engine()
    trained.run(1)
    checkpoint = save_checkpoint(trained, folder)
    structure = json.loads((checkpoint / "state.json").read_text())
    encoded(structure, *names)[1] = value
    (checkpoint / "state.json").write_text(json.dumps(structure))
    write_digests(checkpoint)
    fresh = engine()
    before, generators = weights(fresh), (random.getstate(), torch.get_rng_state())
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint(fresh, folder)
    assert_equal(before, weights(fresh))
    assert fresh.step == 0
    assert random.getstate() == generators[0]
    assert torch.equal(torch.get_rng_state(), generators[1])


def test_weights_alone_need_no_other_file(tmp_path):
    trained, fresh = engine(), engine()
    trained.run(1)
    flip("state.safetensors", 0)(save_checkpoint(trained, tmp_path))
    assert load_weights(fresh.graph, tmp_path) == []
    assert_equal(weights(trained), weights(fresh))


@pytest.mark.parametrize("room", [100, 3000, 6000])
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, room):
    """The disk is full for this process once a file has ``room`` bytes."""
    trained = engine()
    trained.run(1)
    save_checkpoint(trained, tmp_path)
    before = weights(trained)
    trained.run(1)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        with pytest.raises(CheckpointError, match=r"step 2 cannot be written.*File too large") as caught:
            save_checkpoint(trained, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    fresh = engine()
    assert load_checkpoint(fresh, tmp_path) == []
    assert_equal(before, weights(fresh))


def test_an_older_checkpoint_that_was_gone_back_to_outlives_the_damaged_newer_one(tmp_path):
    trained = engine(callbacks=[Checkpointing(tmp_path, every=2)])
    trained.run(4)
    flip("state.safetensors", 0)(tmp_path / "step-4")
    again = engine()
    load_checkpoint(again, tmp_path)
    again.run(1)
    save_checkpoint(again, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]


KILLS = 50


def endless(folder):
    """A run that is started again, and never ends by itself."""
    one = engine(callbacks=[Checkpointing(folder, every=1)])
    if list(folder.glob("step-*")):
        load_checkpoint(one, folder)
    one.run(10**9)


def kill_at(number):
    """Kill this process before its n-th further operation on a file, whatever the time."""
    left = itertools.count(number, -1)

    def hook(event, arguments):
        if event.startswith(("open", "os.", "shutil.")) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_run_killed_at_50_random_moments_has_the_weights_of_one_that_was_not(tmp_path):
    folder, moments, reached = tmp_path / "killed", random.Random(0), [0]
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                kill_at(moments.randrange(40))
                endless(folder)
            finally:
                os._exit(1)
        moments.randrange(40)  # the child has drawn this number, from a copy of the generator
        assert os.waitpid(child, 0)[1] == signal.SIGKILL  # it had not ended
        survivor = engine()
        if list(folder.glob("step-*")):
            assert load_checkpoint(survivor, folder) == []  # a kill damages nothing
        assert survivor.step >= reached[-1]
        reached.append(survivor.step)
    assert len(set(reached)) > KILLS // 5  # it was at work when it was killed
    survivor.run(3)
    whole = engine()
    whole.run(survivor.step)
    assert_equal(weights(whole), weights(survivor))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_checkpoint(engine(), tmp_path / "none")


@pytest.mark.parametrize("load", [load_checkpoint, lambda one, folder: load_weights(one.graph, folder)])
def test_a_checkpoint_of_another_model_is_a_named_error(tmp_path, load):
    save_checkpoint(engine(), tmp_path)
    other = engine(width=6)
    before = weights(other)
    with pytest.raises(CheckpointError, match=r"another recipe: fit\.layers\.0\.weight has shape \[5, 5\] in it"):
        load(other, tmp_path)
    assert_equal(before, weights(other))


def test_what_cannot_be_held_is_a_named_error(tmp_path):
    one = engine()
    one.graph.problems["fit"].optimizer.param_groups[0]["odd"] = object()
    with pytest.raises(CheckpointError, match="holds a object, which a checkpoint cannot hold"):
        save_checkpoint(one, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_hypergradient_right_after_loading_is_that_of_an_engine_built_there():
    """Records of the updates before are of other batches."""
    one = engine()
    one.run(2)
    state = copy.deepcopy(one.state_dict())
    one.run(3)
    before = one.hypergradient("decay")["weight"]
    one.load_state_dict(copy.deepcopy(state))
    built = engine()
    built.load_state_dict(copy.deepcopy(state))
    found, expected = (each.hypergradient("decay") for each in (one, built))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(found["weight"], before)


def test_recorded_updates_are_dropped_where_a_state_is_loaded():
    one = engine(solver=Unrolled())
    one.run(2)
    one.load_state_dict(copy.deepcopy(one.state_dict()))
    with pytest.raises(SolveError, match="no update of the lower level is recorded"):
        one.hypergradient("decay")
