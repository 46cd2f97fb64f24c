"""What clients are told about requests that fail through no fault of theirs, and the status that belongs to each message.

Triton leaves the status out of streams and of the answers of ``generate``. The front (``serving/front``) and the client find it by
the whole message: one that only contains these words may repeat what a client has sent.
"""

from __future__ import annotations

from collections.abc import Mapping

NOT_PREPARED = "this request could not be prepared"
NOT_RUN = "the model could not run on this input"
NOT_ANSWERED = "the answer could not be made of what the model gave"
NOT_FINITE = "the model gave values that are not finite for this input"
BUSY = "this model has more requests than may wait: try again later"
LATE = "the time that this request allows is over"

INTERNAL, UNAVAILABLE, DEADLINE_EXCEEDED = "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"
STATUSES: Mapping[str, str] = {
    NOT_PREPARED: INTERNAL,
    NOT_RUN: INTERNAL,
    NOT_ANSWERED: INTERNAL,
    NOT_FINITE: INTERNAL,
    BUSY: UNAVAILABLE,
    LATE: DEADLINE_EXCEEDED,
}
"""Names of gRPC's status codes. Triton's Python backend has no DEADLINE_EXCEEDED: Triton itself gives UNAVAILABLE in its place."""
