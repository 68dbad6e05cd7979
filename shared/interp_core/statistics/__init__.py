"""Statistics: intervals, tests and events, over arrays that others measured."""
