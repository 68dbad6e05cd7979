"""Files: what is read and written, and the parameters of a profile. Below every other room."""

# Beside a study's cli.py: the options of its commands, as `make stages` writes them.
OPTIONS_FILE = "options.json"
