"""The one exception for data that is missing, damaged or not what it says it is."""


class DataError(ValueError):
    """A data set cannot be used. The message is one sentence: what was found, what is accepted."""
