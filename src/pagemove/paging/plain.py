"""Methods of NumPy whose results are plain arrays, where they are no views of paged memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagemove.paging.region import PagedMemory
from pagemove.views import owner_behind


class PlainResults(np.ndarray[Any, np.dtype[Any]]):
    """An array of paged memory, as far as NumPy has copies be of its class."""

    __slots__ = ()

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        """Convert into a plain array; as `numpy.ndarray.astype`."""
        return unless_paged(super().astype(*args, **kwargs))

    def flatten(self, order: Any = "C") -> Any:
        """Copy into a plain array of one dimension; as `numpy.ndarray.flatten`."""
        return as_plain(super().flatten(order))

    def ravel(self, order: Any = "C") -> Any:
        """View as one dimension, or copy into a plain array; as `numpy.ndarray.ravel`."""
        return unless_paged(super().ravel(order))

    def repeat(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat items in a plain array; as `numpy.ndarray.repeat`."""
        return unless_paged(super().repeat(*args, **kwargs))

    def dot(self, *args: Any, **kwargs: Any) -> Any:
        """Multiply into a plain array; as `numpy.ndarray.dot`."""
        return unless_paged(super().dot(*args, **kwargs))

    def reshape(self, *shape: Any, **how: Any) -> Any:
        """View in another shape, or copy into a plain array; as `numpy.ndarray.reshape`."""
        return unless_paged(super().reshape(*shape, **how))

    def byteswap(self, *args: Any, **kwargs: Any) -> Any:
        """Swap the bytes of items, in place or in a plain array; as `numpy.ndarray.byteswap`."""
        return unless_paged(super().byteswap(*args, **kwargs))

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        """Copy what a condition picks into a plain array; as `numpy.ndarray.compress`."""
        return unless_paged(super().compress(*args, **kwargs))

    def choose(self, *args: Any, **kwargs: Any) -> Any:
        """Choose from several arrays into a plain one; as `numpy.ndarray.choose`."""
        return unless_paged(super().choose(*args, **kwargs))

    def argsort(self, *args: Any, **kwargs: Any) -> Any:
        """Return the order of items as a plain array; as `numpy.ndarray.argsort`."""
        return unless_paged(super().argsort(*args, **kwargs))

    def argpartition(self, *args: Any, **kwargs: Any) -> Any:
        """Return an order with an item in its place; as `numpy.ndarray.argpartition`."""
        return unless_paged(super().argpartition(*args, **kwargs))

    def argmin(self, *args: Any, **kwargs: Any) -> Any:
        """Find the least items, in a plain array; as `numpy.ndarray.argmin`."""
        return unless_paged(super().argmin(*args, **kwargs))

    def argmax(self, *args: Any, **kwargs: Any) -> Any:
        """Find the greatest items, in a plain array; as `numpy.ndarray.argmax`."""
        return unless_paged(super().argmax(*args, **kwargs))


def has_plain_results(array: Any) -> bool:
    """Whether copies of it are to be plain, as classes that derive from ours may not have it."""
    return "_results_are_plain" in vars(type(array))


def as_plain(array: Any) -> Any:
    """View one of ours as a plain array."""
    return array.view(np.ndarray) if isinstance(array, PlainResults) else array


def unless_paged(array: Any) -> Any:
    """Let a copy be a plain array."""
    if not isinstance(array, PlainResults) or not has_plain_results(array):
        return array
    return array.view(np.ndarray) if owner_behind(array, PagedMemory) is None else array
