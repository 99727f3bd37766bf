"""What ends a benchmark before its figures."""


class BenchError(Exception):
    """The benchmark cannot run here, or a server did not do its work; the message says which."""
