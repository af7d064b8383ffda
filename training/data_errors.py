"""What is raised about training data."""


class DataError(ValueError):
    """Data that cannot be trained on; the message says what is wrong with it and what to do."""
