"""The one error that users see."""


class PekaError(Exception):
    """Bad input or a missing step: the file, what was expected and what to do next."""
