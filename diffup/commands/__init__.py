"""The commands of ``diffup`` that have options of their own, one module each: arguments to an exit code."""
