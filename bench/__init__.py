"""Speed and memory of bioio_tk beside its peers and the machine's ceilings: ``python -m bench``.

``python -m bench tiff``, and the same with ``zarr``, ``java`` and ``jobs``, run all rows of a
suite; ``--quick`` shows in two minutes whether everything works, ``--only ROW`` picks rows,
``--out FILE.md`` writes the tables. Where to look: `tiff`, `zarr`, `java` and `jobs` have the
rows as data, `measure` takes the times, `ceilings` and `bare_zarr` are what the machine can do at
all, `goals` what is wanted, `images`, `vendor` and `jobs_inputs` the input files, `jobs_peers` who
takes part in jobs, `report` the Markdown and `jobs_curve` the figure.
"""
