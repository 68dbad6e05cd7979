"""Every random stream of this study, by purpose.

A family of prompts has a stream of its own: leaving one out does not change another.
"""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        # prompts, by family, and windows of text
        "repeated_tokens": Stream(b"repeated_tokens"),
        "spaced_pairs": Stream(b"spaced_pairs"),
        "names": Stream(b"names"),
        "natural_repeats": Stream(b"natural_repeats"),
        "text": Stream(b"text"),
        # measured
        "shuffled_antecedents": Stream(1),
        "score_intervals": Stream(2),
        "onset": Stream(9),
        # ablations and path patching
        "controls": Stream(3),
        "ablations": Stream(4),
        "dose": Stream(5),
        "specificity": Stream(6),
        "paths": Stream(7),
        "control_pairs": Stream(8),
        # tests over heads and models
        "nulls": Stream(10),
        "crosssize": Stream(11),
        "lagbuckets": Stream(12),
        "profile": Stream(13),
    }
)
