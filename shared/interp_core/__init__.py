"""The core of Induction Lab: models, activations, stimuli, scores, circuits and statistics shared
by every study.
"""
