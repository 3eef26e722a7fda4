"""`python -m loramux_train`: as `loramux train`."""

import sys

from loramux_train.cli import train

if __name__ == "__main__":
    sys.exit(train(result_action="return_value"))
