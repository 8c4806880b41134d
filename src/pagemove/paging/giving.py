"""Arrays that go to another process while they are in use: `serve`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    import ssl as tls

    from pagemove.paging.served import Served


def serve(
    array: npt.NDArray[Any],
    address: str | os.PathLike[str] | tuple[str, int],
    *,
    name: str | None = None,
    secret: str | bytes | None = None,
    ssl: tls.SSLContext | None = None,
    store_timeout: float = 5.0,
) -> Served:
    """Hand an array in paged memory over to one other process, which can use it at once.

    The other process opens it by its URL, ``open_array("pagemove://host:port/name")``. With that it
    is the owner; this process's array is read-only from then on. Blocks go over when they are
    touched there, and in the background, those that are in memory here first. When its `wait`
    returns, all of it is there, and this process may end.

    Parameters
    ----------
    array : numpy.ndarray
        In paged memory, contiguous (in C's order or Fortran's), with at least one item.
    address : str, path-like or tuple
        Where to wait for the other process: ``"host:port"``, or ``(host, port)``, for TCP; port 0:
        any, see its `url`. The path of a Unix socket that is made, for this user alone. Or a
        URL as the other process opens it, with a name.
    name : str, optional
        What the URL has to end with. None: whatever it ends with.
    secret : str or bytes, optional
        What both sides have to prove to have. It is not sent. It keeps others from taking the
        array, and from giving another; it does not hide or protect what is sent after that.
    ssl : ssl.SSLContext, optional
        For TLS, of the server's side: ``ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)`` with
        a certificate loaded.
    store_timeout : float
        Seconds that the other process may be away, before `wait` raises; and that it may
        take for an answer, before a connection is closed.

    Returns
    -------
    Served
        To wait by (`wait`), to look at (`url`, `taken`, `progress`, `stats`) and to close.

    Raises
    ------
    ValueError
        The array is not in paged memory, is not contiguous or has no items; the address cannot be
        read; TCP to other machines without `secret` or `ssl`. Other arrays are in the same region
        (`open_arrays`, `reference`), and can be written: close them, or open this one by itself,
        ``open_array("file#name")``.
    OSError
        The address is taken, or not this machine's.

    Notes
    -----
    **The switch** is when the other process first asks for a block, which `open_array` does before
    it returns. It has the contents that the array has at that moment: all that threads have stored
    before. From then on `array`, the arrays that it is a view of, and new arrays of the region are
    read-only (ValueError). What was changed is written back for that, to the region's store, or to
    compressed memory; most of it before the switch, while the array can still be written.

    Other views that were made earlier stay writeable: NumPy does not say where they are. A thread
    that goes on storing through one holds up the switch: the other process gets EAGAIN after
    `store_timeout`, and this one keeps the array, writeable. A store through one after the switch
    is noticed: nothing more is handed over, and both sides raise. So stop such threads first.

    **Until it is acknowledged a block stays here**, and the array can still be read here, as it was
    at the switch, until the region is closed. If the connection breaks, the other process connects
    again and asks for what it does not have. If it does not come back, nothing is lost here: this
    array has all that it had at the switch, but not what the other process has changed.

    There is a thread for each connection: three for touches, and one. They answer without the GIL;
    a thread of this process that keeps it holds up only new connections, the switch, the order of
    what comes in the background, and TLS. Over a Unix socket the blocks are written to files that
    the other process passes, if it is of the same user, or root.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, pagemove
    >>> folder = tempfile.TemporaryDirectory()
    >>> numbers = pagemove.create_array(f"{folder.name}/x.npy", (1 << 17,), "i8")
    >>> numbers[:] = np.arange(len(numbers))
    >>> with pagemove.serve(numbers, ("127.0.0.1", 0), secret="between us") as served:
    ...     here = pagemove.open_array(served.url, storage_options={"secret": "between us"})
    ...     served.wait()
    >>> here[0] = -1
    >>> int(here[0]), int(here[-1]), numbers.flags.writeable
    (-1, 131071, False)
    >>> folder.cleanup()
    """
    from pagemove.paging.served import begin  # and sockets, which hardly any program needs

    return begin(array, address, name, secret, ssl, store_timeout)
