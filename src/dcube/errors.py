"""Errors that a person reads: one plain sentence each, with what to do."""


class DCubeError(Exception):
    """Something went wrong that the program understands. Exit status 1."""

    exit_code = 1


class InputError(DCubeError):
    """What was given (data, setting, folder) cannot be used as it is. Exit status 2."""

    exit_code = 2


class MemoryShort(DCubeError):
    """The memory does not suffice for a training with these settings. Exit status 1."""
