"""Ids of requests: what Envoy does with the header ``x-request-id``.

A request has the id that its client sends in the header, else that of its body (the ``id`` of KServe's protocol), else one that
Envoy makes. The guard, which alone reads bodies, writes it into the header, from where the logs and the answer have it.
"""

from __future__ import annotations

from serving.front.envoy_fields import EnvoyFields, overwritten, type_url
from serving.request_context import LONGEST_ID, REQUEST_ID_HEADER

GIVEN_ID = "x-given-request-id"
"""Header of a request whose client has sent an id, for the guard: Envoy's own ids look the same. Triton does not get it."""


def request_ids() -> EnvoyFields:
    """Return fields of the HTTP connection manager: make ids where there are none, and send them back."""
    given = f"%REQ({REQUEST_ID_HEADER}):{LONGEST_ID}%"
    mutations: list[EnvoyFields] = [
        {"remove": GIVEN_ID},
        {"append": overwritten(GIVEN_ID, given)},
        {"remove": REQUEST_ID_HEADER},
        {"append": overwritten(REQUEST_ID_HEADER, f"%REQ({GIVEN_ID})%")},
    ]
    mutation = type_url("http.early_header_mutation.header_mutation.v3.HeaderMutation")
    uuid = type_url("request_id.uuid.v3.UuidRequestIdConfig")
    return {
        "early_header_mutation_extensions": [
            {"name": "given_id", "typed_config": {"@type": mutation, "mutations": mutations}},
        ],
        "generate_request_id": True,
        # a client's id stays as it is, and says nothing about traces
        "preserve_external_request_id": True,
        "request_id_extension": {
            "typed_config": {"@type": uuid, "pack_trace_reason": False, "use_request_id_for_trace_sampling": False}
        },
        "always_set_request_id_in_response": True,
    }
