"""The commands `nanochat-run` and `nanochat-chat`."""
