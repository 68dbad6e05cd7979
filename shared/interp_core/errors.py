"""What a user can mend: one line that names the input, what is wrong with it, and the way out."""

_LONGEST = 1900  # characters of a refusal
_QUOTED = 300  # characters of what a library says, inside a refusal


class InputError(ValueError):
    """A bad input. Commands print its message as one line and exit with code 2.

    Whatever the message quotes, it is one printable line of bounded length.
    """

    def __init__(self, message: str) -> None:
        half = _LONGEST // 2
        short = len(message) <= _LONGEST
        shown = _printable(message if short else f"{message[:half]} ... {message[-half:]}")
        super().__init__(shown)


class StateSavedError(KeyboardInterrupt):
    """Ctrl-C in a training, after its state was saved: the same command continues from there."""


def first_line(problem: BaseException) -> str:
    """What a library says went wrong, to stand inside a refusal: the beginning of its first line,
    or the error's name where it says nothing.

    Libraries quote what they read: a damaged file's bytes, or a whole value.
    """
    lines = str(problem).strip().splitlines()
    return _quoted(lines[0] if lines else type(problem).__name__)


def all_lines(problem: BaseException) -> str:
    """The same of a library whose every line counts."""
    return _quoted(str(problem)) or type(problem).__name__


def _quoted(text: str) -> str:
    # Only the beginning is looked at: it may be a gigabyte.
    shown = _printable(" ".join(text[: 4 * _QUOTED].split()))
    return shown if len(shown) <= _QUOTED else f"{shown[:_QUOTED]} ..."


def _printable(text: str) -> str:
    """The text with escapes where a terminal would do something else than show it."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
