"""The console: options of commands, and the answers that they print."""
