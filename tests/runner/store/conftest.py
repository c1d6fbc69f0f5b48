from __future__ import annotations

from server_fixtures import _no_pauses, certificate, fake_hub, web  # noqa: F401  (fixtures)
