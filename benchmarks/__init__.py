"""What README's numbers come from: `make bench` runs `python -m benchmarks`."""
