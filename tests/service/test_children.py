"""How lines of child processes are shown."""

import json

import pytest

from service.children import as_json, behind_name


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ('{"event": "serving", "level": "info"}', {"event": "serving", "level": "info"}),
        ("Traceback (most recent call last):", {"event": "Traceback (most recent call last):"}),
        ("3", {"event": "3"}),
    ],
)
def test_every_line_for_machines_is_one_object(line: str, rest: dict[str, str]):
    assert json.loads(as_json("worker", line)) == {"process": "worker"} | rest


def test_a_line_for_people_stands_behind_its_process():
    assert behind_name("api", "{") == "   api | {"
