"""Every random stream of the trainings of the core, by purpose.

The batch of a step has the seed and the step alone. Of what a training is watched by no batch has
the numbers: after the 0 comes one that is not 0.
"""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        "batch": Stream(then={"step": 0}),
        "watched": Stream((0, 1)),
    }
)
