"""Errors of the package. Each message says what was found, what was expected and what to do."""


class PktError(Exception):
    """Anything that a user can cause. The command line prints its message in one line and exits with code 2."""


def one_line(error: Exception) -> str:
    """What went wrong, in one line; of an error that is not the package's, with its kind."""
    kind = "" if isinstance(error, PktError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


class ConfigError(PktError, ValueError):
    """A recipe or an option is wrong."""


class ShapeError(PktError, ValueError):
    """Tensors or models do not fit each other."""


class DataError(PktError, ValueError):
    """An example, a split or a file of data is wrong."""


class UnsupportedModelError(PktError, ValueError):
    """A model, or a pair of models, lacks what was asked of it."""


class TrainingError(PktError, RuntimeError):
    """A loss became NaN or infinite."""


class SandboxError(PktError, RuntimeError):
    """Code that a model has written may not be run, or cannot be run safely here."""
