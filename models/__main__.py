"""`python -m models`."""

import sys

if __name__ == "__main__":
    try:
        from models.cli.commands import app
    except KeyboardInterrupt:  # the imports take seconds
        sys.exit("Interrupted before anything was done.")
    app(prog_name="python -m models")
