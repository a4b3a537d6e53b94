"""BigDataViewer datasets as other programs write them, made with h5py and a template alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0"


def coded(shape: tuple[int, ...], seed: int, dtype: Any = np.uint16) -> Any:
    """Return pixels that tell where they belong, with values above half of the range."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def reduced(stack: Any, factor: tuple[int, int, int]) -> Any:
    """Return every n-th pixel: readers do not care how a level was made."""
    z, y, x = factor
    return stack[::z, ::y, ::x]


def write_h5(
    path: Path,
    stacks: dict[tuple[int, int], Any],
    *,
    factors: Any = ((1, 1, 1),),
    block: Any = (4, 8, 8),
    data_type: Any = None,
    store: Any = None,
    **filters: Any,
) -> None:
    """Write the stacks of (time, setup), Z Y X; `factors` X Y Z; legacy uint16 as int16."""
    with h5py.File(path, "w") as file:
        for setup in sorted({setup for _, setup in stacks}):
            tables(file, setup, factors, block, data_type)
        for (time, setup), stack in stacks.items():
            for level, (fx, fy, fz) in enumerate(factors):
                pixels = reduced(stack, (fz, fy, fx))
                if data_type is None and stack.dtype == np.uint16 and store is None:
                    pixels = pixels.view(np.int16)
                elif store is not None:
                    pixels = pixels.view(store) if np.dtype(store).itemsize == 2 else pixels
                options = {} if block is None else {"chunks": block, "maxshape": (None,) * 3}
                file.create_dataset(
                    f"t{time:05d}/s{setup:02d}/{level}/cells", data=pixels, **{**options, **filters}
                )


def tables(file: Any, setup: int, factors: Any, block: Any, data_type: Any = None) -> None:
    """Write what every setup has: factors and blocks along X, Y, Z."""
    file[f"s{setup:02d}/resolutions"] = np.array(factors, np.float64)
    blocks = [(block or (1, 1, 1))[::-1]] * len(factors)
    file[f"s{setup:02d}/subdivisions"] = np.array(blocks, np.int32)
    if data_type is not None:
        file[f"s{setup:02d}"].attrs["dataType"] = data_type


def setup_xml(
    number: int,
    size: tuple[int, int, int],
    attributes: dict[str, int],
    *,
    name: str = "",
    voxel: str = "<unit>um</unit><size>0.5 0.5 2.0</size>",
) -> str:
    """Return one setup; `size` Z Y X."""
    z, y, x = size
    ids = "".join(f"<{kind}>{value}</{kind}>" for kind, value in attributes.items())
    return (
        f"<ViewSetup><id>{number}</id><name>{name}</name><size>{x} {y} {z}</size>"
        f"<voxelSize>{voxel}</voxelSize><attributes>{ids}</attributes></ViewSetup>"
    )


def spim_xml(
    setups: str,
    *,
    loader: str,
    times: str = '<Timepoints type="range"><first>0</first><last>0</last></Timepoints>',
    labels: dict[str, dict[int, str]] | None = None,
    missing: list[tuple[int, int]] | None = None,
    affines: dict[tuple[int, int], list[str]] | None = None,
    base: str = ".",
) -> str:
    """Return a whole XML; `affines` by (time, setup)."""
    named = ""
    numbers: dict[str, dict[int, str]] = {}
    for kind, number in re.findall(r"<([a-z]+)>(\d+)</\1>", setups):
        numbers.setdefault(kind, {})[int(number)] = number
    numbers.pop("id", None)
    for kind, known in {**numbers, **(labels or {})}.items():
        tag = kind.capitalize()
        values = "".join(
            f"<{tag}><id>{n}</id><name>{text}</name></{tag}>" for n, text in known.items()
        )
        named += f'<Attributes name="{kind}">{values}</Attributes>'
    absent = "".join(f'<MissingView timepoint="{t}" setup="{s}"/>' for t, s in missing or [])
    placed = ""
    for (t, s), matrices in (affines or {}).items():
        steps = "".join(
            f'<ViewTransform type="affine"><Name>n</Name><affine>{m}</affine></ViewTransform>'
            for m in matrices
        )
        placed += f'<ViewRegistration timepoint="{t}" setup="{s}">{steps}</ViewRegistration>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2">'
        f'<BasePath type="relative">{base}</BasePath><SequenceDescription>{loader}'
        f"<ViewSetups>{setups}{named}</ViewSetups>{times}<MissingViews>{absent}</MissingViews>"
        f"</SequenceDescription><ViewRegistrations>{placed}</ViewRegistrations></SpimData>"
    )


def hdf5_loader(name: str, partitions: str = "") -> str:
    """Return the loader of an HDF5 file."""
    return (
        f'<ImageLoader format="bdv.hdf5"><hdf5 type="relative">{name}</hdf5>'
        f"{partitions}</ImageLoader>"
    )


def write_simple(folder: Path, name: str = "x", **options: Any) -> dict[tuple[int, int], Any]:
    """Write 2 time points x 2 channels x 2 tiles of (6, 20, 24); return the stacks."""
    setups = {0: (0, 0), 1: (1, 0), 2: (0, 1), 3: (1, 1)}
    dtype = options.pop("dtype", np.uint16)
    stacks = {(t, s): coded((6, 20, 24), 10 * t + s, dtype) for t in range(2) for s in setups}
    write_h5(folder / f"{name}.h5", stacks, **options)
    xml = spim_xml(
        "".join(
            setup_xml(s, (6, 20, 24), {"channel": c, "tile": tile}, name=f"setup {s}")
            for s, (c, tile) in setups.items()
        ),
        loader=hdf5_loader(f"{name}.h5"),
        times='<Timepoints type="range"><first>0</first><last>1</last></Timepoints>',
        labels={"channel": {0: "GFP", 1: "RFP"}, "tile": {0: "0", 1: "upper left"}},
        affines={key: [IDENTITY] for key in stacks},
    )
    (folder / f"{name}.xml").write_text(xml)
    return stacks
