"""Runs all benchmarks: python -m benchmarks [--quick] [--json FILE]."""

from benchmarks import (
    import_time,
    many_pages_in_one_run,
    many_pages_in_short_runs,
    many_single_pages,
    mappings_added,
    memory_for_indices,
    one_huge_page,
    one_page_by_address,
    one_page_of_buffers,
)
from benchmarks._report import run

#: In the order of the table in README.md.
MODULES = (
    one_page_by_address,
    one_page_of_buffers,
    many_single_pages,
    many_pages_in_one_run,
    many_pages_in_short_runs,
    one_huge_page,
    memory_for_indices,
    mappings_added,
    import_time,
)

if __name__ == "__main__":
    run([module.measure for module in MODULES])
