"""What Dask is told of paged arrays: their names without their bytes, and that they are small.

Dask names what it is given by hashing it, and asks for the size of what it keeps. Of a paged array
that would be the whole of it: so the name is made of its reference, and the size is that of one.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np

from pagemove.paging.array import PagedArray

# Of an array that is a reference when it is pickled, and nothing before it is touched.
_NBYTES = 1024


def register() -> None:
    """Have Dask know paged arrays, if the program has imported it; again changes nothing."""
    tokenize = sys.modules.get("dask.tokenize")
    if tokenize is not None and not hasattr(tokenize, "_pagemove"):
        tokenize.normalize_token.register(PagedArray, token)
        tokenize._pagemove = True  # type: ignore[attr-defined]
    sizeof = sys.modules.get("dask.sizeof")
    if sizeof is not None and not hasattr(sizeof, "_pagemove"):
        sizeof.sizeof.register(PagedArray, nbytes)
        sizeof._pagemove = True  # type: ignore[attr-defined]


def token(array: PagedArray) -> Any:
    """Return what is the same for arrays that show the same bytes of the same store."""
    if array.region is None:
        from dask.tokenize import normalize_token

        return normalize_token(np.asarray(array))
    try:
        return PagedArray._refer(array).__dask_tokenize__()
    except (ValueError, TypeError, OSError, pickle.PicklingError):
        # Of this process alone, or changed meanwhile: equal to nothing else.
        import uuid  # and no array that Dask never sees

        return uuid.uuid4().hex


def nbytes(array: PagedArray) -> int:
    """Return how much memory Dask is to count it for."""
    return _NBYTES if array.region is not None else array.nbytes


def is_asked_by(caller: Any) -> bool:
    """Return whether a frame is Dask's `from_array`, which copies what it is given.

    It does so lest the program change the array later; of what is larger than memory there is no
    copy. Dask is told of paged arrays on the way.
    """
    core = sys.modules.get("dask.array.core")
    if core is None or caller.f_globals is not vars(core):
        return False
    register()
    return bool(caller.f_code.co_name == "from_array")


PagedArray._is_dask = staticmethod(is_asked_by)
