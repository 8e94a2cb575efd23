"""Every error the user can cause or meet, with the exit code that the CLI gives it.

::

    TinyVitEdgeError
    ├── InputError              exit 2   bad usage or bad input
    │   ├── CheckpointError              missing, corrupt, unknown or mismatching weights
    │   ├── DataError                    unreadable image, empty folder, labels that do not fit
    │   ├── StoreError                   teacher outputs unfinished, damaged, or of something else
    │   └── UnsupportedError             a target cannot do what was asked; lists what it can
    ├── MissingDependencyError  exit 3   an extra is not installed, or has no wheel for this host
    ├── ConversionError         exit 4   a converter failed, or its file breaks the target's rules
    └── GateError               exit 1   an artifact was made and measured, and is not good enough

A message is one line: what was wrong with which input, then the remedy.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CheckpointError",
    "ConversionError",
    "DataError",
    "GateError",
    "InputError",
    "MissingDependencyError",
    "StoreError",
    "TinyVitEdgeError",
    "UnsupportedError",
]


class TinyVitEdgeError(Exception):
    """Base class; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 2
    in_child: bool = False
    """Raised in a target's process: about the artifact made there, not about the user's input."""


class InputError(TinyVitEdgeError):
    """Bad usage or bad input."""


class CheckpointError(InputError):
    """Weights are missing, corrupt, of an unknown format, or do not fit what was asked."""


class DataError(InputError):
    """Images or labels are missing, unreadable or do not fit the model."""


class StoreError(InputError):
    """Stored teacher outputs are unfinished, damaged, or were made from something else."""


class UnsupportedError(InputError):
    """A target cannot do what was asked."""


class MissingDependencyError(TinyVitEdgeError):
    """A target's packages are not installed or do not exist for this host."""

    exit_code: ClassVar[int] = 3


class ConversionError(TinyVitEdgeError):
    """A converter failed, or what it wrote breaks the target's profile."""

    exit_code: ClassVar[int] = 4


class GateError(TinyVitEdgeError):
    """An artifact was made and measured, and did not pass its gates."""

    exit_code: ClassVar[int] = 1
