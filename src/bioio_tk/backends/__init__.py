"""One file format each. No backend imports another; none of them knows threads or regions."""
