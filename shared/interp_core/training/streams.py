"""Every random stream of the trainings of the core, by purpose.

The batch of a step has the seed and the step alone. What a training is watched by has the numbers
of its first batch, though other things are made of them; committed histories rest on both.
"""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        "batch": Stream(then={"step": 0}),
        "watched": Stream((0, 0), shares=("batch",)),
    }
)
