"""`python -m hamr_lib` is the command `hamr`."""

import sys

from hamr_lib.recovery.command import main

if __name__ == "__main__":
    sys.exit(main())
