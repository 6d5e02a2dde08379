"""`python -m adaptive_span.benchmark` is the command `adaptive-span benchmark`."""

import sys

from adaptive_span.terminal.program import exit_codes

if __name__ == "__main__":
    with exit_codes():
        from adaptive_span.cli import benchmark  # torch; and Windows is refused before

        benchmark.main(sys.argv[1:])
