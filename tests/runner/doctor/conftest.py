"""The local hub for the tests of the network."""

from server_fixtures import _no_pauses, fake_hub  # noqa: F401  (fixtures)
