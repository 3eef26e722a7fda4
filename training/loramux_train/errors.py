"""What can stop a training run, as one tree; each message says what was expected.

TrainError
|-- BadSetting        a setting that cannot be, or a selection of layers that is empty
|-- BadBase           a base that is not there, incomplete or of another architecture
|-- PackageMissing    an optimiser or a log that needs a package which is not installed
|-- CannotResume      a checkpoint that is none, or of a run that differs
|   `-- AlreadyFinished
|-- Diverged          a loss or gradient that is not finite
|-- DataError         pictures that no run may start with (data.notes)
|-- Unreadable        a picture that changed under the run (data.reading)
`-- OutputError       what cannot be written or pushed (output.errors)
"""


class TrainError(Exception):
    """A run cannot start or go on."""


class BadSetting(TrainError):
    """A setting that cannot be; the text names it, its value and what was expected."""


class BadBase(TrainError):
    """A base that cannot be trained on."""


class PackageMissing(TrainError):
    """Something asked for needs a package that is not installed; the text names it."""


class CannotResume(TrainError):
    """A checkpoint that this run cannot go on from."""


class AlreadyFinished(CannotResume):
    """The run is at its last step and its adapter is written."""


class Diverged(TrainError):
    """A loss or a gradient is not finite."""
