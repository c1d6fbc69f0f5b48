"""Train a small GPT from nothing to a chat model, described by one YAML recipe."""

__version__ = "0.1.0"
