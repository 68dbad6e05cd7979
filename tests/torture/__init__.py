"""Seeded damage to every file that is written or read here, and seeded edits of every profile.

`make torture` runs it: minutes, so it is no part of `make test`. A case is bad when a reader ends
in a traceback, takes longer than 15 s, or accepts a file of ours that is not what was written.
"""
