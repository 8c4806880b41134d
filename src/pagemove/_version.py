"""The version; the build has it in `meson.build` too."""

__version__ = "0.1.0"
