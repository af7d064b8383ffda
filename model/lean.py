"""A network's call without what `nn.Module` does around it.

Between two operations on tensors, a call of a module checks for hooks, looks up its parameters and
parts among others and checks shapes again. A small network on a processor spends a fifth of its
time so: the operations have meanwhile driven the interpreter's own code and data out of the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn


def lean(module: nn.Module, kind: type[nn.Module] | None = None) -> Any:
    """What computes as the module's `forward` does now, for evaluation; later changes are not seen.

    kind: a class of the module, whose methods are taken; its own if left out. Parameters are
    shared. Of a module, attributes, parts and methods are there under their names,
    without hooks; methods that `forward` calls may not use `super()`.
    """
    if isinstance(module, nn.ModuleList):
        return _Parts(lean(part) for part in module)
    if isinstance(module, nn.Sequential):
        return module.forward
    if isinstance(module, nn.Identity | nn.Dropout):
        return _same
    chosen: Any = kind or type(module)
    own: Any = object.__new__(_lean_type(chosen))
    public = {name: value for name, value in vars(module).items() if name[0] != "_"}
    parts = {name: part and lean(part) for name, part in module._modules.items()}
    vars(own).update(public | module._parameters | module._buffers | parts)
    return own


class _Parts(list[Any]):
    """Of a `ModuleList`."""

    def children(self) -> Iterator[Any]:
        return iter(self)


def _same(x: Tensor) -> Tensor:
    return x


@cache
def _lean_type(kind: Any) -> type:
    """A class with what `kind` has above `nn.Module`, whose call is its `forward`."""
    above = kind.__mro__[: kind.__mro__.index(nn.Module)]
    members = {name: value for one in reversed(above) for name, value in vars(one).items()}
    public = {name: value for name, value in members.items() if not name.startswith("__")}
    return type(f"Lean{kind.__name__}", (), public | {"__call__": kind.forward})
