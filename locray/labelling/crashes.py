"""Units that are the end of the processes that work on them: how often that may be, and what becomes of them then.

Knows nothing of Ray. Called by both stages, which are told how many processes died.
"""

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema
from locray.errors import DeferralCause

MAX_CRASHES = 5
"""So many processes may die over a unit, by no decoder's fault, before its images are left to the next run."""


def defer_unit(decoded: pa.Table, crashes: int) -> pa.Table:
    """The unit, of `schema.decoded_schema`, with nothing left for a model: images that it would see are deferred."""
    reason = (
        f"{crashes} model workers died over its unit: too little memory (a smaller --batch-size takes less), a crash "
        "of the network, or a node that fails"
    )
    is_ok = pc.equal(decoded[schema.STATUS], schema.STATUS_OK)
    changed = {
        schema.STATUS: schema.STATUS_DEFERRED,
        schema.ERROR_CODE: str(DeferralCause.WORKER),
        schema.ERROR_MESSAGE: reason,
    }
    for name, value in changed.items():
        column = pc.if_else(is_ok, pa.scalar(value), decoded[name])
        decoded = decoded.set_column(decoded.schema.get_field_index(name), decoded.schema.field(name), column)
    return decoded
