"""Serve: a model behind an OpenAI-compatible API, and a web page to chat with it."""
