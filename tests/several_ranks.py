"""Problems of three levels, evaluated on one of several ranks: ``python -m several_ranks FILE RANK COUNT OUTPUT``."""

import sys
from functools import partial
from pathlib import Path

import choices
import torch
import torch.distributed as dist
from solver_table import ROWS
from torch import nn
from toy import flat

from multilevel import Engine, Graph, Problem
from multilevel.problems import Callback, replicas
from multilevel.solvers import SOLVERS, SettingError

ROWS_OF_DATA = 8
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def dataset(dtype, seed):
    """Batches of inputs, targets and one number a sample that stands for a random draw."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((ROWS_OF_DATA, 2), (ROWS_OF_DATA,), (ROWS_OF_DATA, 2))
    return [tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)] * 2


class Model(nn.Module):
    """A network of two layers, with a running mean."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(2, 2)
        self.last = nn.Linear(2, 1, bias=False)
        self.unused = nn.Linear(1, 1, bias=False)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, inputs):
        self.mean.lerp_(inputs.detach().mean(0), 0.5)
        return self.last(torch.tanh(self.hidden(inputs)))[:, 0]


class Level(Problem):
    def draw(self, levels, batch):
        return 0.1 * batch[2]

    def outputs(self, levels, batch, draws):
        return getattr(levels, self.name)(batch[0] + draws)

    def criterion(self, outputs, levels, batch, draws):
        error = (outputs - batch[1]).square()
        return (error * self.weights(levels, batch)).mean() + self.penalty(levels)

    def weights(self, levels, batch):
        return torch.ones_like(batch[1])

    def penalty(self, levels):
        return 0.0


class Bottom(Level):
    def outputs(self, levels, batch, draws):
        fitted = levels.bottom(batch[0] + draws)
        shrunk = [getattr(part, name) for part in (levels.bottom.hidden, levels.bottom.last) for name in ("weight",)]
        return [fitted, *shrunk]

    def criterion(self, outputs, levels, batch, draws):
        weights = torch.sigmoid(levels.top(batch[0]))
        strength = levels.top.hidden.weight.exp()
        fit = ((outputs[0] - batch[1]).square() * weights).mean()
        return fit + 0.5 * (strength * outputs[1].square()).sum() + outputs[2].square().sum()


class Middle(Level):
    def outputs(self, levels, batch, draws):
        return levels.middle(batch[0] + draws) + levels.bottom(batch[0])

    def weights(self, levels, batch):
        return torch.sigmoid(levels.top(batch[0]))

    def penalty(self, levels):
        return sum(one.square().sum() for one in (levels.middle.hidden.weight, levels.middle.last.weight))


class Top(Level):
    def outputs(self, levels, batch, draws):
        return levels.bottom(batch[0])


class TopOfThree(Level):
    def outputs(self, levels, batch, draws):
        return levels.middle(batch[0]) + levels.bottom(batch[0])


class NestedMiddle(Middle):
    """Read by the bottom level too."""


class NestedBottom(Bottom):
    def criterion(self, outputs, levels, batch, draws):
        pull = levels.middle.last.weight.square().sum()
        return super().criterion(outputs, levels, batch, draws) + pull * outputs[2].square().sum()


TWO = {"bottom": Bottom, "top": Top}
THREE = {"bottom": Bottom, "middle": Middle, "top": TopOfThree}
NESTED = {"bottom": NestedBottom, "middle": NestedMiddle, "top": TopOfThree}


def problem(dtype, levels, solver, accumulate=1):
    torch.manual_seed(0)
    made = []
    for seed, (name, level) in enumerate(levels.items()):
        module = Model().to(dtype)
        made.append(
            level(
                name,
                module,
                optimizer=torch.optim.Adam(module.parameters(), 0.05),
                data=dataset(dtype, seed),
                solver=solver,
                steps=1 if name == "top" else 2,
                accumulate=accumulate,
            )
        )
    return Graph(*made)


def cases(dtype):
    """What makes a graph to train for a step and to differentiate, by name."""
    for row in ROWS:
        options = {"damping": 0.5} if hasattr(row.solver(), "damping") else {}
        yield str(row), partial(problem, dtype, TWO, row.solver(**options))
    for product in ("reverse", "forward"):
        solver = SOLVERS["conjugate_gradient"](product=product, damping=0.5, curvature="gauss_newton")
        yield f"gauss_newton-{product}-accumulated", partial(problem, dtype, THREE, solver, accumulate=2)
        solver = SOLVERS["conjugate_gradient"](product=product, damping=0.5, iterations=3)
        yield f"nested-{product}", partial(problem, dtype, NESTED, solver)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_update(self, engine, update):
        self.values.append(update.loss)


def evaluated(dtype):
    """Of each case after a step: all parameters and buffers, the top level's hypergradient, and the levels' losses."""
    found = {}
    for name, make in cases(DTYPES[dtype]):
        engine = Engine(make())
        losses = Losses()
        engine.callbacks.append(losses)
        engine.run(1)
        state = [one for part in engine.graph.problems.values() for one in part.module.state_dict().values()]
        found[name] = {
            "state": torch.cat([one.double().reshape(-1) for one in state]),
            "hypergradient": flat(engine.hypergradient("top")).double(),
            "losses": torch.tensor(losses.values, dtype=torch.float64),
        }
    return found


def drawn():
    """What a level draws."""

    class Drawing(Level):
        def draw(self, levels, batch):
            drawings.append(torch.rand(3))
            return super().draw(levels, batch)

    drawings = []
    module = Model()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    Engine(Graph(Drawing("only", module, optimizer=optimizer, data=dataset(torch.float32, 0)))).run(1)
    return drawings[-1]  # the first one was to find out what the loss reads


def chosen():
    """The hypergradient through the distribution of draws, by exact products."""
    return flat(Engine(choices.graph_of(SOLVERS["identity"](product="reverse"))).hypergradient("shift"))


def skipped(rank):
    """What an update comes to where the data of rank 1 alone is not finite: updates skipped, and the weights."""
    batch = dataset(torch.float32, 0)[0]
    broken = tuple(one.clone() for one in batch)
    broken[0][ROWS_OF_DATA // 2 :] = float("nan")
    torch.manual_seed(0)
    module = Model()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    engine = Engine(Graph(Level("only", module, optimizer=optimizer, data=[broken, batch])))
    engine.run(1)
    count, first = engine.skipped["only"], flat(module.state_dict()).clone()
    engine.run(1)
    return count, first, engine.skipped["only"], flat(module.state_dict())


def spread(rank):
    """Which rank did each of five tasks, and the error where the fourth fails."""
    tasks = [lambda place=place: (place, rank) for place in range(5)]
    done = replicas.spread(tasks)
    try:
        replicas.spread([*tasks[:3], fail, tasks[4]])
    except SettingError as error:
        return done, str(error)
    return done, None


def fail():
    raise SettingError("output", "here", "another place")


if __name__ == "__main__":
    file, rank, count, output = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(count))
    found = {dtype: evaluated(dtype) for dtype in DTYPES}
    found |= {"drawn": drawn(), "chosen": chosen(), "skipped": skipped(int(rank)), "spread": spread(int(rank))}
    torch.save(found, Path(output))
    dist.destroy_process_group()
