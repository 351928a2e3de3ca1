"""Tracks in-place changes by user code, so that autograd can differentiate them afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves, tree_map_only

from multilevel.solvers.stages import Key, Keyed, Stage

#: Methods that take values out of torch, where they cannot be tracked.
TAKING = frozenset("item tolist numpy __float__ __complex__ __array__ __dlpack__".split())
#: Operators with constant results, whatever their input.
CONSTANT = tuple(
    "rand normal bernoulli uniform exponential cauchy log_normal geometric new_ empty zeros ones full".split()
)


class NotFollowedError(Exception):
    """A change cannot be differentiated; the message says why."""


class Tracker(TorchDispatchMode):
    """Within its block, every operator runs normally, and again on shadows of its inputs, which autograd records.

    A shadow belongs to a storage, so that views, ``.data`` and ``.detach()`` of a tensor share it: hooks that write to
    ``.data`` or under no_grad mean to change a value, not to cut a derivative. The user's code sees the same tensors as
    without tracking: results, generators and weights are equal bit for bit. (A torch.compile function runs as written,
    as torch does under any such mode.)

    Args:
        slots: the tracked tensors; keys ("hook", ...) belong to an earlier tracker's ``hook_tensors``.
        snapshots: values of the tensors in which to detect changes outside torch's operators (such as through numpy).

    Attributes:
        hook_tensors: other tensors that depend on the slots and outlive the block, such as a hook's own averages.
    """

    def __init__(self, slots: Mapping[Key, Tensor], snapshots: Mapping[Key, Tensor]) -> None:
        super().__init__()
        self.reason = ""  # why tracking stopped
        # Aliases, since the user's code may replace the tensors' data.
        self.slots = {key: tensor.detach() for key, tensor in slots.items() if storage_of(tensor) is not None}
        self.snapshots = snapshots
        self.hook_tensors = {key: tensor for key, tensor in self.slots.items() if key[0] == "hook"}
        self._at: dict[int | None, list[Key]] = {}
        for key, tensor in self.slots.items():
            self._at.setdefault(storage_of(tensor), []).append(key)
        self._leaves: Keyed = {}
        #: For each tracked storage, itself (kept alive to prevent reuse) and its shadow, a flat tensor of its values.
        self._shadows: dict[int | None, tuple[StorageWeakRef, Tensor]] = {}
        self._most = 256  # number of shadows before those of freed storages are dropped
        self._written: set[int | None] = set()
        self._taken = False  # whether a value has left torch within this block
        self._paused = False
        self._watcher = Watcher(self)

    def __enter__(self) -> Tracker:
        self._taken = False
        super().__enter__()
        self._watcher.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watcher.__exit__(*exception)
        super().__exit__(*exception)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        if self._paused or self.reason or not any(self.follows(tensor) for tensor in tensors):
            return function(*arguments, **keywords)
        written = written_by(function, arguments, keywords)
        with self._explained(function):
            for tensor in tensors:
                self._prepare(tensor, is_in(tensor, written))
        result = function(*arguments, **keywords)
        if not self.reason:
            with self._explained(function):
                self._shadow(function, arguments, keywords, written, result)
        return result

    def follows(self, tensor: Tensor) -> bool:
        storage = storage_of(tensor)
        return storage in self._at or storage in self._shadows

    def take(self, tensor: Any) -> None:
        """Note that a value of ``tensor`` leaves torch."""
        if isinstance(tensor, Tensor) and not self._paused and self.follows(tensor):
            self._taken = True

    def stage(self, ends: Mapping[Key, Tensor]) -> Stage | None:
        """The change made in the blocks, with the current tensors of the slots in ``ends``; None without a change.

        Raises:
            NotFollowedError: a change could not be tracked.
        """
        ends = {**ends, **self.hook_tensors}
        homes = {key: storage_of(slot) for key, slot in self.slots.items()}
        moved = {key for key, end in ends.items() if homes.get(key) != storage_of(end)}
        unseen = {key for key, value in self.snapshots.items() if key in ends and not torch.equal(value, ends[key])}
        written = {key for key, end in ends.items() if storage_of(end) in self._written}
        if self.reason and moved | unseen | written:
            raise NotFollowedError(self.reason)
        outputs: Keyed = {}
        with recording():
            for key in moved | written:
                followed = storage_of(ends[key]) in self._shadows
                outputs[key] = self._view(ends[key]) if followed else ends[key].detach().clone()
        if unseen - set(outputs) or not all(close(output, ends[key]) for key, output in outputs.items()):
            raise NotFollowedError("a value was changed by something other than torch's operators")
        outputs |= self._keep_alive({storage_of(end) for end in ends.values()})
        return Stage(self._leaves, outputs) if outputs else None

    def _keep_alive(self, known: set[int | None]) -> Keyed:
        """Add tensors that are still alive to ``hook_tensors``. Returns their shadows."""
        outputs: Keyed = {}
        for storage, (reference, flat) in self._shadows.items():
            if flat.requires_grad and storage not in self._at and storage not in known and not reference.expired():
                alive = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
                self.hook_tensors["hook", str(storage)] = flat.detach().new_empty(0).set_(alive)
                outputs["hook", str(storage)] = flat
        return outputs

    def _prepare(self, tensor: Tensor, written: bool) -> None:
        """Create shadows of used slots, and of constants before they are written to."""
        storage = storage_of(tensor)
        if storage is None or storage in self._shadows:
            return
        keys = self._at.get(storage, [])
        if not keys and not (written and tensor.is_floating_point()):
            return
        with recording():
            flat = whole(tensor)
            for key in keys:
                slot = self.slots[key]
                value = self.snapshots.get(key, slot)
                self._leaves[key] = value.detach().clone().requires_grad_()
                flat = put(flat, self._leaves[key], slot)
            self._keep(tensor, flat)

    def _shadow(
        self, function: OpOverload, arguments: Any, keywords: Any, written: Sequence[Tensor], result: Any
    ) -> None:
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        results = [tensor for tensor in results if not self.follows(tensor)]
        if not results and not written:
            return  # a view, or a result without a derivative
        for tensor in written:
            storage = storage_of(tensor)
            if self._taken and storage in self._at:
                raise NotFollowedError(
                    "a number was taken out of a tensor (item(), float(), numpy()) before the change, which may "
                    "depend on it: keep it as a tensor, or read it afterwards"
                )
            self._written.add(storage)
        constant = function._schema.name.partition("::")[2].startswith(CONSTANT)
        if torch.Tag.nondeterministic_seeded in function.tags and not constant:
            raise NotFollowedError(f"{function} draws random numbers")
        with recording():
            if constant:
                for tensor in written:
                    if self.follows(tensor):
                        self._view(tensor).copy_(settled(tensor))
                return
            shadows = tree_leaves(self._again(function, arguments, keywords, written))
            pairs = [pair for pair in zip(tree_leaves(result), shadows, strict=True) if is_in(pair[0], results)]
            if results and not any(shadow.requires_grad for _, shadow in pairs) and self._depends(arguments, keywords):
                raise NotFollowedError(f"{function} has no derivative")
            for tensor, shadow in pairs:
                if shadow.requires_grad:
                    entry = self._shadows.get(storage_of(tensor))
                    self._keep(tensor, put(whole(tensor) if entry is None else entry[1], shadow, tensor))

    def _again(self, function: OpOverload, arguments: Any, keywords: Any, written: Sequence[Tensor]) -> Any:
        """Run the operator on the shadows."""

        def substitute(tensor: Tensor) -> Tensor:
            if self.follows(tensor):
                return self._view(tensor)
            return tensor.detach().clone() if is_in(tensor, written) else settled(tensor)

        if "out" in function._overloadname.split("_"):  # the out= overload does not have the derivative of its twin
            outs = {argument.name for argument in function._schema.arguments if argument.is_out}
            taken = {name: value for name, value in keywords.items() if name not in outs}
            result = function.overloadpacket(
                *tree_map_only(Tensor, substitute, arguments), **tree_map_only(Tensor, substitute, taken)
            )
            for tensor, shadow in zip(written, tree_leaves(result), strict=True):
                self._view(tensor).copy_(shadow)
            return result
        return function(*tree_map_only(Tensor, substitute, arguments), **tree_map_only(Tensor, substitute, keywords))

    def _depends(self, arguments: Any, keywords: Any) -> bool:
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        return any(self._view(tensor).requires_grad for tensor in tensors if self.follows(tensor))

    def _view(self, tensor: Tensor) -> Tensor:
        """The part of the shadow that belongs to ``tensor``."""
        flat = self._shadows[storage_of(tensor)][1]
        if flat.dtype != tensor.dtype:
            raise NotFollowedError("a tensor was reinterpreted as another dtype")
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _keep(self, tensor: Tensor, flat: Tensor) -> None:
        if len(self._shadows) >= self._most:
            live = {key: entry for key, entry in self._shadows.items() if key in self._at or not entry[0].expired()}
            self._shadows, self._most = live, 2 * len(live) + 256
        reference = StorageWeakRef(tensor.untyped_storage())
        self._shadows[reference.cdata] = (reference, flat)

    @contextmanager
    def _explained(self, function: Any) -> Iterator[None]:
        """Within the block, an error stops the tracking but not the user's code."""
        try:
            yield
        except NotFollowedError as error:
            self.reason = str(error)
        except Exception as error:
            self.reason = f"{function} could not be tracked ({' '.join(str(error).split())[:120]})"


