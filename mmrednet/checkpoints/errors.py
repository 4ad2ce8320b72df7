"""What is wrong with a file of weights."""


class CheckpointError(ValueError):
    """A file of weights cannot be read safely, is in no known format, or fits nothing of the
    network.
    """
