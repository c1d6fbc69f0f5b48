"""The old name of `parts.measuring`, which `memory.py` still imports. It goes away with that import."""

from parts.measuring import option_parser as option_parser
from parts.measuring import training_step as training_step