class Watcher(TorchFunctionMode):
    """Notifies a tracker of values that leave torch."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if arguments and getattr(function, "__name__", "") in TAKING:
            self.tracker.take(arguments[0])
        return function(*arguments, **(keywords or {}))


@contextmanager
def untracked() -> Iterator[None]:
    """Within the block, a surrounding tracker tracks nothing."""
    tracker = _get_current_dispatch_mode()
    if not isinstance(tracker, Tracker):
        yield
        return
    tracker._paused = True
    try:
        with ExitStack() as stack:
            stack.enter_context(_pop_mode_temporarily())
            if torch.overrides._get_current_function_mode() is tracker._watcher:
                stack.enter_context(torch.overrides._pop_mode_temporarily())
            yield
    finally:
        tracker._paused = False


@contextmanager
def recording() -> Iterator[None]:
    """Within the block, autograd records in a dispatch mode, even if the user's code has turned it off, and saved
    tensors may be written to."""
    with (
        torch.inference_mode(False),
        torch._C._PreserveDispatchKeyGuard(),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda tensor: tensor),
    ):
        for key in (DispatchKey.AutogradFunctionality, DispatchKey.ADInplaceOrView):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        torch._C._dispatch_tls_set_dispatch_key_included(DispatchKey.ADInplaceOrView, True)
        yield


def storage_of(tensor: Tensor) -> int | None:
    """An identifier of a tensor's storage; None if it has none."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


def written_by(function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes to."""
    if not isinstance(function, OpOverload):
        return []
    written = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments[index] if index < len(arguments) else keywords.get(argument.name)
            written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return written


def settled(tensor: Tensor) -> Tensor:
    """A constant that autograd accepts."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """A flat copy of all values in a tensor's storage."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return settled(tensor).as_strided((count,), (1,), 0).clone()


def put(flat: Tensor, value: Tensor, target: Tensor) -> Tensor:
    """``flat`` with ``value`` written at the position of ``place`` in its storage."""
    result = flat.clone()  # torch's as_strided_scatter has a wrong derivative with respect to ``flat``
    result.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(value)
    return result


def is_in(tensor: Any, tensors: Sequence[Tensor]) -> bool:
    return any(tensor is member for member in tensors)


def close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors differ by no more than rounding."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    size = second.detach().abs().max().item() if second.numel() else 0.0
    tolerance = torch.finfo(second.dtype).eps ** 0.75
    return torch.allclose(first.detach(), second.detach(), rtol=tolerance, atol=tolerance * size, equal_nan=True)
