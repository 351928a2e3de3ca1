"""Betty's programs as graphs: trained here they come to what Betty makes of them, where it is right."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from multilevel import Engine
from multilevel.betty.solvers import BETTY_COMMAND
from multilevel.solvers import DataError, Identity, Sama

pytest.importorskip("betty", reason=BETTY_COMMAND)

from betty.configs import Config, EngineConfig
from betty.engine import Engine as Betty
from betty.problems import ImplicitProblem
from betty_toy import Classify, difference, program
from toy import flat, relative_error

from multilevel.betty import BettyError, from_betty

CLOSE = 1e-5


def trained_by_betty(problems, dependencies, steps):
    Betty(problems, EngineConfig(train_iters=steps, valid_step=steps + 1), dependencies).run()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("darts", {"gradient_clipping": 0.1}),
        ("neumann", {"neumann_iterations": 3, "neumann_alpha": 0.5}),
        ("cg", {"cg_iterations": 1}),
        ("darts", {"darts_alpha": 0.1, "unroll_steps": 5}),
    ],
)
def test_a_program_comes_to_the_same(kind, options):
    theirs, ours = program(kind, **options), program(kind, **options)
    steps = options.get("unroll_steps", 2)
    trained_by_betty(*theirs, 10 * steps)
    Engine(from_betty(*ours)).run(10)
    assert difference(theirs[0], program(kind, **options)[0]) > 0.01  # both have trained
    assert difference(theirs[0], ours[0]) < CLOSE


class Encode(ImplicitProblem):
    def training_step(self, batch):
        return (self(batch[0]) - self.mask(batch[0])).square().mean() + 0.1 * self.module.weight.square().sum()


class Head(ImplicitProblem):
    def training_step(self, batch):
        return F.mse_loss(self(self.encode(batch[0])), batch[1]) + 0.1 * self.module.weight.square().sum()


class Mask(ImplicitProblem):
    def training_step(self, batch):
        return F.mse_loss(self.head(self.encode(batch[0])), batch[1]) + self.module.bias.square().sum()


def three_levels():
    """The structure of the guided autoencoder: the top reaches the lowest level by two paths."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.randn(60, 1)
    made = {}
    for part, (name, kind, sizes) in enumerate(
        [("encode", Encode, (4, 3)), ("head", Head, (3, 1)), ("mask", Mask, (4, 3))]
    ):
        module, rows = nn.Linear(*sizes), slice(20 * part, 20 * part + 20)
        config = Config(unroll_steps=3 if name == "encode" else 1, retain_graph=name == "mask")
        adam = torch.optim.Adam(module.parameters(), 0.01)
        made[name] = kind(name, config, module, adam, train_data_loader=[(x[rows], y[rows])])
    encode, head, mask = made.values()
    return [mask, head, encode], {"u2l": {mask: [encode]}, "l2u": {encode: [head, mask], head: [mask]}}


def test_three_levels_come_to_the_same_by_both_paths():
    theirs, ours = three_levels(), three_levels()
    trained_by_betty(*theirs, 15)
    graph = from_betty(*ours)
    assert graph.names == ("encode", "head", "mask")
    assert graph.reads == {"encode": ("mask",), "head": ("encode",), "mask": ("encode", "head")}
    Engine(graph).run(5)
    assert difference(theirs[0], ours[0]) < CLOSE


class Leaf(ImplicitProblem):
    def training_step(self, batch):
        return (self.module.weight - self.mask.module.weight.mean()).square().sum() + self(batch[0]).square().mean()


class Above(ImplicitProblem):
    def training_step(self, batch):
        return (self.one.module.weight + self.two.module.weight - 1).square().sum() + self.module.weight.square().sum()


def two_leaves(one=3, two=3):
    torch.manual_seed(0)
    batch, made = (torch.randn(8, 4), torch.zeros(8)), []
    for name, kind, steps in (("one", Leaf, one), ("two", Leaf, two), ("mask", Above, 1)):
        module, config = nn.Linear(4, 1), Config(unroll_steps=steps, retain_graph=True)
        adam = torch.optim.Adam(module.parameters(), 0.01)
        made.append(kind(name, config, module, adam, train_data_loader=[batch]))
    return made, {"u2l": {made[2]: made[:2]}, "l2u": {made[0]: [made[2]], made[1]: [made[2]]}}


def test_levels_beside_each_other_have_bettys_schedule():
    theirs, ours = two_leaves(), two_leaves()
    trained_by_betty(*theirs, 9)
    Engine(from_betty(*ours)).run(3)
    assert difference(theirs[0], ours[0]) < CLOSE


def test_dropout_in_a_training_step_is_replayed():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))
    engine = Engine(from_betty(*program(net=net)))
    engine.run(2)
    exact = engine.solve_hypergradient("weigh", {"classify": Identity()}).values
    assert relative_error(flat(engine.hypergradient("weigh")), flat(exact)) < 0.01  # other draws: above 1


def test_metrics_and_batches_are_bettys():
    problems, dependencies = program()
    graph = from_betty(problems, dependencies)
    batch = graph.batches["weigh"].peek()
    assert isinstance(batch, tuple)
    part = Engine(graph).updates.record_of("weigh")[0]
    _, metrics = Engine(graph).evaluator.loss("weigh", part, {})
    assert set(metrics) == {"accuracy"}


def test_each_of_several_loaders_starts_again_by_itself():
    def loaders():
        return [torch.tensor([1.0, 2.0])], [{"a": torch.tensor(3.0)}, {"a": torch.tensor(4.0)}]

    class Two(Classify):
        def training_step(self, batch):
            return self.module.weight.sum() * batch[0][0] * batch[1]["a"] + self.weigh.module.weight.sum()

    theirs, ours = (program(lower=Two, net=nn.Linear(4, 3)) for _ in range(2))
    for problems, _ in (theirs, ours):
        problems[0].train_data_loader = loaders()
    Betty(theirs[0], EngineConfig(), theirs[1])
    batches = from_betty(*ours).batches["classify"]
    for _ in range(5):
        assert theirs[0][0].get_batch() == batches.next()
    ours[0][0].train_data_loader = ([], [])
    with pytest.raises(DataError, match="a loader of problem 'classify' is empty"):
        from_betty(*ours)


def with_hook(name):
    return type("Hooked", (Classify,), {name: lambda self, *arguments: None})


def without_edge(key):
    problems, dependencies = program()
    return problems, {**dependencies, key: {}}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: program("sama"), "no solver here matches Betty's type='sama'; name one"),
        (lambda: program(darts_multitask=True), "darts_multitask=True"),
        (lambda: program(precision="bf16"), r"Config\(precision='bf16'\) has no effect on a level: Engine\(graph"),
        (lambda: program(warmup_steps=5), "warmup_steps=5"),
        (
            lambda: program(lower=with_hook("on_inner_loop_start")),
            "'classify' has on_inner_loop_start, which a level does not call",
        ),
        (lambda: without_edge("u2l"), "'classify' depends on 'weigh', which dependencies omit.* add it to 'u2l'"),
        (lambda: two_leaves(3, 2), "'one' and 'two' do not depend on each other and differ in unroll_steps"),
    ],
)
def test_what_a_graph_does_not_do_is_one_line(make, text):
    problems, dependencies = make()
    with pytest.raises(BettyError, match=text) as error:
        from_betty(problems, dependencies)
    assert "\n" not in str(error.value)


def test_a_solver_can_be_said():
    graph = from_betty(*program("sama"), solvers={"classify": Sama()})
    assert isinstance(graph.problems["classify"].solver, Sama)
    assert all(value.isfinite().all() for value in Engine(graph).hypergradient("weigh").values())
