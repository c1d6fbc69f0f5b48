"""Convert the markdown of a report to one self-contained HTML file, for a browser, an email or MLflow's preview.

Images and the recipe are embedded. The page contains no scripts, and text written by a model is never treated as HTML.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_FIRST_HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
_STYLE = """\
:root { color-scheme: light; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --paper: #f6f8fa; --mark: #0b63c5; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
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
th, td { padding: .35rem .7rem; border: 1px solid var(--line); text-align: left; }
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


def render_html(markdown: str, folder: Path, *, attached: Sequence[Path] = ()) -> str:
    """Return a report as an HTML page.

    Image names are relative to `folder`; a missing image remains a link. The text files in `attached` are shown in
    collapsed sections at the end, and links to their names lead to those sections.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    names = {path.name for path in attached if path.is_file()}
    for token in tokens:
        for child in token.children or ():
            _embed(child, folder, names)
    title = _FIRST_HEADING.search(markdown)
    return _PAGE.format(
        title=html.escape(title[1] if title else "nanochat"),
        style=_STYLE,
        navigation=_navigation(tokens),
        body=parser.renderer.render(tokens, parser.options, {}),
        attached="\n".join(_collapsed_section(path) for path in attached if path.is_file()),
    )


def _embed(token: Token, folder: Path, names: set[str]) -> None:
    """Inline an image as a base64 data URI. Turn a link to an attached file into a link to its section of this page."""
    source, target = token.attrGet("src"), token.attrGet("href")
    if token.type == "image" and isinstance(source, str) and (folder / source).is_file():
        content = base64.b64encode((folder / source).read_bytes()).decode("ascii")
        token.attrSet("src", f"data:image/png;base64,{content}")
    elif token.type == "link_open" and target in names:
        token.attrSet("href", f"#{target}")


def _navigation(tokens: Sequence[Token]) -> str:
    """Add an id to every second-level heading, and return links to them."""
    links = []
    for opening, text in itertools.pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2":
            anchor = re.sub(r"[^a-z0-9]+", "-", text.content.lower()).strip("-")
            opening.attrSet("id", anchor)
            links.append(f'<a href="#{anchor}">{html.escape(text.content)}</a>')
    return " ".join(links)


def _collapsed_section(path: Path) -> str:
    text = html.escape(path.read_text(encoding="utf-8", errors="replace"))
    return (
        f'<details id="{html.escape(path.name)}"><summary>{html.escape(path.name)}</summary><pre>{text}</pre></details>'
    )
