"""Errors a user can act on, each with the exit code of the command line.

All of them can be imported from `dogfit`.
"""


class DogfitError(Exception):
    """The job failed for a reason stated in the message."""

    exit_code = 1


class InputError(DogfitError):
    """The input cannot be used: missing, damaged, or without depthwise kernels."""

    exit_code = 3


class HubError(DogfitError):
    """The hub could not be reached, or refused."""

    exit_code = 4


class OutputError(DogfitError):
    """The place for the results holds something else, and nobody said to replace it."""

    exit_code = 2


class TooFewKernels(DogfitError):  # noqa: N818 - names the condition a caller skips on
    """A size has too few kernels to learn a code from; callers report it and skip the size."""


class LostProcessError(DogfitError):
    """Another process of the same job cannot be reached any more."""
