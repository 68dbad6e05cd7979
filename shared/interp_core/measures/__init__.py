"""Measures: scores of heads, their circuits, and what a model loses without them."""
