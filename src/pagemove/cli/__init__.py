"""The command line: `pagemove`. It needs more than the library does: ``pagemove[cli]``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagemove.cli.application import app as app
else:

    def __getattr__(name: str) -> object:
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        from pagemove.cli.application import app

        return app


#: What the extra installs; some releases of typer need click beside.
_NEEDED = ("typer", "rich", "click")


def main() -> None:
    """Run the command line; the console script `pagemove` calls this."""
    if sys.argv[1:2] == ["run"]:
        # What it raises is the program's, and so are the modules that are there.
        from pagemove.cli.run import main as run

        run(sys.argv[2:])
        return
    try:
        from pagemove.cli.application import app

        app(prog_name="pagemove")
    except KeyboardInterrupt:
        # Commands that have begun are ended by typer, which says the same.
        sys.exit(130)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _NEEDED:
            raise
        sys.exit(f"pagemove: the command line needs {module}: pip install 'pagemove[cli]'")
    except (ImportError, MemoryError, OSError) as error:
        from pagemove import limits

        # What cannot be mapped is an ImportError too.
        behind = limits.behind(error if isinstance(error, OSError) else MemoryError())
        if not behind:
            raise
        texts = "; ".join(f"{limit.text}: {limit.remedy}" for limit in behind)
        sys.exit(f"pagemove: {error or type(error).__name__}; {texts}")
