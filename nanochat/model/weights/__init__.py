"""Weights that other programs wrote: reading safetensors files, and importing PyTorch nanochat."""
