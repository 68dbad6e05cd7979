"""The study's part of the page of the run."""

from interp_core.page.study_page import Caption, Part, Words

WORDS = Words(
    place=6,
    question="Does any head look one token back, and how surely?",
    verdict="The toy's best head does so by {previous_token_of_toy:interval} of its attention.",
    not_found=("Whether it matters: no head was taken away.",),
    captions={
        "*.png": Caption(
            "Attention one token back, every head.",
            "A head that looks everywhere alike: the chance in the note.",
        ),
    },
)


def of_the_run() -> Part:
    """Words alone: the figures speak."""
    return Part(WORDS)
