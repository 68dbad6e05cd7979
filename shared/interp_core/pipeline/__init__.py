"""The pipeline: what dvc.yaml, the profiles and the fingerprints derive from the source."""

# Beside a study's cli.py: the options of its commands, as `make stages` writes them.
OPTIONS_FILE = "options.json"
