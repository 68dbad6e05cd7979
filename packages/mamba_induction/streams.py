"""Every random stream of this study, by purpose.

A family of prompts has a stream of its own: changing one leaves the others as they are.
"""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        # prompts, by family, and what is drawn of text
        "repeated": Stream(b"repeated"),
        "copies": Stream(b"copies"),
        "period": Stream(b"period ", word="period"),
        "spaced": Stream(b"spaced"),
        "shuffled": Stream(b"shuffled"),
        "queries": Stream(b"queries"),
        "natural": Stream(b"natural"),
        "repeated_text": Stream(b"repeated text"),
        "windows": Stream(b"windows"),
        "examples": Stream(6),
        # fine-tuning
        "mixed_repeats": Stream(b"mixed repeats"),
        # An epoch's order of documents has no number of its own. What has one number, and no
        # documents, shares it from the fourth epoch on.
        "order": Stream(
            then={"epoch": 0},
            shares=(
                *("peak_offsets", "null", "change", "examples", "reads_of_queries", "effects"),
                *("verdict", "reads_of_answers", "reads_kept", "other_states"),
            ),
        ),
        # measured
        "peak_offsets": Stream(3),
        "null": Stream(4),
        "change": Stream(5),
        "independence": Stream(b"independence"),
        # The interval of a score, by its name. No score has the name of a purpose, or one letter.
        "score": Stream(
            word="score",
            shares=(
                *("repeated", "copies", "period", "spaced", "shuffled", "queries", "natural"),
                *("repeated_text", "windows", "mixed_repeats", "independence", "order"),
            ),
        ),
        # causes
        "reads_of_queries": Stream(7),
        "effects": Stream(8),
        # The gain over the control is resampled as the changes that it is held against.
        "verdict": Stream(8, shares=("effects",)),
        "reads_of_answers": Stream(9),
        "reads_kept": Stream(10),
        "other_states": Stream(11),
    }
)
