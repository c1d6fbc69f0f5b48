"""The whole recipe and its sources, as frozen Pydantic models from which validation and the JSON Schema follow.

`run` and `tracking` never change what is computed, and `sweep` makes several recipes of one; all other sections do.
It also exports the sections that the plan reads. Not here: numbers derived from a recipe (see `nanochat.plan`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from nanochat.recipe.schema.evaluation_sections import (
    AnyChatSuite,
    BaseEval,
    BpbSuite,
    ChatEval,
    ChatQuestionsSuite,
    ChatSuite,
    ChoiceSuite,
    CoreSuite,
    LmEvalSuite,
    PythonSuite,
    QuestionsSuite,
)
from nanochat.recipe.schema.execution_sections import Run, Tracking
from nanochat.recipe.schema.export_section import Export
from nanochat.recipe.schema.field_types import Condition, Count, Fraction, LocalPath, MapText, Name, NonEmptyText
from nanochat.recipe.schema.rl_section import Rl
from nanochat.recipe.schema.section import Conflict, Section, StageSection
from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.recipe.schema.training_sections import Horizon, Model, Optimizer, Pretrain, Sft, SftData, Tokenizer

__all__ = [
    "STAGE_SECTIONS", "AnyChatSuite", "BaseEval", "BpbSuite", "ChatEval", "ChatQuestionsSuite", "ChatSuite",
    "ChoiceSuite", "CoreSuite", "Export", "Horizon", "LmEvalSuite", "Model", "Optimizer", "Pretrain", "PythonSuite",
    "QuestionsSuite", "Recipe", "Rl", "Section", "Sft", "SftData", "Source", "StageSection", "Tokenizer",
]  # fmt: skip


_URI = r"^(hf://datasets/[^/]+/[^/]+(/.*)?|https://[^/?#@]+/([^?#]*/)?[^/?#]+(\?[^#]*)?|(s3|gs)://[^/@]+(/.*)?)$"


QuestionPart = Literal["question", "answer", "choices"]


class Validation(Section):
    """Which documents of a source are held out for validation. Give exactly one of the fields."""

    exactly_one = ("shard", "hash_frac")

    shard: Annotated[str, Field(min_length=1)] | None = None
    """Name of a file whose documents are all held out, such as `shard_00004.parquet`."""
    hash_frac: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of documents to hold out. A hash of the content of each document decides."""


class RowMap(Section):
    """How a row becomes a conversation (`user` and `assistant`) or a question (`question` and `answer`). Each field is
    the name of a key, or a text with keys in braces such as `"{question}\\n{context}"`, in which `{{` stands for a
    brace."""

    system: MapText | None = None
    """Conversations: instructions for the whole conversation. A row in which all keys are empty has none."""
    user: MapText | None = None
    """Conversations: the question."""
    assistant: MapText | None = None
    """Conversations: the answer, which the model is trained on."""
    question: MapText | None = None
    """Questions: what is asked."""
    answer: MapText | None = None
    """Questions: the accepted answer, or a list of them. With choices, the text, the letter or the number (from 0) of
    the right one."""
    choices: MapText | Annotated[tuple[MapText, ...], Field(min_length=2)] | None = None
    """Questions: the choices, as the name of a key that holds a list, or as a list of two or more names or texts."""

    @classmethod
    def conflict(cls, given: Collection[str]) -> Conflict | None:
        """Return a problem unless the fields are those of a conversation or those of a question."""
        of_chat, of_question = ("user", "assistant"), ("question", "answer")
        is_question = any(name in given for name in (*of_question, "choices"))
        if is_question and (other := [name for name in ("system", *of_chat) if name in given]):
            message = f"`{other[0]}` belongs to conversations, but other fields to questions; a source has one of them"
            return Conflict("exactly-one", message, other[0])
        missing = [name for name in (of_question if is_question else of_chat) if name not in given]
        if missing:
            what, needed = ("question", of_question) if is_question else ("conversation", of_chat)
            message = f"a {what} needs `{needed[0]}` and `{needed[1]}`; found no `{missing[0]}`"
            return Conflict("missing-field", message, None)
        return None

    def chat_texts(self) -> tuple[tuple[Literal["system", "user", "assistant"], str], ...]:
        """Return the texts of a conversation by role, in the order of the messages; none for questions."""
        roles: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")
        return tuple((role, text) for role in roles if (text := getattr(self, role)) is not None)

    def question_texts(self) -> tuple[tuple[QuestionPart, tuple[str, ...]], ...]:
        """Return the texts of a question by its parts; none for conversations."""
        parts: tuple[QuestionPart, ...] = ("question", "answer", "choices")
        given = [(part, text) for part in parts if (text := getattr(self, part)) is not None]
        return tuple((part, (text,) if isinstance(text, str) else text) for part, text in given)


