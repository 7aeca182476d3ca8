"""Local parquet and JSON-lines files: what is read, and the sentence that bad ones get."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_documents import document, documents, kept, write_parquet

from effllm.data.schema import SCHEMA
from effllm.data.sources.files import FilesSource
from effllm.errors import UserError
from tests.json_lines import write_lines


def read(*paths):
    units = FilesSource(paths).units()
    return [row for unit in units for batch in unit.batches(SCHEMA.names) for row in batch.to_pylist()]


def test_parquet_and_json_lines_give_the_same_documents_in_the_order_of_the_files(tmp_path):
    rows = [document(n, text=f"é\u2028日本 {n} \u0000\n", url=None, score=None if n % 2 else 1) for n in range(2500)]
    parquet = write_parquet(tmp_path / "z.parquet", rows[:1100])
    lines = write_lines(tmp_path / "y.jsonl", rows[1100:2200])
    packed = write_lines(tmp_path / "x.jsonl.gz", rows[2200:])
    assert read(parquet, lines, packed) == rows
    assert FilesSource([parquet]).total == 1100
    assert FilesSource([parquet, lines]).total is None


def test_files_given_to_the_stage_are_read_in_their_order_beyond_ten(tmp_path, sample_files):
    rows = documents(36)
    paths = [write_parquet(tmp_path / f"{n}.parquet", rows[3 * n : 3 * n + 3]) for n in range(12)]
    assert [row["id"] for row in kept(sample_files(paths, held_out_fraction=0.1), "train")] == [
        row["id"]
        for row in rows
        if row["id"] not in {r["id"] for r in kept(sample_files(paths, held_out_fraction=0.1), "held_out")}
    ]


def test_wider_and_encoded_types_are_converted_and_other_columns_left_out(tmp_path):
    rows = documents(20)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name, type in {
        "text": pa.large_string(),
        "language": pa.dictionary(pa.int32(), pa.string()),
        "token_count": pa.int32(),
        "score": pa.float32(),
    }.items():
        table = table.set_column(SCHEMA.get_field_index(name), name, table[name].cast(type))
    table = table.append_column("extra", pa.array(range(20)))
    path = write_parquet(tmp_path / "a.parquet", table.to_pylist(), schema=table.schema)
    found = read(path)
    assert [row | {"score": 3.2} for row in found] == rows
    assert found[0]["score"] == pytest.approx(3.2)


def test_blank_lines_are_skipped_and_still_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(document(0)) + "\n  \nnot json\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, line 4 is not JSON")):
        read(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "cut', "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        (json.dumps({"text": "a", "id": "b"}), "no column dump, url, file_path"),
        (json.dumps(document(1, token_count="12")), "column token_count is '12' where int64 is needed"),
        (json.dumps(document(1, int_score=True)), "column int_score is True where int64 is needed"),
        (json.dumps(document(1, text=5)), "column text is 5 where string is needed"),
        (json.dumps(document(1, text="\ud800")), "is not JSON text"),
        (json.dumps(document(1, token_count=2**63)), "column token_count is 9223372036854775808, too large for int64"),
        (
            json.dumps(document(1, int_score=-(10**400))),
            "column int_score is an integer of about 401 digits, too large",
        ),
        (
            json.dumps(document(1, score=10**400)),
            "column score is an integer of about 401 digits, too large for double",
        ),
        (json.dumps(document(1, score=float("nan"))), "is not JSON text (NaN is no JSON number"),
        (json.dumps(document(1, text=["x" * 9999])), "column text is ['xxx"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, complaint):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(document(0)) + "\n" + line + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2")) as error:
        read(path)
    assert complaint in str(error.value)


def test_a_truncated_gzip_file_names_the_last_whole_line(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl.gz", [document(n, text=str(np.random.default_rng(n).random(50))) for n in range(99)]
    )
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} is damaged after line \d+"):
        read(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header"])
def test_a_parquet_file_that_is_none_is_refused_before_any_document_is_read(tmp_path, sample_files, damage):
    good = write_parquet(tmp_path / "a.parquet", documents(50))
    bad = write_parquet(tmp_path / "b.parquet", documents(50))
    content = bad.read_bytes()
    bad.write_bytes({"truncated": content[:-100], "empty": b"", "text": b"hello\n" * 9, "header": content[:4]}[damage])
    with pytest.raises(UserError, match=rf"{re.escape(str(bad))} is not a whole parquet file .*fetch or write it"):
        FilesSource([good, bad])
    with pytest.raises(UserError, match=re.escape(str(bad))):
        sample_files([good, bad])


def test_a_parquet_file_with_damaged_pages_is_named(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(2000), compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    for position in range(1000, 3000):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*(fetch|write) it again"):
        sample_files([path])


def test_a_flipped_bit_behind_a_page_checksum_is_found(tmp_path):
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    path = write_parquet(tmp_path / "a.parquet", documents(2000), **options)
    content = bytearray(path.read_bytes())
    at = content.index(b"Document 7 says")
    content[at] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is not a whole parquet file"):
        read(path)


def test_a_column_whose_name_is_not_utf8_is_found(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", documents(20), compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"int_score", b"int_s\xffore"))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} is not a whole parquet file"):
        FilesSource([path])


def test_text_that_is_not_utf8_is_found(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", documents(20), compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = content.index(b"Document 7 says")
    content[at] = 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*the data is damaged"):
        read(path)


def test_missing_columns_are_named(tmp_path):
    schema = pa.schema([field for field in SCHEMA if field.name not in ("url", "int_score")])
    path = write_parquet(tmp_path / "a.parquet", documents(3), schema=schema)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: no column url, int_score; add"):
        FilesSource([path])


@pytest.mark.parametrize(
    ("column", "type"), [("token_count", pa.string()), ("text", pa.int64()), ("score", pa.string())]
)
def test_a_column_of_another_kind_is_named_with_both_types(tmp_path, column, type):
    schema = pa.schema([pa.field(f.name, type if f.name == column else f.type) for f in SCHEMA])
    path = write_parquet(tmp_path / "a.parquet", [document(1, **{column: None})], schema=schema)
    with pytest.raises(UserError, match=f"column {column} has type {type} where {SCHEMA.field(column).type} is needed"):
        FilesSource([path])


@pytest.mark.parametrize("column", ["text", "id", "token_count"])
def test_nulls_where_a_document_needs_a_value_are_named(tmp_path, column):
    path = write_parquet(tmp_path / "a.parquet", [document(0), document(1, **{column: None})])
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: column {column} holds nulls"):
        read(path)


def test_negative_token_counts_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [document(0, token_count=-1)])
    with pytest.raises(UserError, match="column token_count holds -1"):
        read(path)


def test_an_unknown_ending_or_no_file_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv: the ending is unknown; use \.parquet"):
        FilesSource([tmp_path / "a.csv"])
    with pytest.raises(UserError, match="no input file"):
        FilesSource([])


def test_a_failed_sample_publishes_nothing_and_a_good_file_repairs_it(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(50))
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(UserError):
        sample_files([path])
    assert not (tmp_path / "results" / "corpus" / "sample").exists()
    path.write_bytes(content)
    assert sample_files([path]).manifest.status == "ok"


def test_a_large_integer_is_a_fine_float(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(document(0, score=2**60 + 1)) + "\n")
    assert read(path)[0]["score"] == float(2**60)


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    table = pa.Table.from_pylist([document(0)], schema=SCHEMA).append_column("text", pa.array(["other"]))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column text occurs twice; rename one"):
        FilesSource([tmp_path / "a.parquet"])


def test_files_without_documents_are_said_to_have_none(tmp_path, sample_files):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    with pytest.raises(UserError, match="1 files hold no document"):
        sample_files([tmp_path / "a.jsonl"])
