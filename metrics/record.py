"""A record: named values that are checked when it is made and when it is read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of all records: no unknown fields, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
