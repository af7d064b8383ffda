"""What the demo shows while a job runs: a progress bar, and the previews drawn in the terminal.

Where standard output is no terminal, a few plain lines instead.
"""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.text import Text

PLAIN_STEP = 0.25  # of progress, between two plain lines


@contextmanager
def watch(console: Console, title: str) -> Iterator["View"]:
    """Show a job until the block ends: as a live view on a terminal, in plain lines elsewhere."""
    view = View(console, title)
    if console.is_terminal:
        with Live(view, console=console, refresh_per_second=15):
            yield view
            view.finish()
    else:
        yield view
        view.finish()


class View:
    """A progress bar above the latest previews."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._bar = Progress(
            TextColumn(f"{title:9}"),
            BarColumn(32),
            TextColumn("{task.percentage:3.0f} %  {task.fields[calls]:4} network calls"),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task(title, total=1.0, calls=0)
        self._tiles: dict[int, np.ndarray] = {}
        self._calls = 0
        self._said = 0.0  # progress of the next plain line

    def advance(self, progress: float, calls: int) -> None:
        """Move the bar: progress in 0..1 after so many network calls."""
        self._calls = calls
        self._bar.update(self._task, completed=progress, calls=calls)
        if not self._console.is_terminal and progress >= self._said:
            self._console.print(f"{self._title:9} {progress:4.0%}  {calls:4} network calls")
            self._said = progress + PLAIN_STEP

    def finish(self) -> None:
        """Fill the bar: the job has ended."""
        self._bar.update(self._task, completed=1.0)

    def show(self, images: list[dict[str, Any]]) -> None:
        """Draw a preview event's images, each over the last one of its index."""
        for image in images:
            pixels = Image.open(io.BytesIO(base64.b64decode(image["png"]))).convert("L")
            self._tiles[image["index"]] = np.asarray(pixels)

    def __rich__(self) -> Group:
        drawn = [half_blocks(as_grid(self._tiles))] if self._tiles else []
        return Group(self._bar, *drawn)


def as_grid(tiles: dict[int, np.ndarray]) -> np.ndarray:
    """Tiles (H, W), each at its index, as one picture, as square as it gets."""
    count = max(tiles) + 1
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    blank = np.zeros_like(next(iter(tiles.values())))
    return np.block(
        [[tiles.get(r * columns + c, blank) for c in range(columns)] for r in range(rows)]
    )


def half_blocks(pixels: np.ndarray) -> Text:
    """A picture (H, W) of grey levels 0..255, two pixels a character: one above, one below."""
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=_grey(above), bgcolor=_grey(below)))
        text.append("\n")
    return text


def _grey(level: int) -> str:
    return f"rgb({level},{level},{level})"
