"""What things cost on this machine: `python -m adaptive_span.benchmark --help`."""
