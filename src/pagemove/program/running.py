"""Run a program in this process as the interpreter would: by script, module, or code."""

from __future__ import annotations

import importlib.util
import io
import linecache
import os
import pkgutil
import sys
import textwrap
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, cast


class NotFoundError(Exception):
    """There is no such program; the message says so, and `status` is the interpreter's then."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def execute(kind: str, target: str, arguments: list[str], note: Callable[[Any], None]) -> None:
    """Run a program as ``__main__``, to its end; what it raises is raised.

    Parameters
    ----------
    kind : {"script", "module", "code"}
        What `target` is: a path; a name, as after ``python -m``; source, as after ``python -c``.
    target : str
        Which.
    arguments : list of str
        What follows in `sys.argv`.
    note : callable
        Is passed an exception that ends the program, before the hook for that has it.

    Raises
    ------
    NotFoundError
        Before anything has run.
    """
    try:
        _execute(kind, target, arguments)
    except (NotFoundError, SystemExit):
        raise
    except BaseException:
        sys.excepthook = _without_frames(sys.excepthook, note)
        raise


def _execute(kind: str, target: str, arguments: list[str]) -> None:
    main = ModuleType("__main__")
    names = main.__dict__
    names["__builtins__"] = sys.modules["builtins"]
    if sys.version_info < (3, 14):  # from then on annotations are made when they are asked for
        names["__annotations__"] = {}
    sys.argv[:] = [{"script": target, "module": "-m", "code": "-c"}[kind], *arguments]
    if kind == "code":
        _search_first("")
        if sys.version_info >= (3, 14):
            target = textwrap.dedent(target)
        code = _compiled(target, "<string>")
        if sys.version_info >= (3, 13):  # from then on its tracebacks have the lines of ``-c``
            lines = target.splitlines(keepends=True)
            linecache.cache["<string>"] = (len(target), None, lines, "<string>")
    elif kind == "module":
        code = _in_module(target, names)
    elif target == "-":
        _search_first("")
        names.update(__file__="<stdin>", __cached__=None)
        code = _compiled(sys.stdin.buffer.read(), "<stdin>")
    elif pkgutil.get_importer(target) is None:
        code = _in_file(target, names)
    else:
        code = _in_folder(target, names)
    sys.modules["__main__"] = main
    exec(code, names)


def _in_file(target: str, names: dict[str, Any]) -> CodeType:
    path = os.path.abspath(target)
    source = _read(path)
    _search_first(os.path.dirname(os.path.realpath(target)))
    names.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    return pkgutil.read_code(io.BytesIO(source)) or _compiled(source, path)


def _in_folder(target: str, names: dict[str, Any]) -> CodeType:
    """Find the module ``__main__`` of a folder or an archive."""
    path = os.path.abspath(target)
    # The modules beside it are a part of it, so it is looked in with -P too.
    if sys.flags.safe_path:
        sys.path.insert(0, path)
    _search_first(path)
    # Of the importer of that path: a module of that name is there already, this command.
    importer: Any = pkgutil.get_importer(path)
    spec = importer.find_spec("__main__")
    if spec is None:
        raise NotFoundError(f"can't find '__main__' module in {target!r}")
    return _code_of(spec, target, names)


def _in_module(name: str, names: dict[str, Any]) -> CodeType:
    _search_first(os.getcwd())
    _import_parents(name)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise NotFoundError(f"Error while finding module {name!r}: {error}") from None
    if spec is not None and spec.submodule_search_locations is not None:
        _import_parents(f"{name}.__main__")
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None:
        raise NotFoundError(f"No module named {name}, or it is a package without __main__")
    code = _code_of(spec, name, names)
    sys.argv[0] = spec.origin or name
    return code


def _compiled(source: str | bytes, name: str) -> CodeType:
    return compile(source, name, "exec", dont_inherit=True)


def _read(path: str) -> bytes:
    try:
        with io.open_code(path) as file:
            return file.read()
    except OSError as error:
        raise NotFoundError(
            f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}", status=2
        ) from None


def _search_first(path: str) -> None:
    """Put the program's place where the interpreter would, in place of this command's."""
    if not sys.flags.safe_path and sys.path:
        sys.path[0] = path


def _import_parents(name: str) -> None:
    """Import the package of a module, so that what its ``__init__`` raises is raised here."""
    package = name.rpartition(".")[0]
    if not package:
        return
    try:
        __import__(package)
    except ModuleNotFoundError as error:
        # That it is not there itself is said when it is looked for.
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise


def _code_of(spec: ModuleSpec, name: str, names: dict[str, Any]) -> CodeType:
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        raise NotFoundError(f"No code object available for {name}")
    names.update(__file__=spec.origin, __cached__=spec.cached, __loader__=loader, __spec__=spec)
    names["__package__"] = spec.parent
    return cast(CodeType, code)


def _without_frames(
    hook: Callable[[Any, Any, Any], object], note: Callable[[Any], None]
) -> Callable[[Any, Any, Any], None]:
    """Call a hook for exceptions without what called the program, which is this library."""

    def called(kind: Any, error: Any, traceback: Any) -> None:
        while traceback is not None and traceback.tb_frame.f_code is not _execute.__code__:
            traceback = traceback.tb_next
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        error.__traceback__ = traceback
        note(error)
        hook(kind, error, error.__traceback__)

    return called
