"""The command line of `nanochat-run`: a table of commands, their options and their help texts."""
