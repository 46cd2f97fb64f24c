"""Rows of files: csv, tsv, jsonl, json, parquet and CoNLL, plain or compressed. Errors name the file and the line."""

from serving.records.file_reader import FORMATS, file_format, is_row_file, read_file, read_text
from serving.records.record import LocatedRow, checked_text, parse_json, shown

__all__ = ["FORMATS", "LocatedRow", "checked_text", "file_format", "is_row_file", "parse_json", "read_file", "read_text", "shown"]
