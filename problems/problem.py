"""Problem: one optimization level."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multilevel.problems.errors import GraphError
from multilevel.problems.levels import Levels
from multilevel.problems.parameter_module import ParameterModule
from multilevel.solvers import Solver
from multilevel.solvers.ranges import Count, PositiveNumber, PositiveShare, check_value, require
from multilevel.solvers.update_rules import maximizes

LossValue = Tensor | tuple[Tensor, Mapping[str, Any]]


class Problem:
    """One level of a multilevel problem: its parameters, its loss, and its updates.

    Args:
        name: the level's name in losses (``levels.NAME``); a Python identifier that begins with a letter.
        module: the module with the level's parameters. The level's variables are those that require a gradient and are
            in the optimizer (without an optimizer, all that require a gradient); levels share no variables. The graph
            initializes lazy modules by evaluating their loss on its first batch. For a bare nn.Parameter,
            ``levels.NAME`` is the tensor, and hypergradients call it "value".
        optimizer: any torch optimizer over this module's parameters whose ``step`` needs no closure; its parameter
            groups are kept. Hooks on parameters (``register_hook``, ``register_post_accumulate_grad_hook``) see the
            hypergradient of an update once, before clipping.
        data: any iterable of batches, restarted when it ends; None if the loss needs no batch. Tensors in a batch
            (tuples, lists, mappings, dataclasses, nested) are moved to the module's device.
        steps: updates of this level per update of the next level up.
        solver: how a hypergradient passes through this level; None takes the default solver if a level above depends on
            this level.
        reads: names of the levels that the loss reads, to pin them; None detects them.
        scheduler: learning rate scheduler, stepped after every update of this level. One whose ``step`` needs
            ``metrics``, such as ReduceLROnPlateau, gets the mean loss of the update.
        clip_norm: largest gradient norm of an update over all parameters; None does not clip.
        accumulate: number of batches to average over in one update.
        solve_share: share of each batch's rows for the solves at this level, with separate draws: less time and memory,
            and a noisier hypergradient. Updates use all rows.

    Raises:
        SettingError: steps, clip_norm, accumulate or solve_share out of range, or solve_share with a solver that
            differentiates whole updates.
        GraphError: no loss, a name that is not an identifier, an optimizer over parameters outside the module, an
            optimizer that maximizes in only some groups, an optimizer or a scheduler whose step needs arguments that it
            does not get, complex parameters, an embedding with max_norm or sparse gradients, or a module that is
            already sharded or replicated over ranks.

    Attributes:
        title: words for the level in pictures; empty: its name.
        panels: names of its metrics, and ``loss``, to plot on the same axes, by the title of these axes. Each other
            metric gets separate axes.

    Examples:
        A weight that follows a target held by another level:

        >>> class Follow(Problem):
        ...     def loss(self, levels, batch, draws):
        ...         return (levels.weight - levels.target).square().sum()
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> follow = Follow("weight", weight, optimizer=torch.optim.SGD([weight], 0.1), solver=Dense())
        >>> list(follow.variables())
        ['value']
    """

    title: ClassVar[str] = ""
    panels: ClassVar[Mapping[str, Sequence[str]]] = MappingProxyType({})

    def __init__(
        self,
        name: str,
        module: nn.Module | nn.Parameter,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        data: Iterable[Any] | None = None,
        steps: int = 1,
        solver: Solver | None = None,
        reads: Iterable[str] | None = None,
        scheduler: Any = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        solve_share: float = 1.0,
    ) -> None:
        if type(self).loss is Problem.loss and type(self).outputs is Problem.outputs:
            raise GraphError(f"{type(self).__name__} defines no loss (nor outputs and criterion instead)")
        if not isinstance(module, nn.Module | nn.Parameter):
            kind = type(module).__name__
            raise GraphError(f"the module of level {name!r} must be an nn.Module or an nn.Parameter; got {kind}")
        if not name.isidentifier() or name.startswith("_"):
            raise GraphError(
                "a level's name must be a Python identifier that begins with a letter, as losses write levels.NAME; "
                f"got {name!r}"
            )
        check_value(f"levels.{name}.steps", steps, Count)
        check_value(f"levels.{name}.accumulate", accumulate, Count)
        check_value(f"levels.{name}.clip_norm", clip_norm, PositiveNumber | None)
        self.name = name
        self.module: nn.Module = ParameterModule(module) if isinstance(module, nn.Parameter) else module
        self.optimizer = optimizer
        self.data = data
        self.steps = steps
        self.solver = solver
        self.reads = None if reads is None else tuple(reads)
        # Found in evaluations of the loss; None before the first.
        self.writes_to_batch: bool | None = None
        self.takes_gradients = False  # in parameters, by itself
        self.moving: set[str] = set()  # parameters that forward passes write to
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.check_share(solve_share, solver)
        self.solve_share = solve_share
        self._parts = list(self.module.modules())
        self._found: tuple[list[Any], dict[str, nn.Parameter]] = ([], {})  # variables, and the state that gave them
        check_whole(name, self.module)
        if optimizer is not None and len({bool(group.get("maximize")) for group in optimizer.param_groups}) > 1:
            raise GraphError(
                f"level {name!r}: its optimizer maximizes in some parameter groups and minimizes in others; a level "
                "has only one objective: negate terms in its loss instead"
            )
        parameter_ids = {id(parameter) for parameter in self.module.parameters()}
        if optimizer is not None and not {id(parameter) for parameter in self._optimized()} <= parameter_ids:
            raise GraphError(f"the optimizer of level {name!r} holds parameters that are not in its module")
        _check_gradients(self)
        _check_steps(self)

    def begin(self) -> None:
        """Called before this level's updates for each update of the next level up.

        A level that restarts every time, as in meta-learning, resets its variables and its optimizer here.
        """

    @property
    def starts_anew(self) -> bool:
        """Whether the level defines ``begin``."""
        return type(self).begin is not Problem.begin

    def loss(self, levels: Levels, batch: Any, draws: Any) -> LossValue:
        """The level's objective: a scalar tensor, or (scalar, {metric name: number or scalar tensor}).

        It must have no side effects: it may be evaluated at any parameters, any number of times per update.
        Everything random or discrete belongs in ``draw``; dropout is replayed automatically.
        A level may define ``outputs`` and ``criterion`` instead.
        """
        return self.criterion(self.outputs(levels, batch, draws), levels, batch, draws)

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Any:
        """The level's outputs: a tensor or a list of tensors. ``criterion`` turns them into the loss.

        A level that defines both supports Gauss-Newton curvature.
        """
        raise NotImplementedError

    def criterion(self, outputs: Any, levels: Levels, batch: Any, draws: Any) -> LossValue:
        """The loss of ``outputs``, convex in them; the level's own parameters enter only through the outputs."""
        raise NotImplementedError

    @property
    def sign(self) -> int:
        """-1 if the optimizer maximizes, so that the level minimizes its negated loss; else 1."""
        return -1 if maximizes(self.optimizer) else 1

    @property
    def declares_outputs(self) -> bool:
        """Whether the loss consists of ``outputs`` and ``criterion``."""
        return type(self).outputs is not Problem.outputs and type(self).loss is Problem.loss

    def draw(self, levels: Levels, batch: Any) -> Any:
        """Return everything random or discrete that the loss uses; called once per update, without gradients."""
        return None

    def variables(self) -> dict[str, nn.Parameter]:
        """The parameters that this level trains, by their names in the module.

        Raises:
            GraphError: the optimizer has parameters that are no longer in the module.
        """
        state = self._state()
        if state != self._found[0] or not self._found[1]:
            self._parts = list(self.module.modules())
            self._found = self._state(), self._find_variables()
        return dict(self._found[1])

    def _state(self) -> list[Any]:
        """The state that the variables depend on: submodules, parameters and their flags, and the optimizer's
        contents."""
        state: list[Any] = []
        for part in self._parts:
            state += map(id, part._modules.values())
            for parameter in part._parameters.values():
                state += id(parameter), parameter is not None and parameter.requires_grad
        for group in self.optimizer.param_groups if self.optimizer is not None else ():
            state += map(id, group["params"])
        return state

    def _find_variables(self) -> dict[str, nn.Parameter]:
        named = dict(self.module.named_parameters())
        trained = self._optimized() if self.optimizer is not None else list(named.values())
        trained_ids = {id(parameter) for parameter in trained}
        if not trained_ids <= {id(parameter) for parameter in named.values()}:
            raise GraphError(
                f"level {self.name!r}: its optimizer holds parameters that are no longer in its module, as after "
                "load_state_dict(assign=True): create the optimizer and the graph after such a change"
            )
        return {
            name: parameter
            for name, parameter in named.items()
            if parameter.requires_grad and id(parameter) in trained_ids
        }

    def check_share(self, share: float, solver: Solver | None) -> None:
        """Raise SettingError if ``solver`` cannot work on this share of each batch."""
        setting = f"levels.{self.name}.solve_share"
        check_value(setting, share, PositiveShare)
        if share < 1 and solver is not None:
            remedy = f"1, since {type(solver).__name__} differentiates whole updates"
            require(setting, share, not solver.recorded_steps, remedy)

    def _optimized(self) -> list[Tensor]:
        assert self.optimizer is not None
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def check_whole(name: str, module: nn.Module) -> None:
    """Raise GraphError for a module that is already distributed over ranks.

    Losses are evaluated at substituted parameters: the hooks of ``fully_shard`` would gather shards even when they are
    substituted, and ``DistributedDataParallel`` would average gradients a second time.
    """
    sharding = sys.modules.get("torch.distributed.tensor")  # half a second to import; sharding has imported it
    if sharding is not None and any(isinstance(parameter, sharding.DTensor) for parameter in module.parameters()):
        raise GraphError(
            f"level {name!r}: its parameters are sharded (fully_shard), and a loss cannot be evaluated at other "
            "values of shards; pass the whole module: under torchrun every rank holds all of it and averages "
            "derivatives"
        )
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise GraphError(f"level {name!r}: pass the module itself, not DistributedDataParallel: the engine averages")


