"""Talking to Redis or Valkey, one server or a cluster: one round trip a node, and patience."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pagemove.stores import redis_bounds
from pagemove.stores.patience import patiently
from pagemove.stores.redis_direct import Command, ask
from pagemove.stores.redis_secrets import shown


class Log(NamedTuple):
    """What a server's append-only file is good for.

    Attributes
    ----------
    waits : bool
        Whether it can be waited for.
    always : bool
        Whether it is synced before each answer.
    why : str
        What is missing, if neither.
    """

    waits: bool
    always: bool
    why: str


class Client:
    """Connections to one server, or to all of a cluster; for any number of threads.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``; or the same with ``valkey`` for ``redis``.
    timeout : float
        Seconds for one call of `run`, tries again included.
    options : dict
        For redis-py's client.

    Raises
    ------
    redis.RedisError
        It cannot be reached, or refuses.
    """

    def __init__(self, url: str, timeout: float, options: dict[str, Any]) -> None:
        self._url = re.sub(r"^valkey", "redis", url)
        self._timeout = timeout
        self._options = options
        self._single: Any = None
        self._cluster: Any = None
        self._retried(self._connect)

    @property
    def nodes(self) -> int:
        """How many nodes there are to talk to."""
        return len(self._cluster.get_primaries()) if self._cluster else 1

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands, those for one node in one round trip; return the answers in order.

        Raises
        ------
        redis.RedisError
            The first error that is among the answers, or that there is still when the time is over.
            Some commands may be carried out, and some more than once.
        """
        answers: list[Any] = self._retried(lambda: self._run(commands))
        return answers

    def by_node(self, keys: Sequence[str]) -> list[list[str]]:
        """Sort keys by the node that has them."""
        if not self._cluster:
            return [list(keys)] if keys else []
        sorted_: dict[str, list[str]] = {}
        for key in keys:
            sorted_.setdefault(self._cluster.get_node_from_key(key).name, []).append(key)
        return list(sorted_.values())

    def log(self) -> Log:
        """Ask how the servers' append-only files can be relied on."""
        found: Log = min(self._retried(lambda: [_log_of(each) for each in self._servers()]))
        return found

    def _servers(self) -> list[Any]:
        if not self._cluster:
            return [self._single]
        return [self._cluster.get_redis_connection(node) for node in self._cluster.get_primaries()]

    def close(self) -> None:
        """Close all connections."""
        if self._single:
            self._single.connection_pool.disconnect()
        if self._cluster:
            nodes = self._cluster.get_nodes()
            self._cluster.close()
            # Which leaves connections to the nodes open, until they are collected.
            for node in nodes:
                if node.redis_connection is not None:
                    node.redis_connection.connection_pool.disconnect()

    def _connect(self) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # Silence for half of the time ends a try: then there is a second one.
        seconds = self._timeout / 2
        options = {
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            # How long it is tried again is for this class to say.
            "retry": Retry(NoBackoff(), 0),
            **self._options,
            "protocol": 2,
        }
        kind = redis_bounds.pool_class()
        if self._single is None:
            try:
                pool = kind.from_url(self._url, **options)
            except ValueError:
                # Whose text may be part of a password.
                raise ValueError(
                    f"{shown(self._url)} is not a URL of Redis: it needs redis://, rediss:// or "
                    "unix://, a port and a database that are numbers, and user and password "
                    "percent-encoded"
                ) from None
            pool.connection_class(**pool.connection_kwargs)  # TypeError of what it does not know
            single = redis.Redis(connection_pool=pool)
            try:
                in_cluster = _parsed(lambda: single.info("cluster").get("cluster_enabled"))
            except BaseException:
                pool.disconnect()
                raise
            if not in_cluster:
                self._single = single
                return
            pool.disconnect()
        options["connection_pool_class"] = kind
        self._cluster = _parsed(lambda: redis.RedisCluster.from_url(self._url, **options))

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        import redis

        if not self._cluster:
            return _checked(ask(self._single, commands))
        shares: dict[str, tuple[Any, list[int]]] = {}
        for number, command in enumerate(commands):
            node = self._cluster.get_node_from_key(command.key)
            shares.setdefault(node.name, (node, []))[1].append(number)
        answers: list[Any] = [None] * len(commands)
        for node, numbers in shares.values():
            client = self._cluster.get_redis_connection(node)
            share = [commands[number] for number in numbers]
            for number, answer in zip(numbers, ask(client, share), strict=True):
                answers[number] = answer
        for number, answer in enumerate(answers):
            if isinstance(answer, redis.exceptions.AskError):
                answers[number] = self._asked(answer, commands[number])
        return _checked(answers)

    def _asked(self, error: Any, command: Command) -> Any:
        """Ask the node that a slot is moving to; of one that has moved, let all be tried again."""
        import redis.exceptions as errors

        node = self._cluster.get_node(host=error.host, port=error.port)
        if isinstance(error, errors.MovedError) or node is None:
            raise error
        client = self._cluster.get_redis_connection(node)
        return ask(client, [Command("", ("ASKING",)), command])[1]

    def _retried(self, call: Callable[[], Any]) -> Any:
        import redis

        def once(left: float) -> Any:
            try:
                # With less, all that the last try could find is that it has no time.
                with redis_bounds.limited(max(left, self._timeout / 4)):
                    return call()
            except Exception as error:
                if self._cluster and _is_passing(error):
                    self._look_anew()
                if isinstance(error, redis.exceptions.RedisClusterException):
                    # Which is no RedisError, as callers expect.
                    raise redis.ConnectionError(str(error)) from error
                raise

        return patiently(once, self._timeout, _is_passing)

    def _look_anew(self) -> None:
        """Ask which node has what: one may have failed, and another taken its place."""
        import redis

        # Should all of them be gone, what the caller has to say is better.
        with (
            contextlib.suppress(redis.RedisError, redis.exceptions.RedisClusterException),
            redis_bounds.limited(max(self._timeout / 4, 0.1)),
        ):
            _parsed(self._cluster.nodes_manager.initialize)

    def __repr__(self) -> str:
        return shown(self._url)


