"""Metadata: between our own specs and the documents that formats keep."""
