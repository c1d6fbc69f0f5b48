"""Formats numbers for readers: counts, FLOPs, bytes, durations and scores."""

from __future__ import annotations

_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DURATIONS = ((86_400 * 365, "years"), (86_400, "days"), (3_600, "h"), (60, "min"))


def show_count(value: float | None) -> str:
    """Return `600M`, `1.51M`, `286M`; `-` for None."""
    if value is None:
        return "-"
    return _scaled(value, _COUNTS, "") if value >= 10_000 else f"{value:,.0f}"


def show_flops(value: float | None) -> str:
    """Return `4.81e17`; `-` for None."""
    return "-" if value is None else f"{value:.2e}".replace("e+", "e")


def show_bytes(value: float | None) -> str:
    """Return `22.3 GiB`; `-` for None."""
    return "-" if value is None else _scaled(value, _BYTES, " ") if value >= 2**10 else f"{value:.0f} B"


def show_duration(seconds: float | None) -> str:
    """Return `45 s`, `37 min`, `1.9 days`; `-` for None."""
    if seconds is None:
        return "-"
    return _scaled(seconds, _DURATIONS, " ") if seconds >= 90 else f"{seconds:.0f} s"


def show_clock(seconds: float) -> str:
    """Return `0:07`, `5:00`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_value(value: float, *, digits: int = 4) -> str:
    """Return a metric's value: whole numbers from 10 up in full, others with `digits` significant digits."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.{digits}g}"


def show_score(
    value: float, stderr: float | None, count: int | None = None, *, digits: int = 4, remark: str | None = None
) -> str:
    """Return `0.75 ± 0.12 (n 12; 3 prompts cut)`: value, standard error, problems and a remark, as far as given."""
    error = "" if stderr is None else f" ± {stderr:.2g}"
    remarks = [*([] if count is None else [f"n {count:,}"]), *([remark] if remark else [])]
    return show_value(value, digits=digits) + error + (f" ({'; '.join(remarks)})" if remarks else "")


def shorten(text: str, most_chars: int) -> str:
    """Return a text, without its end if it is longer."""
    return text if len(text) <= most_chars else f"{text[: most_chars - 1]}…"


def _scaled(value: float, units: tuple[tuple[float, str], ...], blank: str) -> str:
    size, unit = next((entry for entry in units if value >= entry[0]), units[-1])
    number = value / size
    digits = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f}{blank}{unit}"
