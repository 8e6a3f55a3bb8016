"""`python -m isoform`."""

from __future__ import annotations

from isoform.cli import main

if __name__ == "__main__":
    main()
