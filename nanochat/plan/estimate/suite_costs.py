"""The cost of suites: the tokens that a model reads and generates, the time, and the memory.

Evaluation stages and suites during training share these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.model.config import GPTConfig
from nanochat.plan.estimate import dataset_sizes
from nanochat.plan.estimate.device_classes import RATES, DeviceClass, decode_seconds
from nanochat.plan.estimate.estimate import Setting
from nanochat.plan.estimate.memory import evaluation, sizes
from nanochat.plan.estimate.memory.sizes import Dtype
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, BaseSuiteSpec, BpbSuiteSpec

_FORWARD_SLOWER: dict[DeviceClass, float] = {"cpu": 4 / 3, "metal": 1.0, "cuda": 1.0}
"""The time of a forward pass, relative to a third of that of a training step, which `RATES` are measured with. On a CPU
it was 1.2 to 1.6 at the quickstart's size: much of its work is elementwise, such as exponentials. On GPUs assumed."""


@dataclass(frozen=True)
class SuiteCost:
    """Tokens that are read and generated, and the time of generating beyond that of the FLOPs."""

    tokens: int = 0
    decoding_seconds: float = 0.0

    def flops(self, config: GPTConfig) -> float:
        """Return the FLOPs of forward passes on all tokens."""
        return self.tokens * config.flops_per_token() / 3

    def seconds(self, config: GPTConfig, device: DeviceClass) -> float:
        """Return the time of reading and generating."""
        return _FORWARD_SLOWER[device] * self.flops(config) / RATES[device].flops_per_second + self.decoding_seconds


def base_suites_cost(suites: Mapping[str, BaseSuiteSpec], setting: Setting) -> SuiteCost:
    """Return the cost of suites of base_eval, which generate nothing."""
    held_out, vocab_size = setting.sizes.held_out, setting.model.vocab_size
    return SuiteCost(
        sum(
            dataset_sizes.bpb_suite_tokens(suite, held_out, vocab_size)
            if isinstance(suite, BpbSuiteSpec)
            else dataset_sizes.base_suite_tokens(suite)
            for suite in suites.values()
        )
    )


def chat_suites_cost(
    suites: Mapping[str, AnyChatSuiteSpec], config: GPTConfig, dtype: Dtype, device: DeviceClass
) -> SuiteCost:
    """Return the cost of suites of chat_eval."""
    tokens, decoding = 0, 0.0
    for suite in suites.values():
        prompt, completion = dataset_sizes.chat_suite_tokens(suite)
        tokens += prompt + completion
        decoding += decode_seconds(config, completion, GENERATED_ROWS, dtype, device)
    return SuiteCost(tokens, decoding)


def monitoring_seconds(setting: Setting, *, steps: int) -> float:
    """Return the time of the suites that run while a stage trains for `steps` steps."""
    execution, config, dtype, device = setting.execution, setting.model, setting.dtype, setting.device
    base = base_suites_cost(execution.suites, setting)
    chats = chat_suites_cost(execution.chat_suites, config, dtype, device)
    times = -(-steps // execution.suites_every_steps)  # the last step is evaluated, too
    return times * (base.seconds(config, device) + chats.seconds(config, device))


def monitored_peak(training: int, execution: ExecutionSpec, config: GPTConfig, dtype: Dtype, *, on_cpu: bool) -> int:
    """Return the peak of a stage that trains with a peak of `training` bytes and runs suites.

    A GPU frees the arrays of a step before a suite runs. A process on a CPU keeps most of their pages, and those of a
    suite are added.
    """
    suites = evaluation.suites_peak(execution.suites, execution.chat_suites, config, dtype, on_cpu=on_cpu)
    if suites == 0:
        return training
    if on_cpu:
        return training + suites - sizes.process_peak(4 * config.num_parameters(), dtype)
    return max(training, suites + round(sizes.HEAP_SLACK[dtype] * sizes.optimizer_state_bytes(config)))
