"""What a user can mend: one line that names the input, what is wrong with it, and the way out."""


class InputError(ValueError):
    """A bad input. Commands print its message as one line and exit with code 2."""


class StateSavedError(KeyboardInterrupt):
    """Ctrl-C in a training, after its state was saved: the same command continues from there."""
