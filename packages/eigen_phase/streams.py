"""Every random stream of this study, by purpose.

The batch of a step has the seed and the step alone, so it can have the numbers of what has one
number: steps 31 and 41. Neither draws rows, and committed numbers rest on both.
"""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        "batch": Stream(then={"step": 0}),
        # Rows that no batch has: after the 0 comes a number that is not 0.
        "held_out": Stream((0, 1)),
        "probe": Stream((0, 2)),
        "another_probe": Stream((0, 2), then={"draw": 1}),
        "independent": Stream((0, 3)),
        "ablations": Stream(31, shares=("batch",)),
        "ceiling": Stream(41, shares=("batch",)),
    }
)
