"""Train a small GPT from nothing to a chat model, described by one YAML recipe."""
