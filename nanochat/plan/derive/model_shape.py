"""The shape of the model: `depth` derives the other numbers, and impossible combinations are refused field by field."""

from __future__ import annotations

from nanochat.model.architectures import VARIANTS
from nanochat.model.config import DEPTH_HEAD_DIM, GPTConfig
from nanochat.plan.derive.issues import PlanIssues
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.schema import recipe as schema

_CODE = "impossible-shape"


def derive_recipe_model(recipe: schema.Recipe, issues: PlanIssues, *, knows_start: bool) -> GPTConfig | None:
    """Return the config of the model that the recipe describes, or None if it describes none.

    `knows_start`: the plan knows the vocabulary of the weights that pretraining starts from, and shows its sizes for
    it.
    """
    if recipe.model is None:
        if recipe.pretrain is not None:
            message = "`pretrain` needs the section `model`, even if it starts from given weights"
            advice = "add the `model` section that the weights were made with"
            issues.refuse(("pretrain", "init_from"), "missing-stage", message, advice=advice)
        return None
    if recipe.tokenizer is not None:
        vocab_size = recipe.tokenizer.vocab_size
    else:
        vocab_size = GPTConfig.vocab_size
        if not knows_start:
            issues.note(f"the vocabulary is that of the starting weights; sizes are shown for {vocab_size:,} pieces")
    config, problems = derive_model(recipe.model, vocab_size=vocab_size)
    issues.problems += problems
    return config


def derive_model(section: schema.Model, *, vocab_size: int) -> tuple[GPTConfig, list[FieldProblem]]:
    """Return the model's config, and the problems if its numbers do not fit together.

    If `depth` is not given, `n_layer` takes its place and derives the missing numbers. The config is usable only if
    there are no problems.
    """
    depth = section.depth or section.n_layer
    if depth is None:
        message = "`model` has neither `depth` nor `n_layer`"
        help_ = "write `depth: 12` for the 286M model, or n_layer, n_embd and n_head"
        return GPTConfig(vocab_size=vocab_size), [FieldProblem(("model",), "missing-field", message, help_)]
    problems: list[FieldProblem] = []
    n_embd, n_head = _derive_width(section, depth, problems)
    config = GPTConfig(
        sequence_len=section.sequence_len,
        vocab_size=vocab_size,
        n_layer=section.n_layer or depth,
        n_embd=n_embd,
        n_head=n_head,
        n_kv_head=section.n_kv_head or n_head,
        window_pattern=section.window_pattern or VARIANTS[section.architecture].default_window_pattern,
        architecture=section.architecture,
    )
    if not problems:
        problems += [FieldProblem(_path_of(section, text), _CODE, text, _advise(config)) for text in config.problems()]
    return config, problems


def _derive_width(section: schema.Model, depth: int, problems: list[FieldProblem]) -> tuple[int, int]:
    """Return (n_embd, n_head); those that are not given are derived from `depth`."""
    n_embd = section.n_embd or GPTConfig.from_depth(depth).n_embd
    if section.n_head is not None:
        return n_embd, section.n_head
    if n_embd % DEPTH_HEAD_DIM:
        message = f"`n_embd` {n_embd} is not a multiple of {DEPTH_HEAD_DIM}, so heads of {DEPTH_HEAD_DIM} do not fit"
        help_ = f"give `n_head` too, one of {_list_choices(_head_counts(n_embd))}"
        problems.append(FieldProblem(("model", "n_embd"), _CODE, message, help_))
        return n_embd, 1
    return n_embd, n_embd // DEPTH_HEAD_DIM


def _path_of(section: schema.Model, problem: str) -> tuple[str, ...]:
    """Return the path of the first field that the problem names and the recipe gives, else that of the section."""
    given = section.model_fields_set
    names = ("n_kv_head", "n_head", "n_embd", "window_pattern")
    return next((("model", name) for name in names if f"`{name}`" in problem and name in given), ("model",))


def _advise(config: GPTConfig) -> str:
    heads = _head_counts(config.n_embd)
    if config.n_head not in heads:
        return f"heads that fit `n_embd` {config.n_embd}: {_list_choices(heads)}" if heads else "`n_embd` must be even"
    if config.n_head % config.n_kv_head:
        return f"`n_kv_head` may be {_list_choices([n for n in range(1, config.n_head + 1) if config.n_head % n == 0])}"
    return "make the model wider"


def _head_counts(n_embd: int) -> list[int]:
    """Return the numbers of heads with an even size of at least 8 channels, or of any even size if there are none."""
    fits = [n for n in range(1, n_embd // 2 + 1) if n_embd % (2 * n) == 0]
    return [n for n in fits if n_embd // n >= 8] or fits


def _list_choices(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers[-12:]]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}" if shown else "none"
