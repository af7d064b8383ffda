"""A network's call without what `nn.Module` does around it.

Between two operations on tensors, a call of a module checks for hooks and looks its parameters and
parts up by name, in dictionaries of their own. Of a small network's call on a processor that takes
a third with one row and a twentieth with 64: the operations have meanwhile driven the interpreter's
own code and data out of the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

_KEPT_BY_MODULES = vars(nn.Module()).keys() - {"training"}


def lean(module: nn.Module, kind: type[nn.Module] | None = None) -> Any:
    """What computes as the module's `forward` does now, for evaluation; later changes are not seen.

    kind: a class of the module, whose methods are taken; its own if left out. Parameters are
    shared. Of a module, attributes, parts and methods are there under their names, without hooks;
    methods that `forward` calls may not use `super()`.
    """
    if isinstance(module, nn.ModuleList):
        return _Parts(map(lean, module))
    if type(module) is nn.Sequential:
        return _Chain(map(lean, module))
    if isinstance(module, nn.Identity | nn.Dropout):
        return _same
    chosen: Any = kind or type(module)
    own: Any = object.__new__(_lean_type(chosen))
    attributes = {k: value for k, value in vars(module).items() if k not in _KEPT_BY_MODULES}
    parts = {k: None if part is None else lean(part) for k, part in module._modules.items()}
    vars(own).update(attributes | module._parameters | module._buffers | parts)
    return own


class _Parts(list[Any]):
    """Of a `ModuleList`."""

    def children(self) -> Iterator[Any]:
        return iter(self)


class _Chain(list[Any]):
    """Of a `Sequential`."""

    def __call__(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
        return x


def _same(x: Tensor) -> Tensor:
    return x


@cache
def _lean_type(kind: Any) -> type:
    """A class with what `kind` has above `nn.Module`, whose call is its `forward`."""
    above = kind.__mro__[: kind.__mro__.index(nn.Module)]
    members = {name: value for one in reversed(above) for name, value in vars(one).items()}
    own = {name: value for name, value in members.items() if not name.startswith("__")}
    return type(f"Lean{kind.__name__}", (), own | {"__call__": kind.forward})
