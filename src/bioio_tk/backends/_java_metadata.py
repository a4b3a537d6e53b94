"""What Bio-Formats says of the images in a file, in the terms of OME.

JPype makes a Python class of every Java class it meets, and that of Bio-Formats' metadata store,
with its 1,800 methods, takes 0.1 s. So Python never holds the store where it can be helped: it is
made and asked inside Java, by method handles, and only its root comes out.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioio_tk.backends._java_vm import Java


class Metadata:
    """The metadata of a file.

    Attributes
    ----------
    root : ome.xml.meta.OMEXMLMetadataRoot
        The OME model.
    """

    def __init__(self, java: Java, reader: Any) -> None:
        self._java = java
        self.root = _handles(java)[1].invokeWithArguments(reader)

    @cached_property
    def store(self) -> Any:
        """A MetadataRetrieve, which knows more ways to ask."""
        store = _service(self._java).createOMEXMLMetadata()
        store.setRoot(self.root)
        return store

    @property
    def names(self) -> list[str]:
        """The name of each image, "" for one without."""
        count = int(self.root.sizeOfImageList())
        return [str(self.root.getImage(number).getName() or "") for number in range(count)]

    def image(self, number: int) -> Any | None:
        """Return the ome.xml.model.Image of a series, None where nothing is said of it."""
        return self.root.getImage(number) if number < self.root.sizeOfImageList() else None


def collect(java: Java, reader: Any) -> None:
    """Let an IFormatReader, not yet open, keep what it finds."""
    _handles(java)[0].invokeWithArguments(reader, _service(java))


def _service(java: Java) -> Any:
    factory = java("loci.common.services.ServiceFactory")()
    return factory.getInstance(java("loci.formats.services.OMEXMLService"))


@cache
def _handles(java: Java) -> tuple[Any, Any]:
    """Return what gives a reader a new store, and what gets the root out of a reader's."""
    handles, kind = java("java.lang.invoke.MethodHandles"), java("java.lang.invoke.MethodType")
    loader = java("loci.formats.ImageReader").class_.getClassLoader()
    void = java("java.lang.Void").TYPE
    reader, service, store, made, root = (
        java("java.lang.Class").forName(name, True, loader)  # its java.lang.Class and no more
        for name in (
            "loci.formats.IFormatReader",
            "loci.formats.services.OMEXMLService",
            "loci.formats.meta.MetadataStore",
            "loci.formats.ome.OMEXMLMetadata",
            "ome.xml.meta.MetadataRoot",
        )
    )
    look = handles.publicLookup()
    create = look.findVirtual(service, "createOMEXMLMetadata", kind.methodType(made))
    put = look.findVirtual(reader, "setMetadataStore", kind.methodType(void, store))
    get = look.findVirtual(reader, "getMetadataStore", kind.methodType(store))
    root_of = look.findVirtual(made, "getRoot", kind.methodType(root))
    return (
        handles.collectArguments(put.asType(kind.methodType(void, [reader, made])), 1, create),
        handles.filterReturnValue(get.asType(kind.methodType(made, reader)), root_of),
    )
