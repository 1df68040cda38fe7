"""``python -m cluster.tracking sync|serve --results DIR``: MLflow runs of a result store, written again or served."""

import sys

from cluster.tracking.launch_runs import main
from diffup.errors import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
