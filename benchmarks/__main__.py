"""Runs all benchmarks: python -m benchmarks [--quick] [--json FILE]."""

from benchmarks import (
    import_time,
    many_pages_in_one_run,
    many_pages_in_short_runs,
    many_single_pages,
    mappings_added,
    memory_for_indices,
    object_storage,
    one_huge_page,
    one_page_by_address,
    one_page_of_buffers,
    own_or_library,
    paged_compressed,
    paged_cpu_seconds,
    paged_far_away,
    paged_first_pass,
    paged_fsspec,
    paged_helper_faults,
    paged_helper_sequential,
    paged_hot_set,
    paged_huge_region,
    paged_random_blocks,
    paged_redis,
    paged_replay,
    paged_single_faults,
    paged_sum_at_limit,
    paged_two_threads,
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
    paged_single_faults,
    paged_first_pass,
    paged_sum_at_limit,
    paged_random_blocks,
    paged_huge_region,
    paged_two_threads,
    paged_hot_set,
    paged_cpu_seconds,
    paged_helper_faults,
    paged_helper_sequential,
    paged_redis,
    paged_compressed,
    paged_fsspec,
    object_storage,
    own_or_library,
    paged_replay,
    paged_far_away,
)

if __name__ == "__main__":
    run([module.measure for module in MODULES])
