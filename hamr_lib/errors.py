"""The one exception a user of this library is meant to read."""


class HamrError(Exception):
    """Bad input, told in one sentence: the file or argument, the value, and what was expected."""
