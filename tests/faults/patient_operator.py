"""The operator, which waits for an answer for as long as a test may hold it back."""

import sys

from lora_operator.__main__ import main
from lora_operator.cluster import api

LONGEST_HOLD_S = 3600.0

if __name__ == "__main__":
    api.REQUEST_TIMEOUT_S = api.WRITE_TIMEOUT_S = LONGEST_HOLD_S
    sys.exit(main())
