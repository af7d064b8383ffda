"""From options of the command line to the JSON request of an operation.

Three layers, each over the one before: `--request`, the options that have names, and `--set`.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

Document = dict[str, Any]


def read(text: str | None) -> Document:
    """The document of `--request`: JSON, `@FILE`, or `-` for standard input.

    Raises typer.BadParameter.
    """
    if text is None:
        return {}
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text()
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"no JSON can be read: {error}", param_hint="--request") from error
    if not isinstance(document, dict):
        raise typer.BadParameter("a JSON object is needed", param_hint="--request")
    return document


def build(base: Document, named: Mapping[str, Any], settings: Iterable[str]) -> Document:
    """The request. `named` are options by field, None where not given.

    Raises typer.BadParameter for what cannot be read.
    """
    request = merged(base, given(named))
    for setting in settings:
        request = merged(request, _read_setting(setting))
    return request


def sampler(
    base: Document,
    name: str | None,
    steps: int | None,
    solver: str | None,
    tolerance: float | None,
) -> Document | None:
    """The field `sampler` of these options; `steps` are the solver's where there is one."""
    known = base.get("sampler")
    chosen = name or (known.get("name") if isinstance(known, dict) else known)
    solves = solver is not None or tolerance is not None
    if chosen is None and solves:
        name = chosen = "pf_ode"
    if solves or chosen == "pf_ode":
        inner = ode_solver(solver, steps, tolerance)
        return given({"name": name, "solver": inner}) or None
    return given({"name": name, "steps": steps}) or None


def ode_solver(name: str | None, steps: int | None, tolerance: float | None) -> Document | None:
    """The field `solver` of these options; only the adaptive one has a tolerance."""
    if name is None and tolerance is not None:
        name = "adaptive"
    return given({"name": name, "steps": steps, "tolerance": tolerance}) or None


def given(options: Mapping[str, Any]) -> Document:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Document:
    """Both, `over` first, objects of one kind within them merged likewise."""
    result = dict(under)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(value, dict) and isinstance(below, dict) and _of_one_kind(below, value):
            value = merged(below, value)
        result[name] = value
    return result


def _of_one_kind(under: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether options of `under` can be those of `over`: it is no other sampler, say."""
    tags = [tag for tag in ("name", "kind") if tag in under and tag in over]
    return all(under[tag] == over[tag] for tag in tags)


def _read_setting(setting: str) -> Document:
    """`sampler.eta=0.5` as `{"sampler": {"eta": 0.5}}`; what is no JSON is a string."""
    path, sign, text = setting.partition("=")
    *outer, last = path.split(".")
    if not sign or not last or not all(outer):
        detail = f"given {setting!r}; write FIELD=VALUE, as in sampler.eta=0.5"
        raise typer.BadParameter(detail, param_hint="--set")
    try:
        found: Document = {last: json.loads(text)}
    except ValueError:
        found = {last: text}
    for name in reversed(outer):
        found = {name: found}
    return found
