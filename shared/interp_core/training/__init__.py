"""Training: recipes, the loop, checkpoints, and the models that are trained here."""
