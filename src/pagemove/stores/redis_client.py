"""Talking to Redis or Valkey, one server or a cluster: one round trip a node, and patience."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pagemove.stores import redis_direct
from pagemove.stores.patience import patiently
from pagemove.stores.urls import without_secret


class Command(NamedTuple):
    """A command.

    Attributes
    ----------
    key : str
        Says which node of a cluster it is for.
    words : tuple
        As they are sent.
    targets : tuple of memoryview or None
        Of one that only reads: for each value that it answers where it shall go. In its place the
        answer then has `redis_direct.FILLED`.
    """

    key: str
    words: tuple[Any, ...]
    targets: tuple[memoryview | None, ...] = ()


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
        """Carry out commands, those for one node in one round trip; give the answers in order.

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
            self._single.close()
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

        # A try has half of the time at most: then there is a second one.
        seconds = self._timeout / 2
        options = {
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            # How long it is tried again is for this class to say.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            **self._options,
        }
        if self._single is None:
            single = redis.Redis.from_url(self._url, **options)
            try:
                in_cluster = single.info("cluster").get("cluster_enabled")
            except BaseException:
                single.close()
                raise
            if not in_cluster:
                self._single = single
                return
            single.close()
        self._cluster = redis.RedisCluster.from_url(self._url, **options)

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        import redis

        if not self._cluster:
            return _checked(_sent(self._single, commands))
        shares: dict[str, tuple[Any, list[int]]] = {}
        for number, command in enumerate(commands):
            node = self._cluster.get_node_from_key(command.key)
            shares.setdefault(node.name, (node, []))[1].append(number)
        answers: list[Any] = [None] * len(commands)
        for node, numbers in shares.values():
            client = self._cluster.get_redis_connection(node)
            for number, answer in zip(
                numbers, _sent(client, [commands[number] for number in numbers]), strict=True
            ):
                answers[number] = answer
        elsewhere = [number for number, answer in enumerate(answers) if _is_elsewhere(answer)]
        if elsewhere and any(command.words[0].startswith("WAIT") for command in commands):
            # What is waited for has to be on the same connection.
            raise redis.exceptions.TryAgainError("a slot has moved")
        for number in elsewhere:
            # The slot moves, or has moved: the cluster's own client goes after it.
            answers[number] = self._cluster.execute_command(*commands[number].words)
        return _checked(answers)

    def _retried(self, call: Callable[[], Any]) -> Any:
        def once(_left: float) -> Any:
            try:
                return call()
            except Exception as error:
                if self._cluster and _is_passing(error):
                    self._look_anew()
                raise

        return patiently(once, self._timeout, _is_passing)

    def _look_anew(self) -> None:
        """Ask which node has what: one may have failed, and another taken its place."""
        import redis

        # Should all of them be gone, what the caller has to say is better.
        with contextlib.suppress(redis.RedisError):
            self._cluster.nodes_manager.initialize()

    def __repr__(self) -> str:
        return without_secret(self._url)


def code_of(error: Exception) -> int:
    """Give the errno that is nearest to an error."""
    import redis.exceptions as errors

    if isinstance(error, errors.TimeoutError):
        return errno.ETIMEDOUT
    if isinstance(error, errors.OutOfMemoryError):
        return errno.ENOSPC
    if isinstance(error, errors.AuthenticationError | errors.NoPermissionError):
        return errno.EACCES
    return getattr(error, "errno", None) or errno.EIO


def _log_of(server: Any) -> Log:
    if not server.info("persistence").get("aof_enabled"):
        return Log(False, False, "keeps no append-only file")
    import redis

    with contextlib.suppress(redis.ResponseError):
        server.execute_command("WAITAOF", 0, 0, 1)
        return Log(True, False, "")
    always = server.config_get("appendfsync").get("appendfsync") == "always"
    return Log(False, always, "is older than WAITAOF and does not sync its log before each answer")


def _sent(client: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands in one go; give answers, errors among them."""
    if all(command.targets for command in commands):
        with contextlib.suppress(redis_direct.Unusual):
            targets = [each for command in commands for each in command.targets]
            return redis_direct.ask(client, [command.words for command in commands], targets)
    if len(commands) == 1:
        import redis

        try:
            return [client.execute_command(*commands[0].words)]
        except redis.ResponseError as error:
            return [error]
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command.words)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _is_elsewhere(answer: Any) -> bool:
    import redis.exceptions as errors

    return isinstance(answer, errors.MovedError | errors.AskError | errors.TryAgainError)


def _is_passing(error: Exception) -> bool:
    """Tell whether an error may be another the next time."""
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
        | errors.RedisClusterException,
    )
