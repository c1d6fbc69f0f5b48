"""A weighted mixture of document streams, resumable from a recorded position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from nanochat.errors import PreflightError
from nanochat.plurals import several

Item_co = TypeVar("Item_co", covariant=True)


class Stream(Protocol[Item_co]):
    """Documents without end, as text or as token ids, resumable from a recorded position."""

    @property
    def epoch(self) -> int:
        """How many times the source had been read to its end before the document last returned."""

    def __next__(self) -> Item_co: ...

    def position(self) -> dict[str, object]:
        """Return, JSON-able, the position after the document last returned."""

    def reopened(self, start: Mapping[str, object]) -> Stream[Item_co]:
        """Return a new stream of the same documents that continues from `start`."""


class Drawn(NamedTuple, Generic[Item_co]):
    """A document, the number of its stream, and how often that stream had been read to its end before."""

    document: Item_co
    stream: int
    epoch: int


class Mixture(Generic[Item_co]):
    """Documents of several streams; the next one comes from the stream that is furthest below its share."""

    def __init__(self, streams: Sequence[Stream[Item_co]], weights: Sequence[float]) -> None:
        assert len(streams) == len(weights) > 0, "every stream needs a weight"
        assert all(weight > 0 for weight in weights), "weights must be positive"
        self._streams = list(streams)
        self._weights = list(weights)
        self._counts = [0] * len(streams)

    def draw(self) -> Drawn[Item_co]:
        """Return the next document. There is no end; the streams' errors are raised."""
        i = min(range(len(self._streams)), key=lambda j: ((self._counts[j] + 1) / self._weights[j], j))
        document = next(self._streams[i])
        self._counts[i] += 1
        return Drawn(document, i, self._streams[i].epoch)

    def position(self) -> dict[str, object]:
        """Return, JSON-able, how many documents each stream has given, and its position."""
        return {"counts": list(self._counts), "streams": [stream.position() for stream in self._streams]}

    def seek(self, position: Mapping[str, object]) -> None:
        """Continue from what `position()` returned.

        Raises:
            PreflightError: the position belongs to other streams.
        """
        counts, positions = position.get("counts"), position.get("streams")
        if not isinstance(counts, list) or not isinstance(positions, list) or len(positions) != len(self._streams):
            raise PreflightError(
                f"the checkpoint's data position is not one of a mixture of {several(len(self._streams), 'source')}; "
                "start the stage over with `--force`"
            )
        self._streams = [stream.reopened(at) for stream, at in zip(self._streams, positions, strict=True)]
        self._counts = [int(count) for count in counts]
