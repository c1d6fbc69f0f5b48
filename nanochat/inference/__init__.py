"""Inference: prefill, key/value cache, sampling, the generation engine and chat sessions."""
