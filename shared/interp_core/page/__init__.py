"""Pages to look at: one file of HTML without a network, from arrays and reports."""