class Source(Section):
    """Data from outside the recipe. Give exactly one of `uri`, `path` and `builtin`."""

    exactly_one = ("uri", "path", "builtin")
    needs: ClassVar[Mapping[str, str]] = {"revision": "uri", "sha256": "uri"}

    uri: Annotated[str, Field(pattern=_URI, examples=["hf://datasets/OWNER/NAME"])] | None = None
    """Data set on the Hugging Face hub: `hf://datasets/OWNER/NAME`, optionally followed by a folder or a pattern of
    files. Or the address of a file: `https://HOST/FILE`, with its `sha256`. Zip and tar archives are unpacked. Or a
    file, folder or pattern in an object store: `s3://BUCKET/FOLDER` or `gs://BUCKET/FOLDER`, which need
    `nanochat-run[s3]`."""
    revision: str | None = None
    """Branch, tag or commit of the hub data set. Default: its main branch."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", examples=["9f86d081...0f00a08"])] | None = None
    """SHA-256 of the file at a `https` address, which `sha256sum FILE` prints. Other content is refused. Optional
    for one file of an object store; without it, the first download is kept."""
    path: Annotated[
        NonEmptyText | Annotated[tuple[NonEmptyText, ...], Field(min_length=1)] | None, LocalPath(is_pattern=True)
    ] = None
    """Local files: a path, a pattern such as `data/*.txt`, or a list of them. Relative paths start at the folder of the
    recipe. Files of rows are parquet, jsonl, csv, tsv, json or arrow. Files of text are txt, md, html, xml or source
    code. All but parquet may be compressed (gz, zst, bz2, xz). Of a folder that is used as text, files of text and of
    rows are read together; of one that is used as chats or questions, files of rows. The plan names the files that are
    left out, and why. Files of a validation or test split are not trained on, unless the recipe lists all files one by
    one."""
    builtin: Literal["python-stdlib", "spelling"] | None = None
    """Data that every installation has: `python-stdlib` is the source code of Python's standard library as documents,
    and `spelling` is a list of words."""
    column: str = "text"
    """Name of the column or key that holds a document's text, or the messages of a chat. Default for chats: `messages`
    or `conversations`, the keys of a question and its answer, or those of an export of ChatGPT or Claude."""
    map: RowMap | None = None
    """How rows become conversations or questions if they have a form of their own, such as
    `map: {user: "{question}\\n{context}", assistant: answer}`. Keys that are not named are ignored, except those that
    say whether a chat is trained on. Default: the form of chats is recognised by their keys, and questions have the
    keys `question`, `answer` and perhaps `choices`."""
    max_bad_rows: Fraction = 0.01
    """Largest share of rows that may be unreadable. Unreadable rows are skipped and counted. More than this share, and
    more than 10 rows, stop the run."""
    max_files: Annotated[int, Field(ge=1)] | None = None
    """Use only the first files of each split in sorted order, up to this number. Default: all."""
    max_document_chars: Count | None = None
    """Cut longer documents into pieces of at most this number of characters, at line ends. Default: do not cut."""
    dedup: Literal["exact"] | None = None
    """`exact` leaves out each document, chat or row that equals an earlier one of the source, in whatever file it is.
    Text of validation files is left out of the training text too. Needs about 100 bytes of memory per document.
    Default: keep all."""
    validation: Validation | None = None
    """Which documents are held out for validation. Default: the files whose names say validation, else those that say
    test, else 1 % of the documents by hash (2 % for `python-stdlib`)."""


class Recipe(Section):
    """A run, from text to chat model. A stage runs only if its section is present."""

    extends: NonEmptyText | tuple[NonEmptyText, ...] | None = None
    """Recipes on which this recipe is based: a path or a list of paths, relative to this file and inside the recipe
    folder. This recipe changes them: maps are merged, other values are replaced, and `null` removes a value."""
    vars: dict[Name, str | int | float | bool] = Field(default={})
    """Values that can be used elsewhere in the recipe as `${vars.NAME}`."""
    nanochat: Literal[1]
    """Version of the recipe format."""
    name: Name
    """Name of the run."""
    description: str = ""
    """What the run is for, in a few sentences. Reports show the text as it is."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 42
    """Seed of all random numbers. Each stage derives its own keys from it."""
    sources: dict[Name, Source] = Field(default={})
    """The data that stages read: for each source, a name of your own and the fields of the source."""
    tokenizer: Tokenizer | None = None
    """Train a tokenizer."""
    model: Model | None = None
    """The shape of the model."""
    pretrain: Pretrain | None = None
    """Train the model on documents."""
    base_eval: BaseEval | None = None
    """Evaluate the pretrained model."""
    sft: Sft | None = None
    """Fine-tune the model on conversations."""
    rl: Rl | None = None
    """Train the chat model on its own answers."""
    chat_eval: ChatEval | None = None
    """Evaluate the chat model."""
    export: Export | None = None
    """Write the model as folders for other programs."""
    expect: dict[str, Condition] = Field(default={})
    """Conditions on results, such as `base_eval.bpb: "<= 1.6"`. The command exits with code 5 if a result does not meet
    its condition."""
    sweep: Sweep | None = None
    """Run this recipe many times, with different values of some fields."""
    run: Run = Run()
    """How to execute the stages."""
    tracking: Tracking = Tracking()
    """Where to log results."""


def _stage_sections() -> Iterator[tuple[str, type[StageSection]]]:
    for name, field in Recipe.model_fields.items():
        for kind in get_args(field.annotation):
            if isinstance(kind, type) and issubclass(kind, StageSection):
                yield name, kind


STAGE_SECTIONS = dict(_stage_sections())
"""The section of each stage by its name, in the order in which stages run."""
