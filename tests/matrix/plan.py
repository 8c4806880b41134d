"""Which kernels, which tests, and how patient one has to be with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: What `make test-kernels` boots: every series that has something of its own, and both sides of
#: each known defect, as far as the archive has them.
KERNELS = (
    "6.1",
    "6.12",
    "6.16",
    "6.17",
    "6.18",
    "6.19.8",
    "6.19",
    "7.0",
    "7.1",
    "7.2",
    "7.3",
)
#: The oldest that is supported, and the newest.
SHORT_KERNELS = ("6.12", "newest")

#: How much slower than the machine itself a guest is taken to be that is not emulated.
SLOWNESS_KVM = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """A selection of tests.

    Attributes
    ----------
    tests : tuple of str
        What pytest is told to run.
    examples : int
        Examples of each test by Hypothesis, and runs of each state machine.
    variants : int
        Sets of parameters of each test that has them (`observer.py`).
    observed : bool
        Whether it is tried out as well what the kernel does by itself (`observe.py`).
    silence : float
        Seconds without a word from an emulated guest after which it is taken for hung.
    """

    tests: tuple[str, ...]
    examples: int
    variants: int
    observed: bool = True
    silence: float = 600


_TESTS = Path(__file__).parents[1]
_ROOT = _TESTS.parent
#: Those of stores are not about the kernel; the other runs the call's tests again, as nobody.
_NOT_HERE = ("test_stores.py", "test_unprivileged.py")
_CALL = (
    "tests/kernel",
    *(
        str(path.relative_to(_ROOT))
        for path in sorted((_TESTS / "contract").glob("test_*.py"))
        if path.name not in _NOT_HERE
    ),
    # Many thousand turns each, whatever the kernel.
    "--deselect=tests/contract/test_forked_children.py::TestWhileThreadsMove",
    "--deselect=tests/contract/test_move_many_indices.py::TestChangedMeanwhile",
    "--deselect=tests/contract/test_registration.py::TestStaleMemory"
    "::test_of_a_closed_memory_at_the_same_address",
)
_PAGING = tuple(
    f"tests/contract/paging/test_{name}.py"
    for name in (
        "modes",
        "flush",
        "discard",
        "fork",
        "limit",
        "system_calls",
        "recycling",
        "read_errors",
        "without_move",
    )
)
FULL = Plan(
    (
        *_CALL,
        *_PAGING,
        "tests/unit/test_features.py",
        "tests/unit/test_features_missing.py",
        "tests/property",
        "tests/stress/test_truth.py",
    ),
    examples=2,
    variants=2,
)
#: What a kernel can change: moves, the defects, and how pages come and go. Not what Python does
#: with arguments and messages, nor what the tests themselves stand on.
SHORT = Plan(
    (
        "tests/kernel/test_facts.py",
        "tests/kernel/test_defects.py",
        *(
            f"tests/contract/test_call.py::test_{name}"
            for name in (
                "moves_any_number_of_pages",
                "moves_two_mebibytes",
                "the_same_physical_page_is_at_the_destination",
                "the_source_gets_fresh_zero_pages",
                "pages_outside_the_ranges_stay_as_they_are",
                "many_moves_add_no_mapping",
                "backward_overlap_behaves_as_memmove_by_pages",
                "backward_overlap_with_an_occupied_destination_moves_nothing",
                "both_sides_may_be_in_one_mapping",
            )
        ),
        "tests/contract/test_call_holes.py",
        *(
            f"tests/contract/test_unsupported.py::Test{name}"
            for name in ("KernelWithoutMove", "RefusedUserfaultfd", "HugeZeroPage")
        ),
        *(
            f"tests/contract/paging/test_discard.py::test_{name}"
            for name in (
                "a_whole_block_is_read_again",
                "a_page_of_a_block_is_read_again",
                "holes_do_not_become_zeros",
                "a_page_that_was_read_again_is_watched_as_before",
                "swapped_out_pages_of_the_region",
            )
        ),
        "tests/contract/paging/test_without_move.py",
        "tests/property/test_state_machine.py",
    ),
    examples=1,
    variants=1,
    observed=False,
)
#: What the kernel does by itself, and nothing else: goes into the results of an earlier run.
OBSERVE = Plan((), examples=0, variants=0)
PLANS = {"full": FULL, "short": SHORT, "observe": OBSERVE}
