"""Why a figure is not in the report."""


class BenchError(RuntimeError):
    """A figure cannot be measured; the message says why."""


class SkippedError(BenchError):
    """This system does not offer what a figure measures; the message says what is missing."""
