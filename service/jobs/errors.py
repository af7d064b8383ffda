"""What may go wrong with a store, whichever it is."""


class StoreError(Exception):
    """The store can neither take nor give anything now, being away or full; it may again later."""


class ArtifactsError(StoreError):
    """The same of the place where artifacts are kept; the message says what is wrong."""
