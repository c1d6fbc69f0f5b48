"""Tests that chats of any layout are mapped to conversations, and that each form of a chat gives the same tokens."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nanochat.data.ingest.convert import convert
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import RecipeError, StageError
from nanochat.plan.recipe_sources import source_spec
from nanochat.recipe.load import load_recipe
from nanochat.tasks.chat_forms.chat_rows import parse_row
from nanochat.tasks.chat_forms.form_names import form_name
from nanochat.tasks.chat_forms.mapping import fill
from nanochat.tasks.chat_forms.row_errors import BadConversation, UntrainedRow
from nanochat.tasks.conversations import conversation_lines, read_conversations
from nanochat.tokenizer.chat_format import render

MAP = {"user": "{question}\n\n{context}", "assistant": "answer"}
TEXTS = (("user", MAP["user"]), ("assistant", MAP["assistant"]))
CHATS = [
    ("What is the capital?", "France is a country.", "Paris"),
    ('Say "yes", then\nno', "", "yes\n\nno"),
    ("2 + 2?", "", "4"),
    ("été", "日本語, ок", "{braces} and \\n"),
]


def messages(question, context, answer):
    question = "\n\n".join(filter(None, (question, context)))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sharegpt(*chat):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in messages(*chat)]


FORMS = {
    "messages": lambda *chat: {"messages": messages(*chat)},
    "ShareGPT": lambda *chat: {"conversations": sharegpt(*chat)},
    "Alpaca": lambda *chat: dict(zip(("instruction", "input", "output"), chat, strict=True)),
    "mapped": lambda *chat: dict(zip(("question", "context", "answer"), chat, strict=True)),
    "parts": lambda *chat: [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages(*chat)
    ],
    "prompt and response": lambda question, context, answer: {
        "prompt": messages(question, context, answer)[0]["content"], "response": answer,
    },
    "preference pairs": lambda *chat: {"chosen": messages(*chat), "rejected": messages(*chat[:2], "never")},
}  # fmt: skip


def rows_of(form):
    return [FORMS[form](*chat) for chat in CHATS]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def rendered_of(path, tokenizer, **fields):
    """Return the ids and masks of the conversations in a file, as the sft stage renders them."""
    source = SourceSpec(name="chats", path=(str(path),), **fields)
    task = read_conversations(source, "train", base=path.parent)
    rendered = [render(tokenizer, task[i].conversation) for i in range(len(task))]
    return [(one.ids, one.mask) for one in rendered]


def test_same_chats_in_each_form_give_the_same_ids_and_masks(tmp_path, tokenizer):
    """The expected ids are those of the texts; only the answers are trained on."""
    expected = []
    for chat in CHATS:
        question, answer = (list(turn["content"].encode()) for turn in messages(*chat))
        ids = [256, 257, *question, 258, 259, *answer, 260]
        expected.append((ids, [0] * (4 + len(question)) + [1] * (len(answer) + 1)))
    for form in FORMS:
        fields = {"chat_map": TEXTS} if form == "mapped" else {}
        write_jsonl(tmp_path / "a.jsonl", rows_of(form))
        assert rendered_of(tmp_path / "a.jsonl", tokenizer, **fields) == expected, form
        (tmp_path / "a.json").write_text(json.dumps(rows_of(form)))
        convert(tmp_path / "a.json", base=tmp_path)
        assert rendered_of(tmp_path / "a.json", tokenizer, **fields) == expected, form
        if form != "parts":
            write_parquet(tmp_path / "a.parquet", rows_of(form))
            assert rendered_of(tmp_path / "a.parquet", tokenizer, **fields) == expected, form


def test_array_of_conversations_of_several_forms_gives_the_same_ids_and_masks(tmp_path, tokenizer):
    """In the copy, messages of the two forms have the same keys, some of them null."""
    write_jsonl(tmp_path / "a.jsonl", rows_of("messages") * 3)
    values = [
        *map(messages, *zip(*CHATS, strict=True)),
        *rows_of("messages"),
        *map(sharegpt, *zip(*CHATS, strict=True)),
    ]
    for content in (values, {"data": values}):
        (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
        convert(tmp_path / "a.json", base=tmp_path)
        assert rendered_of(tmp_path / "a.json", tokenizer) == rendered_of(tmp_path / "a.jsonl", tokenizer)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_mapped_csv_gives_the_same_ids_and_masks_as_messages(tmp_path, tokenizer, name, separator):
    """Numbers stay the texts that the file holds."""
    chats = [*CHATS, ("007?", "", "1.50")]
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("question", "context", "answer"), *chats])
    convert(tmp_path / name, base=tmp_path)
    write_jsonl(tmp_path / "b.jsonl", [FORMS["messages"](*chat) for chat in chats])
    mapped = rendered_of(tmp_path / name, tokenizer, chat_map=TEXTS)
    assert mapped == rendered_of(tmp_path / "b.jsonl", tokenizer)
    assert len(mapped) == len(chats)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer", "A"),
        ("no such key", ""),
        ("{q}\n{answer}", "Q\nA"),
        ("{q}\n\n{empty}", "Q"),
        ("{empty}\n\n{q}\n", "Q"),
        ("  Context: {empty}\nQuestion: {q}", "Context:\nQuestion: Q"),
        ("{q}{answer}{q}", "QAQ"),
        ('{{"{q}": {{}}}}', '{"Q": {}}'),
        ("say {empty}", ""),
        ("{spaced} {q}", " x\n Q"),
    ],
)
def test_template_is_filled_without_white_space_of_empty_keys(text, expected):
    assert fill(text, {"q": "Q", "answer": "A", "spaced": " x\n"}) == expected


def test_mapped_row_reads_only_keys_of_the_map_and_flags():
    ignored: set[str] = set()
    system = (("system", "You know {topic}."), *TEXTS)
    row = {"question": "q", "context": None, "answer": 42, "topic": "", "tools": ["x"], "weight": 1, "label": None}
    conversation = parse_row(row, ignored, chat_map=system)
    assert [(m.role, m.content) for m in conversation.messages] == [("user", "q"), ("assistant", "42")]
    assert ignored == {"tools"}
    conversation = parse_row({**row, "topic": "maps"}, ignored, chat_map=system)
    assert conversation.messages[0].content == "You know maps."
    with pytest.raises(UntrainedRow):
        parse_row({**row, "weight": 0}, ignored, chat_map=system)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q", "answer": "a"}, r"no key `context` \(the source's `map`\); the keys are: question, answer"),
        ({"question": "", "context": " ", "answer": ""}, "an empty answer trains nothing"),
        ({"question": "", "context": None, "answer": "a"}, "the question is empty: no value in `question`, `context`"),
        ({"question": ["q"], "context": "", "answer": "a"}, r"`question` must hold text"),
        ([{"role": "user", "content": "q"}], "expected an object with the keys that `map` names, found a list"),
    ],
)
def test_row_that_the_map_does_not_fit_is_refused(row, problem):
    with pytest.raises(BadConversation, match=problem):
        parse_row(row, set(), chat_map=TEXTS)


def test_map_with_a_misspelled_key_ends_with_the_keys_that_exist(tmp_path, tokenizer):
    write_jsonl(tmp_path / "a.jsonl", rows_of("mapped"))
    wrong = (("user", "qestion"), ("assistant", "answer"))
    with pytest.raises(StageError, match=r"4 of 4 .*\n.*no key `qestion` .*: question, context, answer"):
        rendered_of(tmp_path / "a.jsonl", tokenizer, chat_map=wrong)


def test_map_decides_which_lines_count_in_a_digest(tmp_path):
    source = SourceSpec(name="chats", path=("a.jsonl",))
    mapped = SourceSpec(name="chats", path=("a.jsonl",), chat_map=(("user", "x"), ("assistant", "y")))
    line = b'{"x": "q", "y": "a"}\n'
    filters = [conversation_lines(one) for one in (source, mapped)]
    assert [one.is_usable(tmp_path, line) for one in filters] == [False, True]
    assert filters[0].name != filters[1].name


RECIPE = {
    "nanochat": 1,
    "name": "mapped",
    "sources": {"chats": {"path": "a.jsonl", "map": MAP}},
    "sft": {"init_from": "./model", "data": {"chats": {"task": "conversations", "source": "chats"}}},
}


def load(tmp_path, **changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return load_recipe(path).recipe


def test_map_of_a_recipe_becomes_texts_by_role(tmp_path):
    section = load(tmp_path).sources["chats"]
    assert source_spec("chats", section).chat_map == TEXTS


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"map": {"user": "q"}}, "assistant"),
        ({"map": {"user": "{q", "assistant": "a"}}, "sources.chats.map.user"),
        ({"map": {"user": "{{q}}", "assistant": "a"}}, "sources.chats.map.user"),
        ({"map": {"human": "q", "user": "q", "assistant": "a"}}, "human"),
        ({"map": MAP, "column": "x"}, "`column` cannot be combined with `map`"),
    ],
)
def test_map_of_a_recipe_is_checked(tmp_path, source, problem):
    with pytest.raises(RecipeError, match=problem):
        load(tmp_path, sources={"chats": {"path": "a.jsonl", **source}})


def test_map_is_refused_for_data_that_is_not_chats(tmp_path):
    with pytest.raises(RecipeError, match="has a `map`, which only the task `conversations` reads"):
        load(tmp_path, tokenizer={"source": "chats", "vocab_size": 512})


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("messages", "messages (`messages`)"),
        ("ShareGPT", "ShareGPT (`conversations` with `from` and `value`)"),
        ("Alpaca", "Alpaca (`instruction`, `input`, `output`)"),
        ("parts", "messages (rows that are lists, with content parts)"),
        ("prompt and response", "question and answer (`prompt`, `response`)"),
        ("preference pairs", "preference pairs (`chosen`; `rejected` is not used)"),
    ],
)
def test_form_of_chats_is_named(form, name):
    assert form_name(rows_of(form)[0]) == name
    assert form_name(rows_of("mapped")[0], chat_map=TEXTS) == "mapped from `question`, `context`, `answer`"
