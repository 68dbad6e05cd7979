"""Every random stream of the pages, by purpose."""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        "absent_words": Stream(),
        # As many random heads as were clicked away: seventy-one of them draw as the page does.
        "clicked_away": Stream(then={"heads": 1}, shares=("best_heads",)),
        "best_heads": Stream(71),
    }
)
