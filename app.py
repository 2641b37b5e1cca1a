"""The web page, or with ``--camera 0`` a window: ``python app.py --port 7861`` is ``fer app --port 7861``."""

import sys

from fer.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
