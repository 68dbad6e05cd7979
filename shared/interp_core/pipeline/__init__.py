"""The pipeline: what dvc.yaml, the profiles and the fingerprints derive from the source."""
