"""A pytest plugin of `scripts/test`: says at the end of a run what it left out, and why."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest


class LeftOut:
    """Counts the tests that were deselected, by file.

    Processes side by side (`-n`) all deselect the same, each for itself, and tell the one that
    reports when they end.
    """

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.files.update(item.location[0] for item in items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = dict(self.files)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.files |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        skipped = Counter(
            report.longrepr[2] if isinstance(report.longrepr, tuple) else "no reason given"
            for report in terminalreporter.stats.get("skipped", [])
        )
        say = terminalreporter.write_line
        terminalreporter.section("left out")
        if not self.files and not skipped:
            say("nothing")
        if self.files:
            say(f"{self.files.total()} deselected (scripts/test --all runs every test):")
            for file, count in sorted(self.files.items()):
                say(f"  {count} in {file}")
        for reason, count in skipped.most_common():
            say(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeftOut(), "left-out")
