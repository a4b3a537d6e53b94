"""Every exception bioio_tk raises on purpose.

* BioIOError
  x FormatError(ValueError)              the file is not what it claims to be
    - UnknownFormatError                 no backend recognises the content
    - DamagedFileError                   recognised, but a part is missing or corrupt
  x BackendError(RuntimeError)           a backend cannot do its job here
    - BackendMissingError(ImportError)   its package is not installed
    - UnsupportedError(NotImplementedError)  this backend cannot read or store what was asked
    - OutOfMemoryError(MemoryError)      the memory a backend was given does not suffice
  x RegionError(IndexError)              an index or region does not fit the image
  x SpecError(ValueError)                an argument or a combination of them makes no sense
    - PixelTypeError(TypeError)          pixels of the wrong type were given
  x ReadOnlyError(AttributeError)        a property that can no longer be set
  x ClosedError(ValueError)              used after close()
  x TargetExistsError(FileExistsError)   the file to write is already there
  x TargetBusyError(OSError)             another writer is at work on the same file
  x StreamError(OSError)                 a frame could not be stored; says how many are safe
  x OverrunError(BufferError)            frames come faster than they are stored, and may not wait

`BioIOWarning` is the category of what it warns of.

A file that does not exist raises Python's own ``FileNotFoundError``, a folder in its place
``IsADirectoryError``, a full disk or a read-only folder the ``OSError`` of the system.
"""

from __future__ import annotations


class BioIOError(Exception):
    """Base of every exception that bioio_tk raises on purpose."""


class FormatError(BioIOError, ValueError):
    """The file is not what it claims to be."""


class UnknownFormatError(FormatError):
    """No backend recognises the content of the file."""


class DamagedFileError(FormatError):
    """The file was recognised but a part of it is missing or corrupt."""


class BackendError(BioIOError, RuntimeError):
    """A backend cannot do its job here."""


class BackendMissingError(BackendError, ImportError):
    """The package behind a backend is not installed."""


class UnsupportedError(BackendError, NotImplementedError):
    """The backend cannot read or store what was asked."""


class OutOfMemoryError(BackendError, MemoryError):
    """The memory that a backend was given does not suffice."""


class RegionError(BioIOError, IndexError):
    """An index or a region does not fit the image."""


class SpecError(BioIOError, ValueError):
    """An argument, or a combination of arguments, makes no sense."""


class PixelTypeError(SpecError, TypeError):
    """Pixels of another type than the image's were given.

    Attributes
    ----------
    place : tuple of int or None
        Where in what was given the value is that does not fit; it stands in the text, too.
    """

    place: tuple[int, ...] | None = None

    def moved(self, place: tuple[int, ...]) -> PixelTypeError:
        """Return the same error for a value that is at `place` in the image."""
        error = PixelTypeError(str(self).replace(f" at {self.place} ", f" at {place} ", 1))
        error.place = place
        return error


class ReadOnlyError(BioIOError, AttributeError):
    """The property can no longer be set."""


class ClosedError(BioIOError, ValueError):
    """The reader or writer was used after ``close()``."""


class TargetExistsError(BioIOError, FileExistsError):
    """The file to write is already there."""


class TargetBusyError(BioIOError, OSError):
    """Another writer is at work on the same file."""


class StreamError(BioIOError, OSError):
    """A frame of a stream could not be stored; nothing after it is.

    Attributes
    ----------
    frames_safe : int
        So many frames, the first ones, are in the file.
    """

    frames_safe: int = 0


class OverrunError(BioIOError, BufferError):
    """Frames come faster than they are stored, and this one was not taken."""


class BioIOWarning(UserWarning):
    """What was asked is done, but less well than it could be."""
