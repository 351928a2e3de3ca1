"""The recipe new_recipe learns, along the right hypergradient."""

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels.classification import accuracy
from multilevel.runs.training import new_engine
from multilevel.solvers import Dense


def test_the_classifier_learns_and_the_penalties_move():
    recipe = build_recipe(compose_config(["recipe=new_recipe", "steps=30"]))
    strengths = recipe.graph.problems["penalty"].module.logarithms
    before = strengths.detach().clone()
    assert accuracy(recipe.classifier, *recipe.held_out) < 0.3
    new_engine(recipe).run(30)
    assert accuracy(recipe.classifier, *recipe.held_out) > 0.8
    assert (strengths != before).all()


def test_a_converged_solve_gives_the_hypergradient_of_a_dense_one_in_float64():
    solver = ["solver=conjugate_gradient", "solver.iterations=400"]
    recipe = build_recipe(compose_config(["recipe=new_recipe", *solver]))
    engine = new_engine(recipe)
    engine.run(5)
    hypergradient = engine.hypergradient("penalty")["logarithms"].double()
    exact = engine.solve_hypergradient("penalty", {"classify": Dense()}, "float64").values["logarithms"]
    assert (hypergradient - exact).norm() < 1e-4 * exact.norm()
