"""One file a claim: ours and its peers side by side in one run, on random weights unless said."""
