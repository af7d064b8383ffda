"""What is raised about an upload."""


class ImageError(ValueError):
    """An upload that cannot be read as one of the model's images; the message says why."""
