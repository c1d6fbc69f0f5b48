"""Batch sizes of generation and scoring. The memory estimates of the plan use them too, so this module has no MLX."""

GENERATED_ROWS = 32
"""Rows that are generated together."""
CPU_ROLLOUT_ROWS, GPU_ROLLOUT_ROWS = 128, 32
"""Answers that are sampled together for training. On a GPU these are the rows that its decoding kernels take: the first
step with 128 rows took 94 seconds (`tests/benchmarks/results/reinforcement.md`)."""
PROMPT_CHUNK_TOKENS = 512
"""Positions of a prompt per forward pass: this bounds the attention scores alive at once."""
PROMPT_TOKENS = 8192
"""Tokens of prompts that are read together, padding included, unless one prompt alone has more."""
GPU_PROMPT_TOKENS = 32
"""Prompts are padded to a multiple of this on a GPU, because cuDNN takes 40 ms to plan an attention of a new shape."""
CACHE_STEP_TOKENS = 256
"""The buffers of keys and values grow by this many positions at a time."""
CPU_SCORED_TOKENS, GPU_SCORED_TOKENS = 2048, 8192
"""Tokens per forward pass of scoring answers: small batches stay in a CPU's caches and leave a GPU idle."""
GPU_SCORED_ROWS = 1024
"""Positions whose logits exist at a time on a GPU."""
BPB_TOKENS = 4096
"""Tokens per forward pass of measuring bits per byte. Fixed, so that the sum has the same last bits everywhere."""


def buffer_size(window: int, positions: int) -> int:
    """Return how many positions of a row the buffers of a layer hold if rows have up to `positions`."""
    return min(window + 1, -(-positions // CACHE_STEP_TOKENS) * CACHE_STEP_TOKENS)


def rollout_rows(answers_per_step: int, processes: int, *, on_cpu: bool) -> int:
    """Return how many answers a process samples together: its share of a step, up to the most for the device."""
    most = CPU_ROLLOUT_ROWS if on_cpu else GPU_ROLLOUT_ROWS
    return min(most, max(1, answers_per_step // processes))


def decoding_rows(count: int) -> int:
    """Return the rows of a batch that decodes `count`: the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ...

    A GPU compiles each size once, so a batch whose rows end one by one keeps some empty rows instead.
    """
    power = 1 << max(count - 1, 0).bit_length()
    return power if count <= 2 or count > 3 * power // 4 else 3 * power // 4
