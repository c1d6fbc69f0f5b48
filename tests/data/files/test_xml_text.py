"""Tests that the text of xml documents is taken out of their markup, and that documents of xml are read."""

from __future__ import annotations

import gzip

import pytest

from nanochat.data.documents import single_pass
from nanochat.data.files.formats.xml_text import xml_text

DOCUMENT = """<?xml version="1.0" encoding="utf-8"?>
<!-- no text -->
<book xmlns:x="http://example.com" lang="en">
  <title>A  title</title>
  <x:chapter n="1"><p>One <b>bold</b>
    word &lt;&amp;&gt; caf\u00e9.</p><p>Two.

    Three.</p></x:chapter>
  <code><![CDATA[if a < b:
    return  1]]></code>
  <verse xml:space="preserve"> roses
   violets</verse>
  <empty/>
  <mixed>Before <list><item>x</item><item>y</item></list> after</mixed>
  <names><name><first>Ada</first></name><name><first>Alan</first></name></names>
</book>
"""
TEXT = """A title
One bold word <&> caf\u00e9.
Two.

Three.
if a < b:
    return  1
 roses
   violets
Before
x
y
after
Ada
Alan
"""


def test_xml_text_has_a_line_for_each_element_that_is_not_in_a_text():
    assert xml_text(DOCUMENT.encode()) == TEXT


@pytest.mark.parametrize("content", [b"<a/>", b"<a> <b> </b></a>", b'<a b="c"><!-- x --><?d e?></a>'])
def test_xml_text_of_a_document_without_text_is_empty(content):
    assert xml_text(content) == ""


@pytest.mark.parametrize(
    "content",
    [
        "<a>é</a>".encode("utf-8-sig"),
        "<a>é</a>".encode("utf-16"),
        '<?xml version="1.0" encoding="UTF-16"?><a>é</a>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="ISO-8859-1"?><a>\xe9</a>',
        "<?xml version='1.0' encoding='big5-hkscs'?><a>é</a>".encode("big5-hkscs"),
        b"<a>&#233;</a>",
        b"<a>&eacute;</a>",
        b'<!DOCTYPE a PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "a.dtd"><a>&eacute;</a>',
        b'<!DOCTYPE a [<!ENTITY e "&#233;">]><a>&e;</a>',
    ],
)
def test_xml_text_honours_encodings_and_entities(content):
    assert xml_text(content) == "é\n"


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<a>", "not readable as xml: no element found: line 1, column 3"),
        (b"<a>\n</b>", "not readable as xml: mismatched tag: line 2, column 2"),
        (b"text", "not readable as xml: syntax error: line 1, column 0"),
        (b"<a>&nonsense;</a>", "the entity `&nonsense;` is not declared"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "its encoding `klingon` is unknown"),
        (b'<?xml version="1.0" encoding="ascii"?><a>\x81</a>', "not ascii at byte 42"),
        (f'<!DOCTYPE a [<!ENTITY l0 "{"ha" * 50}">{LAUGHS}]><a>&l8;</a>'.encode(), "entities|amplification"),
    ],
)
def test_xml_text_that_cannot_be_read_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        xml_text(content)


def test_xml_text_of_deep_documents_needs_no_stack():
    assert xml_text(b"<a>" * 100_000 + b"x" + b"</a>" * 100_000) == "x\n"


def test_documents_of_xml_are_texts_and_bad_ones_are_counted(files, base):
    files.text("a.xml", DOCUMENT)
    files.text("b.xml", "<a>")
    files.text("c.xml.gz", gzip.compress(b"<a>packed</a>"))
    notes = []
    source = files.source("", validation_hash_frac=0.0)
    read = list(single_pass(source, "train", base=base, notify=notes.append))
    read += single_pass(source, "validation", base=base)
    assert sorted(read) == [TEXT, "packed\n"]
    assert len(notes) == 1 and "a file was left out" in notes[0] and "b.xml: not readable as xml" in notes[0]
