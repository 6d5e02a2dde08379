"""`python -m adaptive_span` is the command `adaptive-span`."""

from adaptive_span.cli.main import main

if __name__ == "__main__":
    main()
