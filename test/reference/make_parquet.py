"""Writes Parquet files as Hugging Face datasets does: images as structs of bytes and path, features in the metadata.

    python test/reference/make_parquet.py   # pyarrow
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

root = pathlib.Path(__file__).parents[2]
folder = root / "models/fashion/pictures"
names = ["1-trouser.png", "5-sandal.png", "8-bag.png", "9-ankle-boot.png"]
image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
images = pa.array([{"bytes": (folder / name).read_bytes(), "path": name} for name in names], image_type)


def write(name, columns, features=None, **options):
    table = pa.table(columns)
    if features is not None:
        info = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, root / "test/fixtures/lists" / name, **options)


classes = {"names": ["trouser", "shoe", "bag"], "_type": "ClassLabel"}
write(
    "class_label.parquet",
    {"image": images, "label": pa.array([0, 1, 2, 1], pa.int64())},
    {"image": {"_type": "Image"}, "label": classes},
    row_group_size=3,
)
write(
    "sequence.parquet",
    {"image": images, "label": pa.array([[0], [1, 2], [], [1]], pa.list_(pa.int64()))},
    {"image": {"_type": "Image"}, "label": {"feature": classes, "_type": "Sequence"}},
)
paths = pa.array([{"bytes": None, "path": name} for name in names[:3]] + [{"bytes": None, "path": None}], image_type)
write("paths.parquet", {"image": paths, "label": pa.array([1.0, 2.0, 3.0, 4.0], pa.float32())})
write("zstd.parquet", {"image": names, "label": names}, compression="zstd")
