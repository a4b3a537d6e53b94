"""Speed and memory of bioio_tk beside its peers and the machine's ceilings: ``python -m bench``.

``python -m bench tiff`` runs all rows; ``--quick`` shows in two minutes whether everything works,
``--only ROW`` picks rows, ``--out FILE.md`` writes the tables. Where to look: `tiff` has the rows
as data, `measure` takes the times, `ceilings` is what the machine can do at all, `goals` what is
wanted, `images` the input files, `report` the Markdown.
"""
