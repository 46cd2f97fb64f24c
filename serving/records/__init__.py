"""Rows of files: csv, tsv, jsonl, json, parquet and CoNLL, plain or compressed. Errors name the file and the line."""

from serving.records.file_reader import FORMATS, file_format, is_row_file, read_file, read_text
from serving.records.locations import belongs_to_split, read_rows
from serving.records.record import LocatedRow, checked_text, parse_json, shown

__all__ = [
    "FORMATS",
    "LocatedRow",
    "belongs_to_split",
    "checked_text",
    "file_format",
    "is_row_file",
    "parse_json",
    "read_file",
    "read_rows",
    "read_text",
    "shown",
]
