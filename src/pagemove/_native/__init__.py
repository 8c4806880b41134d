"""The native core: the kernel ABI, the system calls, the moves."""
