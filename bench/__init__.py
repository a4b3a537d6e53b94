"""Speed and memory of bioio_tk beside its peers and the machine's ceilings: ``python -m bench``.

``python -m bench tiff`` and ``python -m bench zarr`` run all rows of a suite; ``--quick`` shows
in two minutes whether everything works, ``--only ROW`` picks rows, ``--out FILE.md`` writes the
tables. Where to look: `tiff` and `zarr` have the rows as data, `measure` takes the times,
`ceilings` and `bare_zarr` are what the machine can do at all, `goals` what is wanted, `images`
the input files, `report` the Markdown.
"""