def code_of(error: BaseException) -> int:
    """Return the errno that is nearest to an error."""
    import redis.exceptions as errors

    kinds = (
        (errors.TimeoutError, errno.ETIMEDOUT),
        (TimeoutError, errno.ETIMEDOUT),
        (errors.OutOfMemoryError, errno.ENOSPC),
        (errors.AuthenticationError, errno.EACCES),
        (errors.AuthorizationError, errno.EACCES),
        (errors.NoPermissionError, errno.EACCES),
        (errors.ReadOnlyError, errno.EROFS),
        (errors.InvalidResponse, errno.EBADMSG),
        # Which have numbers of their own, that mean other things as an errno.
        (socket.gaierror, errno.EHOSTUNREACH),
        (socket.herror, errno.EHOSTUNREACH),
        (ssl.SSLError, errno.EPROTO),
    )
    for kind, nearest in kinds:
        if isinstance(error, kind):
            return nearest
    cause = error.__cause__ or error.__context__
    if isinstance(error, errors.ConnectionError | errors.RedisClusterException) and cause:
        return code_of(cause)
    if isinstance(error, errors.ConnectionError):
        return errno.ECONNRESET
    code = getattr(error, "errno", None)
    return code if isinstance(code, int) and code > 0 else errno.EIO


def _parsed(call: Callable[[], Any]) -> Any:
    """Call redis-py where it makes something of what a server says, which may be anything."""
    import redis

    try:
        return call()
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise redis.InvalidResponse(
            f"the server's answer makes no sense ({type(error).__name__}: {error})"
        ) from error


def _log_of(server: Any) -> Log:
    if not _parsed(lambda: server.info("persistence").get("aof_enabled")):
        return Log(False, False, "keeps no append-only file")
    import redis

    with contextlib.suppress(redis.ResponseError):
        server.execute_command("WAITAOF", 0, 0, 1)
        return Log(True, False, "")
    always = _parsed(lambda: server.config_get("appendfsync").get("appendfsync")) == "always"
    return Log(False, always, "is older than WAITAOF and does not sync its log before each answer")


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _is_passing(error: Exception) -> bool:
    """Return whether an error may be another the next time."""
    import redis.exceptions as errors

    if isinstance(error, errors.AuthenticationError | errors.AuthorizationError):
        return False
    return isinstance(
        error,
        errors.ConnectionError
        | errors.TimeoutError
        | errors.ReadOnlyError
        | errors.ClusterError
        | errors.ClusterDownError
        | errors.MasterDownError
        | errors.TryAgainError
        | errors.AskError
        | errors.RedisClusterException
        | errors.InvalidResponse,
    )
