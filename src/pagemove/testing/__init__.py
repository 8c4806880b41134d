"""For the tests of programs with stores of their own: the contract of a store, as a pytest class.

Needs pytest, which the library itself does not.
"""

import pytest

pytest.register_assert_rewrite("pagemove.testing.contract")

from pagemove.testing.contract import StoreContract  # noqa: E402 (after what it needs)

__all__ = ["StoreContract"]
