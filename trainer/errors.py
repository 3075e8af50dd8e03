"""What is refused before a training starts, as types; each message is a sentence for a person.

A mistake in our code is an `assert` instead, and the world failing in the middle of a training is handled where it
happens.
"""


class Refused(Exception):
    """Anything below."""


class UnknownRecipe(Refused):
    """A name that is no recipe's."""


class SettingsError(Refused):
    """A setting that does not exist, or a value that it cannot have."""


class DataError(Refused):
    """Problems that cannot be read, or are too few."""


class CheckpointError(Refused):
    """A checkpoint directory that cannot be used as asked."""
