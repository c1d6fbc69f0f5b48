"""Describes each stage in words: a line for the plan, parameters for MLflow, and a sentence for the report.

`describe_*` and `*_params` read a specification, before the stage runs. `*_outcome` reads the metrics of a stage that
finished, and writes for somebody who is new to the field.
"""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.plan.quantities import show_count
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec, ExportSpec
from nanochat.plan.specs.suites import BpbSuiteSpec
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec, TokenizerSpec
from nanochat.plurals import several

Params = Mapping[str, object]
Metrics = Mapping[str, float]

NOT_REPRODUCIBLE = "how far it comes depends on the machine, so the result is not reproducible"
CROP_WARNING_FRAC = 0.2
"""The plan and the report warn if `pretrain.long_documents: crop` throws away more of the text than this."""
_LOST_CONVERSATIONS = {
    "refused_conversations": ("refused because they hold no conversation", "row"),
    "dropped_conversations": ("left out because no answer fits a row", "conversation"),
    "cut_conversations": ("cut after an answer to fit a row", "conversation"),
}
"""Metrics that count the conversations which were not trained on whole, and what happened to them."""


def describe_tokenizer(spec: TokenizerSpec) -> str:
    """Return the size of the vocabulary and of the training text."""
    return f"{spec.vocab_size:,} pieces from at most {show_count(spec.max_chars)} characters of {spec.source.name}"


def describe_pretrain(spec: PretrainSpec) -> str:
    """Return steps, tokens, sources, optimizer and schedule."""
    schedule, rows = spec.schedule, spec.tokens_per_step // spec.model.sequence_len
    step = f"of {spec.tokens_per_step:,} tokens ({several(rows, 'row')})"
    if spec.steps is None:
        assert spec.minutes is not None, "a horizon is steps or minutes"
        horizon = f"{several(spec.minutes, 'minute')} in steps {step}"
        warmdown = f"{schedule.warmdown_steps / schedule.steps:.0%} of the time"
    else:
        horizon = f"{several(spec.steps, 'step')} {step} = {spec.steps * spec.tokens_per_step:,} tokens"
        warmdown = several(schedule.warmdown_steps, "step")
    return (
        f"{horizon} of {', '.join(item.source.name for item in spec.data)}; "
        f"{spec.optimizer.variant} optimizer, weight decay {spec.weight_decay:.3g}, {schedule.kind} schedule: warm-up "
        f"{schedule.warmup_steps}, warm-down {warmdown}{_describe_choice(spec)}"
    )


def describe_sft(spec: SftSpec) -> str:
    """Return the horizon, and the tasks of the mixture with their shares if they have weights."""
    whole = sum(item.weight or 0 for item in spec.data)
    tasks = [item.name + (f" {item.weight / whole:.3g}" if item.weight else "") for item in spec.data]
    if spec.last_step is not None:
        horizon = several(spec.last_step, "step")
    elif spec.minutes is not None:
        horizon = f"{several(spec.minutes, 'minute')} in steps"
    else:
        assert spec.epochs is not None, "a horizon is steps, minutes or epochs"
        horizon = f"{several(spec.epochs, 'epoch')} in steps"
    held_out = ", ".join(item.name for item in spec.data if item.is_validated)
    validates = f"; holds out some of {held_out}" if held_out else ""
    return f"{horizon} of {spec.tokens_per_step:,} tokens: {', '.join(tasks)}{validates}{_describe_choice(spec)}"


def _describe_choice(spec: PretrainSpec | SftSpec) -> str:
    return "; passes on the model with the lowest validation loss" if spec.hand_on == "best" else ""


def describe_rl(spec: RlSpec) -> str:
    """Return the horizon, the size of a step and the tasks."""
    if spec.steps is not None:
        horizon = several(spec.steps, "step")
    else:
        assert spec.epochs is not None, "a horizon is steps or epochs"
        horizon = f"{several(spec.epochs, 'epoch')} in steps"
    answers = f"{several(spec.prompts_per_step, 'question')} x {several(spec.samples_per_prompt, 'answer')}"
    return f"{horizon} of {answers}: {', '.join(spec.data)}"


def describe_base_eval(spec: BaseEvalSpec) -> str:
    """Return the names of the suites, the size of those on text, and the number of samples."""
    suites = [
        f"{name} (at most {suite.tokens:,} tokens)" if isinstance(suite, BpbSuiteSpec) else name
        for name, suite in spec.suites.items()
    ]
    return ", ".join(suites) + (f"; {several(len(spec.samples), 'sample')}" if spec.samples else "")


def describe_chat_eval(spec: ChatEvalSpec) -> str:
    """Return the names of the suites."""
    return ", ".join(spec.suites)


def describe_export(spec: ExportSpec) -> str:
    """Return the formats, and what is run."""
    formats = ", ".join(f"{x} ({spec.bits} bits)" if x == "mlx" and spec.bits else x for x in spec.formats)
    tried = [several(len(spec.prompts), "prompt")] if spec.prompts else []
    tried += [f"suite {name}" for name in spec.suites]
    return formats + (f"; run with {', '.join(tried)}" if tried else "")


def describe_crop(cropped_frac: float) -> str:
    """Return the cost of cropping, and the way to avoid it."""
    return (
        f"`pretrain.long_documents: crop` throws away {cropped_frac:.0%} of the text that is read, the ends of long "
        "documents; `keep` trains on all of it"
    )


def tokenizer_params(spec: TokenizerSpec) -> Params:
    """Return the parameters by which runs of this stage differ most; so do the functions below."""
    return {"source": spec.source.name, "vocab_size": spec.vocab_size, "max_chars": spec.max_chars}


