"""Speed and memory of bioio_tk beside its peers and the machine's ceilings: ``python -m bench``.

``python -m bench tiff``, ``python -m bench zarr`` and ``python -m bench java`` run all rows of a
suite; ``--quick`` shows in two minutes whether everything works, ``--only ROW`` picks rows,
``--out FILE.md`` writes the tables. Where to look: `tiff`, `zarr` and `java` have the rows as
data, `measure` takes the times, `ceilings` and `bare_zarr` are what the machine can do at all,
`goals` what is wanted, `images` and `vendor` the input files, `report` the Markdown.
"""
