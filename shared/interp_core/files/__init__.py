"""Files: what is read and written, and the parameters of a profile. Below every other room."""
