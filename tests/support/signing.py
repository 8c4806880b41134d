"""A server whose files are had only where a redirect leads: for each request somewhere else."""

from __future__ import annotations

from pathlib import Path

from support.servers import WebServer

#: What URLs may have in them that would be another text if it was quoted anew.
AWKWARD = "a%2Fb%3D%2b~%7e+c:d%20e/f=&x%3dy"


class _Signing(WebServer.handler):
    server: SigningServer

    def do_GET(self) -> None:  # noqa: N802 (named by http.server)
        if self._is_signed():
            super().do_GET()

    def do_HEAD(self) -> None:  # noqa: N802 (as above)
        if self._is_signed():
            super().do_HEAD()

    def _is_signed(self) -> bool:
        """Redirect to where it is, by a signature that is good for one request."""
        server, (path, _, signature) = self.server, self.path.partition("?")
        if self.path in server.signatures:
            server.signatures.remove(self.path)
            server.followed += 1
            return True
        if signature:
            self._answer(server.expired, b"")
            return False
        server.redirects += 1
        to = f"{path}?n={server.redirects}&s={AWKWARD}"
        if server.outdated:
            server.outdated -= 1
        else:
            server.signatures.append(to)
        self._answer(302, b"", headers={"Location": to})
        return False


class SigningServer(WebServer):
    """See above.

    Attributes
    ----------
    signatures : list of str
        Paths that are good for a request, with their queries.
    outdated : int
        So many of the next redirects lead to what has expired.
    expired : int
        The status of that.
    redirects, followed : int
        How many there were, and how many of them have led to a file.
    """

    handler = _Signing

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.signatures: list[str] = []
        self.outdated = self.redirects = self.followed = 0
        self.expired = 403
