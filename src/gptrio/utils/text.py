"""The text of a file, whatever the locale."""

from __future__ import annotations

import codecs

from gptrio.errors import OptionError


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8, or UTF-16 that begins with a byte order mark, without the mark.

    Raises:
        OptionError: the bytes are in another encoding; the message calls them `name`.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        kind = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
        before = data[: error.start].decode(encoding, errors="replace").count("\n")
        line = f", in line {before + 1}" if before else ""
        raise OptionError(f"{name} is not {kind} text (byte {error.start}{line}); convert it first") from error
