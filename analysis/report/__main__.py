"""``python -m analysis.report --results DIR --out report.html``: one page of a result store."""

import sys

from analysis.report.page import main
from diffup.errors import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
