"""Import this first, before torch and NumPy, for the numbers that the commands give (see
processor.py).

For notebooks and scripts; commands do it themselves.
"""

import sys

from interp_core import processor

if (differs := processor.settle()) is not None:
    print(f"note: {differs}", file=sys.stderr)
