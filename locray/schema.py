"""The columns of every table that locray writes or passes on. Used by every layer; a column is named here only."""

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
XMIN, YMIN, XMAX, YMAX = "xmin", "ymin", "xmax", "ymax"

FILENAME = "filename"
OBJECTS = "objects"
IS_CROWD = "is_crowd"

STATUS_OK = "ok"
STATUS_FAILED = "failed"
STATUS_DEFERRED = "deferred"
"""Only between the stages: a deferred image never becomes a row of the table."""

TIMESTAMP = pa.timestamp("us", tz="UTC")

DETECTION = pa.struct(
    [
        pa.field(LABEL_ID, pa.int32()),
        pa.field(LABEL, pa.string()),
        pa.field(SCORE, pa.float32()),
        pa.field(XMIN, pa.float32()),
        pa.field(YMIN, pa.float32()),
        pa.field(XMAX, pa.float32()),
        pa.field(YMAX, pa.float32()),
    ]
)
"""One object: absolute pixels of the EXIF-upright frame, 0 <= xmin < xmax <= width."""

LISTING_SCHEMA = pa.schema(
    [
        pa.field(IMAGE_URI, pa.string(), nullable=False),
        pa.field(ETAG, pa.string()),
        pa.field(SIZE_BYTES, pa.int64()),
        pa.field(LAST_MODIFIED, TIMESTAMP),
    ]
)
"""What a source yields. A null etag means that the version is not known before the image is fetched."""

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
"""What leaves the decode stage, beside the pixels (`decoded_schema`)."""

PREDICTED_SCHEMA = pa.schema([*DECODED_SCHEMA, pa.field(DETECTIONS, pa.list_(DETECTION))])
"""What reaches the committer: one row an image, not yet stamped with the run."""

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
"""The predictions table: one row for every image, model and configuration."""

DELETED_SCHEMA = pa.schema(
    [pa.field(IMAGE_URI, pa.string(), nullable=False), pa.field(MISSING_SINCE, pa.date32(), nullable=False)]
)
"""Images that have rows and are not listed any more, and the date of the first night that missed them."""

DEFERRED_SCHEMA = pa.schema(
    [
        pa.field(IMAGE_URI, pa.string(), nullable=False),
        pa.field(ETAG, pa.string()),
        pa.field(ERROR_CODE, pa.string(), nullable=False),
        pa.field(RUN_ID, pa.string(), nullable=False),
    ]
)
"""Images that a run left to the next one: the code is a cause of deferral, or what a failed one would have."""

ANNOTATION = pa.struct(
    [
        pa.field(LABEL, pa.string(), nullable=False),
        pa.field(XMIN, pa.float64()),
        pa.field(YMIN, pa.float64()),
        pa.field(XMAX, pa.float64()),
        pa.field(YMAX, pa.float64()),
        pa.field(IS_CROWD, pa.bool_()),
    ]
)
"""One annotated object, in pixels of the frame `WIDTH` x `HEIGHT`; null corners: the class alone is known."""

ANNOTATED_SCHEMA = pa.schema(
    [
        pa.field(IMAGE_URI, pa.string(), nullable=False),
        pa.field(WIDTH, pa.int32()),
        pa.field(HEIGHT, pa.int32()),
        pa.field(OBJECTS, pa.list_(ANNOTATION)),
    ]
)
"""An annotated data set as a table, a row an image. No objects: the image shows none; null: it is not annotated."""

PARTITION_COLUMNS = [MODEL_ID, RUN_DATE]
KEY_COLUMNS = [IMAGE_URI, ETAG, MODEL_ID, CONFIG_HASH]


def decoded_schema(input_size_px: int) -> pa.Schema:
    """`DECODED_SCHEMA` with the pixels: a (input_size, input_size, 3) uint8 letterboxed image a row, flattened."""
    return DECODED_SCHEMA.append(pa.field(IMAGE, pa.list_(pa.uint8(), input_size_px * input_size_px * 3)))
