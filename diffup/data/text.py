"""The one reader of text files from outside: lists of names and small JSON documents, in any Unicode encoding."""

from __future__ import annotations

import codecs
from pathlib import Path

from diffup.errors import UserError

# Byte order marks; that of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(content: bytes) -> str:
    """The text of a file's bytes: in UTF-8, or in what its byte order mark names; the mark is taken off.

    Raises:
        UnicodeDecodeError: another encoding.
    """
    return content.decode(next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8"))


def read_lines(path: Path) -> list[str]:
    """The lines of a list without surrounding blanks; empty lines are left out.

    Lines end as on Linux, Windows or old Macs. A name may hold blanks: a line is not cut into words.

    Raises:
        UserError: it can't be read, or is not Unicode text.
    """
    try:
        text = decode(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} can't be read as text ({error}); save it as UTF-8 and run again") from None
    except OSError as error:
        raise UserError(f"{path} can't be read as text ({error}); correct or remove it and run again") from None
    return [line.strip() for line in lines(text) if line.strip()]


def lines(text: str) -> list[str]:
    """A text cut at the ends of its lines, and nowhere else: `str.splitlines` cuts at form feeds too.

    Byte order marks that begin a line, as joined files have them, are taken off.
    """
    return [line.lstrip("\ufeff") for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
