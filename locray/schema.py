"""Schemas of all tables that locray reads, writes or passes between stages. Every column name is defined here once."""

import pyarrow as pa

IMAGE_URI = "image_uri"
ETAG = "etag"
SIZE_BYTES = "size_bytes"
LAST_MODIFIED = "last_modified"
WIDTH = "width"
HEIGHT = "height"
FORMAT = "format"
STATUS = "status"
ERROR_CODE = "error_code"
ERROR_MESSAGE = "error_message"
DETECTIONS = "detections"
MODEL_ID = "model_id"
CONFIG_HASH = "config_hash"
RUN_ID = "run_id"
RUN_DATE = "run_date"
LABELLED_AT = "labelled_at"

MISSING_SINCE = "missing_since"

ORDINAL = "ordinal"
IMAGE = "image"

LABEL_ID = "label_id"
LABEL = "label"
SCORE = "score"
CORNERS = XMIN, YMIN, XMAX, YMAX = "xmin", "ymin", "xmax", "ymax"

FILENAME = "filename"
OBJECTS = "objects"
IS_CROWD = "is_crowd"

STATUS_OK = "ok"
STATUS_FAILED = "failed"
STATUS_DEFERRED = "deferred"
"""Between stages only: a deferred image is never written to the table."""

MAX_SIDE_PX = 2**31 - 1
"""Largest width or height that a column holds."""

TIMESTAMP = pa.timestamp("us", tz="UTC")

DETECTION = pa.struct(
    [
        pa.field(LABEL_ID, pa.int32()),
        pa.field(LABEL, pa.string()),
        pa.field(SCORE, pa.float32()),
        *(pa.field(name, pa.float32()) for name in CORNERS),
    ]
)
"""One detection, in absolute pixels of the EXIF-upright image: 0 <= xmin < xmax <= width."""

LISTING_SCHEMA = pa.schema(
    [
        pa.field(IMAGE_URI, pa.string(), nullable=False),
        pa.field(ETAG, pa.string()),
        pa.field(SIZE_BYTES, pa.int64()),
        pa.field(LAST_MODIFIED, TIMESTAMP),
    ]
)
"""Rows of a source. A null etag: the version is unknown until the image is fetched."""

WORKLIST_SCHEMA = pa.schema([pa.field(ORDINAL, pa.int64(), nullable=False), *LISTING_SCHEMA])

_OUTCOME_FIELDS = [
    pa.field(WIDTH, pa.int32()),
    pa.field(HEIGHT, pa.int32()),
    pa.field(FORMAT, pa.string()),
    pa.field(STATUS, pa.string(), nullable=False),
    pa.field(ERROR_CODE, pa.string()),
    pa.field(ERROR_MESSAGE, pa.string()),
]

DECODED_SCHEMA = pa.schema([*WORKLIST_SCHEMA, *_OUTCOME_FIELDS])
"""Output of the decode stage, without the pixels (see `decoded_schema`)."""

PREDICTED_SCHEMA = pa.schema([*DECODED_SCHEMA, pa.field(DETECTIONS, pa.list_(DETECTION))])
"""Input of the committer: one row per image, without the columns of the run."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        *LISTING_SCHEMA,
        *_OUTCOME_FIELDS,
        pa.field(DETECTIONS, pa.list_(DETECTION)),
        pa.field(MODEL_ID, pa.string(), nullable=False),
        pa.field(CONFIG_HASH, pa.string(), nullable=False),
        pa.field(RUN_ID, pa.string(), nullable=False),
        pa.field(RUN_DATE, pa.date32(), nullable=False),
        pa.field(LABELLED_AT, TIMESTAMP, nullable=False),
    ]
)
"""The predictions table: one row per image, model and configuration."""

DELETED_SCHEMA = pa.schema(
    [pa.field(IMAGE_URI, pa.string(), nullable=False), pa.field(MISSING_SINCE, pa.date32(), nullable=False)]
)
"""Images that have rows but are no longer listed, with the date of the first nightly run that missed them."""

DEFERRED_SCHEMA = pa.schema(
    [
        pa.field(IMAGE_URI, pa.string(), nullable=False),
        pa.field(ETAG, pa.string()),
        pa.field(ERROR_CODE, pa.string(), nullable=False),
        pa.field(RUN_ID, pa.string(), nullable=False),
    ]
)
"""Images that a run deferred. `error_code` is a `DeferralCause` or an `ErrorCode`."""

ANNOTATION = pa.struct(
    [
        pa.field(LABEL, pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in CORNERS),
        pa.field(IS_CROWD, pa.bool_()),
    ]
)
"""One annotated object, in pixels of the frame `WIDTH` x `HEIGHT`. Null corners: only the class is known."""

ANNOTATED_SCHEMA = pa.schema(
    [
        pa.field(IMAGE_URI, pa.string(), nullable=False),
        pa.field(WIDTH, pa.int32()),
        pa.field(HEIGHT, pa.int32()),
        pa.field(OBJECTS, pa.list_(ANNOTATION)),
    ]
)
"""An annotated data set, one row per image. Empty `objects`: the image shows none; null: it is not annotated."""

PARTITION_COLUMNS = [MODEL_ID, RUN_DATE]
KEY_COLUMNS = [IMAGE_URI, ETAG, MODEL_ID, CONFIG_HASH]


def decoded_schema(input_size_px: int) -> pa.Schema:
    """`DECODED_SCHEMA` with the pixels: one flattened (input_size, input_size, 3) uint8 letterboxed image per row."""
    return DECODED_SCHEMA.append(pa.field(IMAGE, pa.list_(pa.uint8(), input_size_px * input_size_px * 3)))