def pretrain_params(spec: PretrainSpec) -> Params:
    """Return shape, size, horizon, optimizer and schedule."""
    model = spec.model
    return {
        "architecture": model.architecture,
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "sequence_len": model.sequence_len,
        "parameters": model.num_parameters(),
        "scaling_parameters": model.num_scaling_parameters(),
        "flops_per_token": model.flops_per_token(),
        **({"minutes": spec.minutes} if spec.steps is None else {"steps": spec.steps}),
        "tokens_per_step": spec.tokens_per_step,
        **({} if spec.steps is None else {"tokens": spec.steps * spec.tokens_per_step}),
        "optimizer": spec.optimizer.variant,
        "schedule": spec.schedule.kind,
        "hand_on": spec.hand_on,
    }


def sft_params(spec: SftSpec) -> Params:
    """Return the tasks, the horizon, the batch and the factor of the learning rate."""
    horizons = {"steps": spec.steps, "tokens": spec.tokens, "epochs": spec.epochs, "minutes": spec.minutes}
    return {
        "data": ", ".join(item.name for item in spec.data),
        **{unit: value for unit, value in horizons.items() if value is not None},
        "tokens_per_step": spec.tokens_per_step,
        "lr_scale": spec.optimizer.lr_scale,
        "hand_on": spec.hand_on,
    }


def rl_params(spec: RlSpec) -> Params:
    """Return the tasks, the horizon, the size of a step and what the update depends on."""
    return {
        "data": ", ".join(spec.data),
        **({"epochs": spec.epochs} if spec.steps is None else {"steps": spec.steps}),
        "prompts_per_step": spec.prompts_per_step,
        "samples_per_prompt": spec.samples_per_prompt,
        "max_tokens": spec.max_tokens,
        "temperature": spec.temperature,
        "kl": spec.kl,
        "lr_scale": spec.optimizer.lr_scale,
    }


def suite_params(spec: BaseEvalSpec | ChatEvalSpec) -> Params:
    """Return the names of an evaluation's suites."""
    return {"suites": ", ".join(spec.suites)}


def export_params(spec: ExportSpec) -> Params:
    """Return the formats, and the bits if mlx is quantized."""
    return {"formats": ", ".join(spec.formats)} | ({"bits": spec.bits} if spec.bits else {})


def export_outcome(metrics: Metrics) -> str:
    """Return the outcome of the export stage."""
    formats = [name.removesuffix(".bytes") for name in metrics if name.endswith(".bytes")]
    return f"wrote the model for other programs: {', '.join(formats)}."


def tokenizer_outcome(metrics: Metrics) -> str:
    """Return the outcome of the tokenizer stage."""
    return (
        f"learned to cut text into {_count(metrics, 'vocab_size', 'different piece')} (tokens), "
        f"{metrics.get('bytes_per_token', float('nan')):.2f} bytes each on average."
    )


def pretrain_outcome(metrics: Metrics) -> str:
    """Return the outcome of the pretrain stage, with bits per byte if they were measured."""
    bits = f", and needs {metrics['bpb']:.2f} bits per byte of text it has not seen" if "bpb" in metrics else ""
    return (
        f"taught a new model of {_count(metrics, 'parameters', 'parameter')} to predict the next token: "
        f"it read {_count(metrics, 'tokens', 'token')} in {_count(metrics, 'steps', 'step')}{bits}."
        f"{_sentence(describe_choice(metrics))}{_crop_outcome(metrics.get('cropped_frac', 0.0))}"
    )


def _crop_outcome(cropped_frac: float) -> str:
    if cropped_frac == 0:
        return ""
    return f" {'**Warning:** ' if cropped_frac > CROP_WARNING_FRAC else ''}{describe_crop(cropped_frac)}."


def sft_outcome(metrics: Metrics) -> str:
    """Return the outcome of the sft stage, and the number of conversations that it could not use whole."""
    lost = [
        f"; {what}: {_count(metrics, name, noun)}"
        for name, (what, noun) in _LOST_CONVERSATIONS.items()
        if metrics.get(name)
    ]
    bits = f"; answers it was not trained on need {metrics['bpb']:.2f} bits per byte" if "bpb" in metrics else ""
    return (
        f"taught the model to answer, on {_count(metrics, 'conversations', 'example conversation')} "
        f"({_count(metrics, 'tokens', 'token')} of their answers, {_count(metrics, 'steps', 'step')})"
        f"{''.join(lost)}{bits}."
        f"{_sentence(describe_choice(metrics))}"
    )


def rl_outcome(metrics: Metrics) -> str:
    """Return the outcome of the rl stage, and the change of the score on held-out questions."""
    scores = [metrics[name] for name in ("score_before", "score") if name in metrics]
    change = f"; it solved {scores[0]:.1%} of held-out questions before and {scores[1]:.1%} after" if scores else ""
    return (
        f"let the model answer {_count(metrics, 'prompts', 'question')}, {_count(metrics, 'answers', 'answer')} "
        f"in all, and made the better ones likelier in {_count(metrics, 'steps', 'step')}{change}."
    )


def _sentence(text: str) -> str:
    return f" {text}" if text else ""


def describe_choice(metrics: Metrics) -> str:
    """Return which model a training stage passed on and why, if `hand_on: best` chose it; else nothing."""
    if "handed_on_step" not in metrics:
        return ""
    step, last = int(metrics["handed_on_step"]), int(metrics["steps"])
    passed_on = f"It passed on the model of step {step:,}, because its validation loss of {metrics['val_loss']:.4f}"
    if step == last:
        return f"{passed_on} is the lowest, and this is the last step."
    return f"{passed_on} is the lowest; that of the last step, {last:,}, is {metrics['last_val_loss']:.4f}."


def _count(metrics: Metrics, name: str, noun: str) -> str:
    value = metrics.get(name)
    return f"{show_count(value)} {noun if value == 1 else noun + 's'}"
