"""Estimates how much text `pretrain.long_documents: crop` throws away, from a sample of the documents.

The report of a run shows the share that it really threw away. The modules that read and pack documents are imported
only if a recipe crops, so that the plan of any other recipe is quick.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from nanochat.data.sources.source_downloads import is_available_offline
from nanochat.errors import PreflightError, StageError
from nanochat.plan.describe import CROP_WARNING_FRAC, describe_crop
from nanochat.plan.estimate.dataset_sizes import bytes_per_token
from nanochat.plan.plan import Plan
from nanochat.plan.specs.inputs import WeightedSource
from nanochat.plan.specs.training import PretrainSpec

_SAMPLE_DOCUMENTS = 256
_SAMPLE_CHARS = 4_000_000
_BUFFERS = 3
"""The packer is followed until it has read this many times the documents of its buffer."""


def crop_notes(plan: Plan, base: Path) -> tuple[str, ...]:
    """Return a sentence on the share of text that pretraining will throw away, if it crops and its data are here."""
    return tuple(
        note
        for stage in plan.stages
        if isinstance(stage.spec, PretrainSpec) and stage.spec.long_documents == "crop"
        if (note := _note(stage.spec, base)) is not None
    )


def _note(spec: PretrainSpec, base: Path) -> str | None:
    if not all(is_available_offline(part.source, base=base) for part in spec.data):
        return None
    try:
        lengths = _sample_lengths(spec.data, bytes_per_token(spec.model.vocab_size), base)
    except (PreflightError, StageError):  # the checks of the data report it
        return None
    share = _cropped_frac(lengths, spec.model.sequence_len + 1, spec.buffer_documents)
    warning = "warning: " if share > CROP_WARNING_FRAC else ""
    return f"{warning}{describe_crop(share)} (an estimate from the first documents)"


def _sample_lengths(data: Sequence[WeightedSource], token_bytes: float, base: Path) -> list[int]:
    """Return the estimated tokens of some documents; each source has as many of them as its weight says."""
    from nanochat.data.documents import single_pass

    total_weight = sum(part.weight for part in data)
    lengths: list[int] = []
    for part in data:
        sample: list[int] = []
        chars = 0
        for text in itertools.islice(single_pass(part.source, "train", base=base), _SAMPLE_DOCUMENTS):
            sample.append(math.ceil(len(text.encode()) / token_bytes))
            chars += len(text)
            if chars >= _SAMPLE_CHARS:
                break
        count = max(1, round(_SAMPLE_DOCUMENTS * part.weight / total_weight))
        lengths += itertools.islice(itertools.cycle(sample), count)
    return lengths


def _cropped_frac(lengths: Sequence[int], row_tokens: int, buffer_documents: int) -> float:
    """Return the fraction of tokens that the packer throws away with documents of these lengths, repeated."""
    import numpy as np

    from nanochat.data.packing.document_packer import BufferedDocument, DocumentPacker

    packer = DocumentPacker(row_tokens, buffer_documents, bos_id=0, long_documents="crop")
    documents = itertools.cycle([BufferedDocument(np.zeros(length, np.int32)) for length in lengths])
    added = 0

    def refill() -> bool:
        nonlocal added
        packer.add(next(documents))
        added += 1
        return True

    while added < _BUFFERS * buffer_documents:
        packer.next_row(refill)
    return packer.stats.cropped_frac
