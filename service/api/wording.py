"""What pydantic found wrong, said as the rest of the API says it: given, allowed, what to do."""

from collections.abc import Mapping
from typing import Any

KINDS = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer that fits into 64 bits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "list_type": "a list",
    "dict_type": "a JSON object",
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
}
"""What is needed where something of another kind was given, by pydantic's type of the error."""

BOUNDS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "{} or less"),
    "less_than": ("lt", "less than {}"),
}
"""The name of the bound in the error's context, and what is allowed."""

LENGTHS = {
    "too_short": ("min_length", "at least {} {}"),
    "too_long": ("max_length", "at most {} {}"),
    "string_too_short": ("min_length", "at least {} {}"),
    "string_too_long": ("max_length", "at most {} {}"),
}


def say(kind: str, context: Mapping[str, Any], given: Any, message: str) -> str:
    """An error's detail: what is needed and, where that is short, what was given.

    kind, context, message: pydantic's type, `ctx` and `msg` of it, the last for what has no words
    here.
    """
    return (_needed(kind, context) or message) + _shown(given)


def _needed(kind: str, context: Mapping[str, Any]) -> str | None:
    if kind in KINDS:
        return f"{KINDS[kind]} is needed"
    if kind in BOUNDS:
        name, allowed = BOUNDS[kind]
        bound = context[name]
        text = f"{bound:g}" if isinstance(bound, float) else str(bound)
        return f"{allowed.format(text)} is allowed"
    if kind in LENGTHS:
        name, allowed = LENGTHS[kind]
        count = context[name]
        thing = "character" if kind.startswith("string") else "entry"
        plural = thing if count == 1 else {"entry": "entries"}.get(thing, f"{thing}s")
        return f"{allowed.format(count, plural)} needed"
    if kind in ("literal_error", "enum"):
        return f"one of {context['expected']} is needed"
    return None


def _shown(given: Any) -> str:
    match given:
        case None:
            return ", given null"
        case bool():
            return f", given {str(given).lower()}"
        case int() | float() if len(text := repr(given)) <= 40:
            return f", given {text}"
        case str() if len(given) <= 100:
            return f", given {given!r}"
        case str():
            return f", given a string of {len(given)} characters"
        case list():
            return f", given a list of {len(given)}"
        case dict():
            return ", given an object"
        case _:
            return ""
