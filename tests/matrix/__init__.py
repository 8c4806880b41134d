"""The tests on the kernels that users run: Debian's, booted in QEMU, each with this environment.

``python -m matrix`` (in ``tests/``; ``make test-kernels``) does it. The parts, in the order in
which they are used:

``flavours.py``
    The kinds of kernels, and the machines that QEMU makes for them.
``archive.py``
    Finds kernels in Debian's archive, fetches and unpacks them. Nothing is installed.
``image.py``, ``foreign.py``, ``cpio.py``
    What a kernel boots with: this interpreter, its packages and the tests; for another architecture
    Debian's interpreter and packages, and this project cross built; as an archive.
``machine.py``
    Boots one in QEMU and listens to what it says.
``guest.py``
    What runs inside: the first process, then pytest. ``observer.py`` is its pytest plugin;
    ``observe.py`` tries out what the kernel does by itself.
``plan.py``
    Which kernels, which tests.
``results.py``, ``table.py``
    What was seen, as JSON; the page of the documents made of it.

Everything a kernel needs is in its initial file system: no disk, no network, no shared folder. So a
kernel boots even if the archive has its image but not its modules any more, and nothing that runs
inside can change anything outside. If its modules are to be had, one comes along: a RAM disk (brd),
for swap space.
"""
