"""Every random stream of this study, by purpose."""

from interp_core.streams import Stream, Streams

STREAMS = Streams({"prompts": Stream(0), "intervals": Stream(1)})
