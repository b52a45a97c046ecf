"""The config of a command: its parser, defaults, and what a checkpoint adds or refuses."""
