"""Best-fit packing, with and without tokenizing, compared with a straightforward loader that searches its buffer.

    python tests/benchmarks/packing.py

Both loaders pack the same documents in the same run and must give the same rows. Both tokenize with SentencePiece, so
they differ only in packing and in the token cache. The text is the Python standard library's source, with document
lengths like those of web text (log-normal, median 600 tokens). Prints tokens per second of both and their ratio (median
and range over the repeats): for packing alone, for tokenizing and packing, and for packing from a token cache.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from parts.measuring import median_and_range, option_parser, seconds

from nanochat.data.packing.document_packer import BufferedDocument, DocumentPacker
from nanochat.data.places.builtin import stdlib_corpus
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.data.token_cache.cache import CachedStream, cached_stream
from nanochat.tokenizer import bpe

ROW_TOKENS = 2049
BUFFER = 1000
ROWS = 200
REPEATS = 5
BOS = 1


def straightforward_rows(documents: Iterator[list[int]], count: int) -> list[list[int]]:
    """Pack token lists by searching the whole buffer for every placement, as the seed does."""
    buffer: list[list[int]] = []
    rows = []
    for _ in range(count):
        row: list[int] = []
        while len(row) < ROW_TOKENS:
            while len(buffer) < BUFFER:
                buffer.append(next(documents))
            left = ROW_TOKENS - len(row)
            best, best_length = -1, 0
            for i, document in enumerate(buffer):
                if best_length < len(document) <= left:
                    best, best_length = i, len(document)
            if best < 0:
                best = min(range(len(buffer)), key=lambda i: len(buffer[i]))
            row.extend(buffer.pop(best)[:left])
        rows.append(row)
    return rows


def our_rows(documents: Iterator[np.ndarray], count: int) -> list[np.ndarray]:
    """Pack token ids without BOS by the same rule."""
    packer = DocumentPacker(ROW_TOKENS, BUFFER, bos_id=BOS, long_documents="crop")

    def refill() -> bool:
        packer.add(BufferedDocument(next(documents)))
        return True

    return [packer.next_row(refill) for _ in range(count)]


def make_texts(tokenizer: bpe.Tokenizer) -> list[str]:
    """Return texts with lengths in tokens distributed like those of web pages."""
    source = "".join(stdlib_corpus.documents("train"))
    draw = np.random.RandomState(0)
    per_token = len(source[:1_000_000]) / len(tokenizer.encode(source[:1_000_000]))
    texts, start = [], 0
    for length in draw.lognormal(np.log(600), 1.0, ROWS * 12):
        chars = max(1, int(length * per_token))
        texts.append(source[start : start + chars])
        start = (start + chars) % (len(source) - 100_000)
    return texts


def report(title: str, times: list[tuple[float, float]]) -> None:
    """Print the speeds and ratios of pairs of seconds: ours, and those of the straightforward loader."""
    ours, theirs = (ROWS * ROW_TOKENS / statistics.median(values) / 1e6 for values in zip(*times, strict=True))
    ratio = median_and_range([their / our for our, their in times], 1)
    print(f"{title}: {ours:.2f} M tokens/s, straightforward {theirs:.2f}; ratio {ratio} in {len(times)} repeats")


def cached(texts: list[str], tokenizer: bpe.Tokenizer, folder: Path) -> CachedStream:
    """Return a stream of the texts' tokens from a token cache."""
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    source = SourceSpec(name="texts", path=(str(folder / "texts.parquet"),), validation_hash_frac=1e-9)
    return cached_stream(source, "train", tokenizer, base=folder)


def main() -> None:
    option_parser(__doc__).parse_args()
    tokenizer = bpe.train(stdlib_corpus.documents("train"), vocab_size=8192, max_chars=10**7, max_document_chars=10**4)
    texts = make_texts(tokenizer)
    arrays = tokenizer.encode_batch(texts)
    lists = [[BOS, *array.tolist()] for array in arrays]
    if [row.tolist() for row in our_rows(iter(arrays), ROWS)] != straightforward_rows(iter(lists), ROWS):
        sys.exit("the two loaders disagree")

    def ours_whole() -> None:
        def documents() -> Iterator[np.ndarray]:
            for i in range(0, len(texts), 64):
                yield from tokenizer.encode_batch(texts[i : i + 64])

        our_rows(documents(), ROWS)

    def theirs_whole() -> None:
        straightforward_rows(([BOS, *tokenizer.encode(text)] for text in texts), ROWS)

    packing = [
        (seconds(lambda: our_rows(iter(arrays), ROWS)), seconds(lambda: straightforward_rows(iter(lists), ROWS)))
        for _ in range(REPEATS)
    ]
    report(f"packing, buffer {BUFFER}", packing)
    whole = [(seconds(ours_whole), seconds(theirs_whole)) for _ in range(REPEATS)]
    report("tokenizing and packing (filling the buffer included)", whole)
    with tempfile.TemporaryDirectory() as folder:
        stream = cached(texts, tokenizer, Path(folder))
        kept = [(seconds(lambda: our_rows(stream, ROWS)), theirs) for _, theirs in whole]
        report("packing from a finished token cache", kept)


if __name__ == "__main__":
    main()
