"""Errors that a user can mend: each message names the file or value, what was expected, and what to do."""


class AnomalyCLIPError(Exception):
    """Something that the user gave cannot be used; the message says what and why."""


class InputError(AnomalyCLIPError):
    """One input (an image, a mask, a sample) cannot be used; others may go on."""


class AnomalyCLIPWarning(UserWarning):
    """Something that a user should know, and that does not stop the work; the command line prints it."""
