"""``python -m analysis.report`` is ``diffup report``."""

import sys

import diffup.checkout  # noqa: F401
from analysis.report.page import main
from diffup.errors import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
