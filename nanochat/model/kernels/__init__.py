"""CUDA kernels of the training step, each with its gradient; plain forms elsewhere in `model` say what they compute."""
