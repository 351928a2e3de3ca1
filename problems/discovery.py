"""Discovers levels that a loss first reads at a later update."""

from __future__ import annotations

from multilevel.problems import replicas
from multilevel.problems.evaluation.evaluator import Evaluation, Evaluator
from multilevel.problems.evaluation.recorded_batch import RecordedBatch
from multilevel.problems.graph import Graph
from multilevel.problems.hypergradient import Gradients, differentiable_variables, differentiated


class Discovery:
    """Evaluates the losses of updates, and adds newly found dependencies to the graph's ``reads``.

    Args:
        graph: the levels.
        evaluator: evaluates their losses.
    """

    def __init__(self, graph: Graph, evaluator: Evaluator) -> None:
        self._graph = graph
        self._evaluator = evaluator
        #: For each level, the levels that its loss uses without a known dependency.
        self._used: dict[str, set[str]] = {name: set() for name in graph.names}
        self._seen: set[str] = set()

    def evaluate(
        self, name: str, part: RecordedBatch, inputs: Gradients, observed: bool
    ) -> tuple[Evaluation, Gradients]:
        """The loss of a level's update, and the variables to differentiate it in: more than ``inputs`` if it reads
        another level for the first time.

        A level that the loss uses enters with gradients enabled, so that the loss's graph shows whether it depends on
        the level. The generators must be at ``part.state``.

        Raises:
            ReadsError: the level's ``reads`` is pinned to fewer levels.
            GraphError: the loss uses a level's parameters other than through ``levels``.
        """
        used, graph = self._used[name], self._graph
        while True:
            unread = [level for level in graph.names if level not in (name, *graph.reads[name])]
            suspected = differentiable_variables(self._evaluator, used.intersection(unread)) if used else {}
            watched = [level for level in unread if level not in used]
            evaluation = self._evaluator.evaluate(name, part, {**suspected, **inputs}, watched, True, observed)
            touched = set().union(*replicas.gather(evaluation.touched)) if watched else set()
            if not touched:
                if not suspected and name in self._seen and not evaluation.uses_replaced:
                    return evaluation, inputs
                self._seen.add(name)
                if not graph.extend_reads(self._evaluator, name, evaluation.loss, {**suspected, **inputs}):
                    return evaluation, inputs
                inputs = differentiable_variables(self._evaluator, differentiated(graph, name))
            used |= touched
            del evaluation
            part.state.restore()
