"""How the library compares with what it stands on; see README.md.  Run: python -m benchmarks."""
