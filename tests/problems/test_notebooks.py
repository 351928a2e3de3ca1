"""What a notebook shows of a graph is what ``describe`` says."""

from xml.etree import ElementTree

import torch
from toy import toy_graph

from multilevel.problems.html import html_table
from multilevel.solvers import ConjugateGradient


def test_a_graph_is_a_table_of_its_levels():
    functions = {"low": lambda v: ((v["low"] - v["top"]) ** 2).sum(), "top": lambda v: (v["low"] ** 2).sum()}
    values = {"low": torch.ones(3), "top": torch.zeros(3)}
    graph = toy_graph(functions, values, {"low": ConjugateGradient()})
    shown = ElementTree.fromstring(graph._repr_html_())
    rows = [[cell.text or "" for cell in row] for row in shown.findall("./tbody/tr")]
    assert [row[:2] for row in rows] == [["top", "3 parameters"], ["low", "3 parameters"]]
    assert all(cell in graph.describe() for row in rows for cell in row)
    assert rows[1][-1] == str(ConjugateGradient())


def test_cells_are_escaped_and_a_short_row_fills_the_rest():
    shown = ElementTree.fromstring(html_table(("a", "b", "c"), [("<1>", "x & y")]))
    cells = shown.findall("./tbody/tr/td")
    assert [cell.text for cell in cells] == ["<1>", "x & y"]
    assert cells[1].get("colspan") == "2"
