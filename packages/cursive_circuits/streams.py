"""Every random stream of this study, by purpose.

The script, the split, trainings, stimuli and interventions have seeds of their own. Where these
are the same number, a family of stimuli has the numbers of something in the script: one draws
words of a bank, the other made them. Committed numbers rest on both.
"""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        # the script, and what of its bank is held out
        "hand": Stream(1, then={"number": 0}),
        "letter": Stream(2, then={"hand": 0, "character": 1}),
        "writers": Stream(3, then={"word": 0}),
        "spellings": Stream(4),
        "held_out": Stream(5),
        # trainings
        "batches": Stream(10, then={"group": 0}),
        "tiled": Stream(11, then={"step": 0}),
        "tiled_order": Stream(12),
        # families of stimuli
        "same_text": Stream(0),
        "mismatched_text": Stream(1, shares=("hand",)),
        "other_writer": Stream(2),
        "synthetic": Stream(3, shares=("writers",)),
        "natural": Stream(4, shares=("spellings",)),
        # measured
        "gain_rows": Stream(20),
        "heads": Stream(21, then={"family": 0}),
        "gain": Stream(22),
        "alignment": Stream(30),
        "attention": Stream(31),
        "samples": Stream(50),
        "drawings": Stream(70),
        # causes
        "interventions": Stream(40),
        "paths": Stream(41),
        "continued": Stream(60),
        "redrawn": Stream(61),
    }
)
