"""What others say of NGFF metadata: the official JSON schemas and two libraries of models."""

from __future__ import annotations

import copy
import importlib
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import strategies as st

# kind -> (schema; "" where there is none, class of ome_zarr_models, class of yaozarrs or None)
KINDS = {
    "image": ("strict_image", "image.ImageAttrs"),
    "label": ("strict_label", "image_label.ImageLabelAttrs"),
    "labels": ("", "labels.LabelsAttrs"),
    "plate": ("strict_plate", "hcs.HCSAttrs"),
    "well": ("strict_well", "well.WellAttrs"),
    "layout": ("bf2raw", "bioformats2raw.BioFormats2RawAttrs"),
    "series": ("ome", ""),
}


ADDRESS = "https://ngff.openmicroscopy.org"


@cache
def _schemas():
    pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    ngff_zarr = pytest.importorskip("ngff_zarr")
    folder = Path(ngff_zarr.__file__).parent / "spec"
    found = []
    for path in folder.glob("0.[45]/schemas/*.schema"):
        schema = json.loads(path.read_text())
        # those of the bioformats2raw layout of 0.4 carry the address "latest"
        schema["$id"] = f"{ADDRESS}/{path.parts[-3]}/schemas/{path.name}"
        found.append(schema)
    resources = [
        (
            s["$id"],
            referencing.Resource.from_contents(
                s, default_specification=referencing.jsonschema.DRAFT202012
            ),
        )
        for s in found
    ]
    return referencing.Registry().with_resources(resources)


def schema_errors(attributes, version, name):
    """Return what the official schema of that name has against a document."""
    import jsonschema

    registry = _schemas()
    schema = registry.contents(f"{ADDRESS}/{version}/schemas/{name}.schema")
    checker = jsonschema.Draft202012Validator(schema, registry=registry)
    return [error.message for error in checker.iter_errors(attributes)]


def check(attributes, version, kind):
    """Fail where the schemas or one of the libraries do not accept the attributes of a group."""
    text = json.dumps(attributes, allow_nan=False)
    document = json.loads(text)
    assert document == attributes
    schema, model = KINDS[kind]
    if schema:
        assert schema_errors(document, version, schema) == []
    short = f"v{version.replace('.', '')}"
    if model:
        module, _, name = model.partition(".")
        module = importlib.import_module(f"ome_zarr_models.{short}.{module}")
        getattr(module, name).model_validate(document["ome"] if version == "0.5" else document)
    import yaozarrs

    if version == "0.5":
        yaozarrs.validate_ome_object(document, yaozarrs.v05.OMEAttributes)
    else:
        yaozarrs.validate_ome_object(document, yaozarrs.v04.OMEZarrGroupJSON)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["0", "x", "0.4", "0.5", "space", "A/1", "../x", "#fff", ""]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from([
        "multiscales", "datasets", "path", "axes", "name", "type", "unit", "scale", "version",
        "coordinateTransformations", "translation", "omero", "channels", "window", "color",
        "label", "plate", "rows", "columns", "wells", "acquisitions", "id", "well", "images",
        "labels", "series", "bioformats2raw.layout", "image-label", "ome", "rdefs", "start",
    ]), inner, max_size=5),
    max_leaves=25,
)  # fmt: skip
"""What JSON may have at any place, made of the words of NGFF."""


def places(document, here=()):
    """Yield the way to everything in a document but the document itself."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*here, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*here, key))


def spoiled(document, place, junk):
    """Return a copy of a document with something else at a place."""
    document = inner = copy.deepcopy(document)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    return document
