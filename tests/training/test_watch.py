import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from training.watch import Watch


def line(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {"step": step, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 2.0}


def events(run: Path) -> list[Event]:
    """Of all files: records of a length, a checksum, an event and another checksum."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            found.append(Event.FromString(content[place + 12 : place + 12 + length]))
            place += 16 + length
    return found


def test_every_step_is_a_line_and_a_scalar(tmp_path: Path) -> None:
    with Watch(tmp_path, done=0, total=4, batch_size=8) as watch:
        watch.steps([line(1, 0.25)])
        watch.steps([line(2, 0.75), line(3)])
        assert watch.loss == pytest.approx(0.5)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [found["loss"] for found in lines] == [0.25, 0.75, 0.5]
    assert all(found["images_per_second"] > 0 for found in lines)
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path)
        for value in event.summary.value
    }
    assert scalars["loss", 2] == 0.75
    assert {tag for tag, _ in scalars} == {
        "loss",
        "learning_rate",
        "gradient_norm",
        "images_per_second",
    }


def test_a_step_whose_gradient_overflowed_has_none(tmp_path: Path) -> None:
    with Watch(tmp_path, done=0, total=4, batch_size=8) as watch:
        watch.steps([line(1) | {"gradient_norm": None}])
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["gradient_norm"] is None


def test_samples_are_pictures_of_the_board(tmp_path: Path) -> None:
    with Watch(tmp_path, done=0, total=4, batch_size=8) as watch:
        watch.samples(3, np.zeros((5, 7, 1), dtype=np.uint8))
    (picture,) = [value for event in events(tmp_path) for value in event.summary.value]
    assert (picture.tag, picture.image.height, picture.image.width) == ("samples", 5, 7)


def test_a_run_that_goes_on_takes_back_the_lines_behind_its_state(tmp_path: Path) -> None:
    with Watch(tmp_path, done=0, total=9, batch_size=8) as watch:
        watch.steps([line(step, float(step)) for step in range(1, 6)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    with Watch(tmp_path, done=3, total=9, batch_size=8) as watch:
        assert watch.loss == pytest.approx(2.0)
        watch.steps([line(4, 40.0)])
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [found["loss"] for found in lines] == [1.0, 2.0, 3.0, 40.0]
    assert any(event.session_log.status for event in events(tmp_path))  # what tells a board so
