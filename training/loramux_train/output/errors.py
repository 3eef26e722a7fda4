"""What can go wrong with a run's output, as one branch of TrainError.

    OutputError
    ├── Unsayable        a form cannot say what was trained, or not where it goes
    ├── NothingLearnt    the factors are not finite, or change nothing
    ├── PushFailed       the adapter did not get on the shelf; its file is where it was
    └── BadLog           a line of the run's log is none of ours

Takes what went wrong; gives an exception whose text tells the user what to change.
"""

from loramux_train.errors import TrainError

__all__ = ["BadLog", "NothingLearnt", "OutputError", "PushFailed", "Unsayable"]


class OutputError(TrainError):
    """Root of the branch."""


class Unsayable(OutputError):
    """A form cannot say what was trained."""


class NothingLearnt(OutputError):
    """The factors are not worth a file; none was written."""


class PushFailed(OutputError):
    """The adapter did not get on the shelf."""


class BadLog(OutputError):
    """A log that cannot be read."""
