"""The one error type that a user sees as a message instead of a traceback."""


class LocalClusterError(Exception):
    """Something that a person must or can mend; the text says what and how."""
