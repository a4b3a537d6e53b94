"""Start the Java that Bio-Formats runs on, early and as one wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bioio_tk.backends import registry

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from bioio_tk.backends.base import Started


def start(
    jvm: str | os.PathLike[str] | None = None,
    jar: str | os.PathLike[str] | None = None,
    *,
    heap_mb: int | None = None,
    options: Sequence[str] = (),
) -> Started:
    """Start Java now; without this it starts when a file is first read through Bio-Formats.

    Parameters
    ----------
    jvm : str or Path, optional
        The Java to use: its folder (what JAVA_HOME means) or its library.
    jar : str or Path, optional
        The jar with Bio-Formats.
    heap_mb : int, optional
        Memory for Java, in MiB. By default a quarter of what this process may use.
    options : sequence of str
        More options of the ``java`` command, after those in BIOIO_TK_JAVA_OPTIONS.

    Returns
    -------
    Started
        What runs: ``version`` (of Bio-Formats), ``jar`` and ``java``. Also where it ran before.

    Raises
    ------
    BackendMissingError
        There is no Java or no Bio-Formats here; the text says what to do.
    BackendError
        Java does not start, and why; or this process was forked from one where it ran.
    SpecError
        It runs already, with something else than is asked for.
    """
    return registry.start("java", jvm=jvm, jar=jar, heap_mb=heap_mb, options=options)
