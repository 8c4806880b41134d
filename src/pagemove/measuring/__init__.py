"""Measuring, whatever is measured: timing, the machine, child processes, figures and files."""
