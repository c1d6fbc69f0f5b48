"""Converts the markdown of a report to one self-contained HTML file, for a browser, an email or MLflow's preview.

The pictures that the report drew and the recipe are embedded, and nothing else. The page contains no scripts and loads
nothing. Text in the markdown is escaped (`markdown`). HTML, images and links that got through are shown as text. So no
file of this machine and no address gets into the page.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from nanochat.terminal.output import printable

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STYLE = """\
:root { color-scheme: light; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --paper: #f6f8fa; --mark: #0b63c5; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
nav { position: sticky; top: 0; padding: .6rem max(1.5rem, calc(50vw - 30rem)); background: var(--paper);
  border-bottom: 1px solid var(--line); font-size: .9rem; }
nav a { margin-right: 1.1rem; color: var(--mark); text-decoration: none; white-space: nowrap; }
main { max-width: 63rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { margin: .5rem 0 0; font-size: 2rem; }
h1 + p { margin-top: .2rem; color: var(--soft); font-size: 1.1rem; }
h2 { margin: 2.4rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.35rem;
  scroll-margin-top: 3.5rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1.05rem; }
table { display: block; max-width: 100%; overflow-x: auto; border-collapse: collapse; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { max-width: 40rem; padding: .35rem .7rem; border: 1px solid var(--line); text-align: left;
  overflow-wrap: break-word; }
th { background: var(--paper); }
tbody tr:nth-child(even) { background: #fbfcfd; }
code, pre { font: .86rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { max-height: 28rem; overflow: auto; padding: .8rem 1rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
:not(pre) > code { padding: .1rem .3rem; background: var(--paper); border-radius: 4px; overflow-wrap: anywhere; }
pre code { font-size: inherit; }
img { max-width: 100%; height: auto; }
a { color: var(--mark); }
details { margin: .8rem 0; scroll-margin-top: 3.5rem; }
summary { cursor: pointer; color: var(--mark); }
@media (max-width: 50rem) { main { padding: .5rem .9rem 2rem; }
  th, td { padding: .25rem .4rem; } table { font-size: .82rem; } }
"""
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<nav>{navigation}</nav>
<main>
{body}
{attached}
</main>
</body>
</html>
"""


def render_html(markdown: str, pictures: Mapping[str, Path], *, attached: Sequence[Path] = ()) -> str:
    """Return a report as an HTML page.

    `pictures` maps the names of images in the markdown to PNG files. The text files in `attached` are shown in
    collapsed sections at the end, and links to their names lead to those sections. Other images and links, and symbolic
    links to files, are not followed.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    attached = [path for path in attached if _is_own_file(path)]
    for token in tokens:
        if token.children is not None:
            token.children = list(_safe(token.children, pictures, {path.name for path in attached}))
    title = next((text for opening, text in itertools.pairwise(tokens) if opening.type == "heading_open"), None)
    return _PAGE.format(
        title=html.escape(_plain_text(title) if title is not None else "nanochat"),
        style=_STYLE,
        navigation=_navigation(tokens),
        body=parser.renderer.render(tokens, parser.options, {}),
        attached="\n".join(map(_collapsed_section, attached)),
    )


def _safe(tokens: Iterable[Token], pictures: Mapping[str, Path], attached: Collection[str]) -> Iterator[Token]:
    """Yield inline tokens: our pictures as data, links to attached files, and other images and links as text."""
    targets: list[str | None] = []
    for token in tokens:
        match token.type:
            case "image":
                name = str(token.attrGet("src"))
                picture = _picture(pictures.get(name))
                if picture is not None:
                    token.attrSet("src", picture)
                yield token if picture is not None else _text(f"![{token.content}]({name})")
            case "link_open":
                target = str(token.attrGet("href"))
                targets.append(None if target in attached else target)
                token.attrSet("href", f"#{target}")
                yield token if target in attached else _text("[")
            case "link_close":
                unsafe = targets.pop()
                yield token if unsafe is None else _text(f"]({unsafe})")
            case _:
                yield token


def _picture(path: Path | None) -> str | None:
    """Return a picture as a data URI, or None if there is none."""
    if path is None or not _is_own_file(path) or not (content := path.read_bytes()).startswith(_PNG_SIGNATURE):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def _is_own_file(path: Path) -> bool:
    """Return whether there is a file that lies here itself. A run folder from elsewhere may link to private files."""
    return path.is_file() and not path.is_symlink()


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _plain_text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or ())


def _navigation(tokens: Sequence[Token]) -> str:
    """Add an id to every second-level heading, and return links to them."""
    links = []
    for opening, text in itertools.pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2":
            heading = _plain_text(text)
            anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
            opening.attrSet("id", anchor)
            links.append(f'<a href="#{anchor}">{html.escape(heading)}</a>')
    return " ".join(links)


def _collapsed_section(path: Path) -> str:
    text = html.escape(printable(path.read_text(encoding="utf-8", errors="replace")))
    return (
        f'<details id="{html.escape(path.name)}"><summary>{html.escape(path.name)}</summary><pre>{text}</pre></details>'
    )
