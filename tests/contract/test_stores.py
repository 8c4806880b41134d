"""What every store promises, one suite for all of them: `support/store_kinds.py` lists them.

Stores that need a server have a real one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import ClassVar

import pytest

from pagemove.stores import Store
from pagemove.testing import StoreContract
from support.descriptors import no_leak  # noqa: F401 (a fixture)
from support.store_kinds import KINDS, Kind, Servers, load_libraries

# fsspec's cache of blocks leaves closing its file to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    load_libraries()
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("servers"), stack)


class _Contract(StoreContract):
    kind: ClassVar[Kind]

    @pytest.fixture(autouse=True)
    def _give_servers(self, servers: Servers) -> None:
        self._servers = servers

    def make_store(self, contents: bytes, *, writable: bool) -> Store:
        return self.kind.maker(self.folder, self._servers)(contents, writable=writable)


def _suite(name: str, kind: Kind) -> type[_Contract]:
    about = {
        "__module__": __name__,
        "kind": kind,
        "writable": True in kind.modes,
        "read_only": False in kind.modes,
        "reopens": kind.reopens,
    }
    return pytest.mark.needs(*kind.needs)(type(name, (_Contract,), about))


for _name, _kind in KINDS.items():
    _class = "Test" + re.sub(r"\W+", "_", _name.title())
    globals()[_class] = _suite(_class, _kind)