def required_arguments(stepper: Any) -> list[str]:
    """The arguments that the ``step`` of an optimizer or a scheduler requires.

    Examples:
        >>> required_arguments(torch.optim.LBFGS([torch.zeros(1, requires_grad=True)]))
        ['closure']
    """
    _, *arguments = inspect.signature(type(stepper).step).parameters.values()  # a scheduler hides its optimizer's step
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [argument for argument in arguments if argument.default is argument.empty]
    return [argument.name for argument in required if argument.kind not in variadic]


def _check_steps(problem: Problem) -> None:
    """Raise GraphError if the step of the optimizer or the scheduler needs arguments that an update does not
    provide."""
    if problem.optimizer is not None and (missing := required_arguments(problem.optimizer)):
        raise GraphError(
            f"level {problem.name!r}: the step of {type(problem.optimizer).__name__} needs {', '.join(missing)}, but "
            "an update has only one gradient: use an optimizer whose step needs no arguments, such as Adam"
        )
    if problem.scheduler is not None and (missing := required_arguments(problem.scheduler)) not in ([], ["metrics"]):
        raise GraphError(
            f"level {problem.name!r}: the step of {type(problem.scheduler).__name__} needs {', '.join(missing)}: use "
            "a scheduler whose step needs no arguments, or only metrics, which gets the update's loss"
        )


def _check_gradients(problem: Problem) -> None:
    """Raise GraphError for a module with gradients that no solver supports, or that writes to its own parameters."""
    variables = problem.variables()
    for key, parameter in variables.items():
        if parameter.dtype.is_complex:
            raise GraphError(
                f"level {problem.name!r}: the parameter {key!r} is complex: use torch.view_as_real of it as the "
                "parameter, and torch.view_as_complex of that in the loss"
            )
    for key, part in problem.module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise GraphError(
                f"level {problem.name!r}: the module {key or type(part).__name__!r} is compiled by TorchScript, so it "
                "cannot be evaluated at other parameters: pass the original nn.Module"
            )
        if not isinstance(part, nn.Embedding | nn.EmbeddingBag):
            continue
        if part.max_norm is not None:
            raise GraphError(
                f"level {problem.name!r}: the embedding {key!r} has max_norm, which writes to its weights in every "
                "evaluation; divide by the norm in the loss instead"
            )
        if part.sparse and any(parameter is part.weight for parameter in variables.values()):
            raise GraphError(
                f"level {problem.name!r}: the embedding {key!r} has sparse gradients; set sparse=False, since "
                "gradients are dense here"
            )
