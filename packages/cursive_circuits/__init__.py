"""Do transformers that write by hand form induction circuits, over pen strokes instead of words?"""
