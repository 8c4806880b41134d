"""``python -m pagemove``: the command line."""

from pagemove.cli import main

if __name__ == "__main__":
    main()
