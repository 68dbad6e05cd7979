"""Every random stream of this study, by purpose."""

from interp_core.streams import Stream, Streams

STREAMS = Streams(
    {
        "repeats": Stream(b"repeats"),
        "delta": Stream(1),
        "causal": Stream(2),
        "inter_layer": Stream(3),
        "cross_layer": Stream(4),
        "attention_fisher": Stream(5),
        "attention_faithfulness": Stream(6),
        "attention_summary": Stream(7),
        "sparsity": Stream(8),
        "efficiency_estimates": Stream(9),
        "efficiency_curve": Stream(10),
        "compare": Stream(11),
        "efficiency_joint": Stream(12),
    }
)
