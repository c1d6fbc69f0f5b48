"""Batch sizes of generation and scoring. The memory estimates of the plan use them too, so this module has no MLX."""

GENERATED_ROWS = 32
"""Rows that are generated together."""
PROMPT_CHUNK_TOKENS = 512
"""Positions of a prompt per forward pass: this bounds the attention scores alive at once."""
CACHE_SLACK_TOKENS = 256
"""Room of a windowed layer's cache beyond its window. When it is full, the window moves to the front."""
CPU_SCORED_TOKENS, GPU_SCORED_TOKENS = 2048, 8192
"""Tokens per forward pass of scoring answers: small batches stay in a CPU's caches and leave a GPU idle."""
GPU_SCORED_ROWS = 1024
"""Positions whose logits exist at a time on a GPU."""
BPB_TOKENS = 4096
"""Tokens per forward pass of measuring bits per byte. Fixed, so that the sum has the same last bits everywhere."""
