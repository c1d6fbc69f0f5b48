"""Decoding: key/value cache, sampling, tools and the chat engine."""
