"""The fake machine of the engine tests, for the runtime's own."""

from tests.engine.conftest import pretend

__all__ = ["pretend"]
