"""Whatever an image can come from, as a LazyArray: paths, arrays, many files, streams."""
