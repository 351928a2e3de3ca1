"""The examples in docstrings print what they say, and everything public has one."""

import doctest
import importlib
import inspect
from dataclasses import replace

import pytest
import torch
from test_architecture import MODULES
from torch import nn

import multilevel
from multilevel import Engine, Graph, Problem, configuration, loggers, problems, solvers
from multilevel.betty.solvers import BETTY_COMMAND
from multilevel.levels.masks import POLICIES, MaskPolicy, MaskView
from multilevel.solvers import SOLVERS, LowerLevel, products
from multilevel.solvers.linear_system import Solution
from multilevel.solvers.update_rules import UpdateRule

#: Docstrings whose names the others go on to use, each after those before it.
SHARED = [LowerLevel, MaskView, Problem, Graph, Engine]
NAMES = {
    **{name: getattr(solvers, name) for name in solvers.__all__},
    **{"Engine": Engine, "Graph": Graph, "MaskView": MaskView, "Problem": Problem, "Solution": Solution},
    **{"UpdateRule": UpdateRule, "nn": nn, "replace": replace, "torch": torch},
}
#: Data that passes between engine and solver, and errors: nobody constructs these by hand.
WITHOUT = {"Levels", "Update", "Reads", "ProductChoice", "Step", "Solution", "Response", "SolveReport", "Products"}


def examples_in(module):
    found = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__, globs={})
    return [test for test in found if test.examples]


def with_examples():
    for name, path in sorted(MODULES.items()):
        if ">>>" in path.read_text() and "templates" not in name:
            yield name


def run(test, names):
    test.globs = names
    printed = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        test, out=printed.append, clear_globs=False
    )
    assert results.failed == 0, "".join(printed)


def shared_names(folder):
    torch.manual_seed(0)
    shared = {**NAMES, "folder": folder}
    for kind in SHARED:
        (test,) = doctest.DocTestFinder(recurse=False).find(kind, kind.__name__, globs={})
        run(test, shared)
    return shared


@pytest.mark.parametrize("module", list(with_examples()))
def test_examples_print_what_they_say(module, tmp_path):
    if module.startswith("multilevel.betty"):
        pytest.importorskip("betty", reason=BETTY_COMMAND)
    imported = importlib.import_module(module)
    tests = examples_in(imported)
    assert tests, f"{module}: an example that no test finds"
    for test in tests:
        if test.name.rpartition(".")[2] not in {kind.__name__ for kind in SHARED}:
            run(test, {**vars(imported), **shared_names(tmp_path / test.name)})


def public():
    for package in (multilevel, problems, solvers, products, configuration, loggers):
        for name in package.__all__:
            member = getattr(package, name)
            if (
                (inspect.isclass(member) or inspect.isroutine(member))
                and name not in WITHOUT
                and not (inspect.isclass(member) and issubclass(member, Exception))
            ):
                yield member
    yield from (*SOLVERS.values(), *POLICIES.values(), MaskPolicy, MaskView)


@pytest.mark.parametrize("member", list(dict.fromkeys(public())), ids=lambda member: member.__name__)
def test_everything_public_has_a_short_example(member):
    (test,) = doctest.DocTestFinder(recurse=False).find(member, member.__name__, globs={})
    lines = sum(len(example.source.splitlines()) for example in test.examples)
    assert 1 <= lines <= 6, f"{member.__name__}: {lines} lines of examples"
    assert any(example.want for example in test.examples), f"{member.__name__}: an example without output"
