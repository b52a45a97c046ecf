"""The entry of ``python -m lit_ft``."""

import sys

from lit_ft.cli import main

if __name__ == "__main__":
    sys.exit(main())
