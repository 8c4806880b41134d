"""For the tests of programs with stores of their own: the contract of a store, and one that fails.

`StoreContract` needs pytest, which nothing else of the library does.
"""

import sys
from typing import TYPE_CHECKING

from pagemove.testing.faulty import Fault, FaultyStore

if TYPE_CHECKING:
    from pagemove.testing.contract import StoreContract
else:

    def __getattr__(name: str) -> object:
        if name != "StoreContract":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        if "pagemove.testing.contract" not in sys.modules:
            import pytest

            # So that a failed assertion shows the values.
            pytest.register_assert_rewrite("pagemove.testing.contract")
        from pagemove.testing.contract import StoreContract

        return StoreContract

    def __dir__() -> list[str]:
        # For completion: what is imported here is left out.
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


__all__ = ["Fault", "FaultyStore", "StoreContract"]
