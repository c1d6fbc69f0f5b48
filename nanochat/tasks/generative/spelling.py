"""Generated tasks about letters: spell a word, and count a letter in it by hand and with the calculator.

Each example is generated on access, from its own random stream. Training and evaluation use different words
(`nanochat.data.places.builtin.words` splits them by hash) and different streams.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from nanochat.data.places.builtin.words import split_words, word_list
from nanochat.data.sources.source_contents import resolve_files
from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.data.splits import parse_split
from nanochat.errors import PreflightError
from nanochat.tasks.parsing import parse_final_number, strip_special_tokens
from nanochat.tasks.table import WordTask
from nanochat.tasks.task import Example, check_index, single_turn
from nanochat.tokenizer.chat_format import Part
from nanochat.tools.calculator import calculate

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
MIN_LETTERS, MAX_LETTERS = 2, 32
LETTER_FROM_WORD_FRAC = 0.9
LOWER_CASE_FRAC = 0.3
QUESTION_MARK_FRAC = 0.5
_QUOTES = ("", "", "'", '"')


@dataclass(frozen=True)
class Spelling:
    """Examples about single words, in two forms.

    `simple_spelling`: `Spell the word: apple`, answered by `apple:a,p,p,l,e`. The question has one form, for the
    smallest models. `spelling_bee`: how often a letter occurs in a word, which is spelled out, counted by hand, and
    checked with the calculator.
    """

    name: WordTask
    words: tuple[str, ...]
    size: int
    split: str
    seed: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        stream = f"{self.name}/{self.split}/{self.seed}"
        order = _word_order(stream, len(self.words))
        word = self.words[order[check_index(index, self.size) % len(order)]]
        if self.name == "simple_spelling":
            return Example(single_turn(f"Spell the word: {word}", _spell_out(word)), meta={"word": word})
        draw = random.Random(f"{stream}/{index}")
        letter = draw.choice(word if draw.random() < LETTER_FROM_WORD_FRAC else _ALPHABET)
        meta = {"word": word, "letter": letter, "answer": str(word.count(letter))}
        return Example(single_turn(_render_question(draw, word, letter), render_counting(word, letter)), meta=meta)

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the completion is exactly the spelling, or whether the number after `####` is the count."""
        if self.name == "simple_spelling":
            return strip_special_tokens(completion) == _spell_out(example.meta["word"])
        return parse_final_number(strip_special_tokens(completion)) == Decimal(example.meta["answer"])


def read_words(source: SourceSpec, split: str, *, base: Path) -> tuple[str, ...]:
    """Return the words of a split, sorted. `train` has the training words, every other split the held-out words.

    The source is the built-in word list, or files with one word per line. A PreflightError says that it is neither, or
    that it has too few words for both splits.
    """
    if source.builtin not in (None, "spelling"):
        raise PreflightError(f"{describe(source)} holds no words to spell; use `builtin: spelling` or a words file")
    if parse_split(split)[1] is not None:
        raise PreflightError(
            f"{describe(source)}: words have no rows as in `{split}`; set the number of examples instead"
        )
    train, held_out = split_words(word_list(resolve_files(source, base=base)))
    words = train if split == "train" else held_out
    words = tuple(word for word in words if MIN_LETTERS <= len(word) <= MAX_LETTERS)
    if not words:
        raise PreflightError(f"{describe(source)} has no word of {MIN_LETTERS} to {MAX_LETTERS} letters for `{split}`")
    return words


def _spell_out(word: str) -> str:
    """Return `word:w,o,r,d`."""
    return f"{word}:{','.join(word)}"


