"""`python -m models`."""

import codecs
import sys
import unicodedata


def plain_letters(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that the terminal or file cannot take: the same without accents, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = unicodedata.normalize("NFKD", error.object[error.start : error.end])
    return "".join(c if c.isascii() else "?" for c in letters if not unicodedata.combining(c)), error.end


if __name__ == "__main__":
    codecs.register_error("plain letters", plain_letters)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="plain letters")  # type: ignore[union-attr]
    try:
        from models.cli.commands import app
    except KeyboardInterrupt:
        sys.exit("Interrupted before anything was done.")
    app(prog_name="python -m models")
