"""Errors a user can act on, each with the exit code of the command line."""


class DogfitError(Exception):
    """The job failed for a reason stated in the message."""

    exit_code = 1


class InputError(DogfitError):
    """The input cannot be used: missing, damaged, or without depthwise kernels."""

    exit_code = 3


class HubError(DogfitError):
    """The hub could not be reached, or refused."""

    exit_code = 4