def render_counting(word: str, letter: str) -> tuple[Part, ...]:
    """Return the parts of the answer: by hand, then `'word'.count('letter')` and its output, then `#### n`."""
    lines, hits = [], 0
    for position, character in enumerate(word, start=1):
        hits += character == letter
        lines.append(f"{position}:{character}" + (f" * {hits}" if character == letter else ""))
    by_hand = f"I spell the word out and mark every {letter}.\n\n{_spell_out(word)}\n\n" + "\n".join(lines)
    call = f"'{word}'.count('{letter}')"
    output = calculate(call)
    assert output == str(hits), f"calculator and count by hand disagree over {call}"
    return (
        Part("text", f"{by_hand}\n\nThat makes {hits}. I check it with Python: "),
        Part("python", call),
        Part("python_output", output),
        Part("text", f"\n\n#### {hits}"),
    )


@cache
def _word_order(stream: str, count: int) -> list[int]:
    return random.Random(stream).sample(range(count), count)


def _render_question(draw: random.Random, word: str, letter: str) -> str:
    template = draw.choice(QUESTIONS)
    if draw.random() < LOWER_CASE_FRAC:
        template = template.lower()
    quote = draw.choice(_QUOTES)
    mark = "?" if draw.random() < QUESTION_MARK_FRAC else ""
    return template.format(word=f"{quote}{word}{quote}", letter=f"{quote}{letter}{quote}") + mark


QUESTIONS: tuple[str, ...] = (
    "How many {letter} are in {word}",
    "How many times does {letter} appear in {word}",
    "How often does the letter {letter} occur in {word}",
    "Count the letter {letter} in {word}",
    "Count every {letter} in the word {word}",
    "What is the number of {letter} in {word}",
    "Tell me how many {letter} there are in {word}",
    "In the word {word}, how many {letter} do you see",
    "Can you count the {letter} in {word} for me",
    "Please count how often {letter} comes up in {word}",
    "How many of the letters in {word} are {letter}",
    "Look at {word} and tell me how many {letter} it has",
    "The word is {word}. How many {letter} does it contain",
    "Does {word} have any {letter}, and if so how many",
    "I am writing {word}. How many {letter} do I need",
    "Spell {word} and count the {letter}",
    "{word}: how many {letter}",
    "Number of {letter} in {word}",
    "Give me the count of {letter} in {word}",
    "If you spell out {word}, how many times do you write {letter}",
    "Which number is right: how many {letter} are there in {word}",
    "Quick question, how many {letter} in {word}",
    "How frequently is {letter} used in {word}",
    "Find all {letter} in {word} and say how many there are",
    "My friend says {word} has no {letter}. How many are there really",
    "Let us play a game: how many {letter} are hidden in {word}",
    "Go through {word} letter by letter and count {letter}",
    "What is the total of {letter} in {word}",
    "Cuántas veces aparece la letra {letter} en {word}",
    "Cuántas {letter} hay en la palabra {word}",
    "Cuenta las {letter} de {word}",
    "Combien de fois la lettre {letter} apparaît-elle dans {word}",
    "Combien de {letter} y a-t-il dans le mot {word}",
    "Compte les {letter} dans {word}",
    "Wie viele {letter} stecken in {word}",
    "Wie oft kommt der Buchstabe {letter} in {word} vor",
    "Zähle die {letter} im Wort {word}",
    "Quante {letter} ci sono nella parola {word}",
    "Quante volte compare la lettera {letter} in {word}",
    "Quantas vezes a letra {letter} aparece em {word}",
    "Quantos {letter} tem a palavra {word}",
    "Hoeveel keer staat de letter {letter} in {word}",
    "Hur många {letter} finns det i ordet {word}",
    "Ile razy litera {letter} występuje w słowie {word}",
    "{word} kelimesinde kaç tane {letter} var",
    "Сколько букв {letter} в слове {word}",
    "Скільки разів літера {letter} зустрічається у слові {word}",
    "{word} 里有几个 {letter}",
    "单词 {word} 中字母 {letter} 出现了多少次",
    "{word} に {letter} はいくつありますか",
    "{word} 단어에 {letter} 가 몇 번 나오나요",
    "{word} शब्द में {letter} कितनी बार आता है",
)
"""Questions for a count, in several languages. `_render_question` adds the question mark."""
