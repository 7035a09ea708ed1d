"""Words that configurations and records share. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal

Positions = Literal["absolute", "relative"]
Span = Literal["mixed", "clip", "video"]
