#!/bin/sh
# What the build needs of the machine: prints one line that says what is missing and how to get it.
# Usage: prerequisites.sh PYTHON
python=${1:-python3}

if ! command -v "$python" >/dev/null 2>&1; then
  echo "pagemove needs Python 3.11 or later, and there is no $python: sudo apt install python3 python3-dev python3-venv (or name another: make PYTHON=python3.12)" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  found=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null)
  echo "pagemove needs Python 3.11 or later, and $python is ${found:-no Python that runs}: name another: make PYTHON=python3.12" >&2
  exit 1
fi

missing=
# Debian splits these off; ensurepip is the part of venv that a package of its own brings.
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -f "$header" ] || missing="$missing python3-dev"
if ! command -v "${CC:-cc}" >/dev/null 2>&1; then
  missing="$missing gcc libc6-dev"
elif ! printf '#include <stdio.h>\n#include <linux/types.h>\n' | ${CC:-cc} -E - >/dev/null 2>&1; then
  missing="$missing libc6-dev"
fi
[ -z "$missing" ] && exit 0
# A Python that is not the distribution's has packages of its own version's name.
if [ "$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')" != "$(readlink -f /usr/bin/python3)" ]; then
  note=" (python3-dev and python3-venv are those of $python)"
fi
echo "pagemove cannot be built, since something is missing: sudo apt install$missing${note:-}" >&2
exit 1
