"""The commands of ``diffup``, a module each, with their options."""
