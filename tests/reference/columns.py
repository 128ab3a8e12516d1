"""Compares how ft, `datasets` and pyarrow read columns of every type, or writes the fixtures of tests/it/data/columns.rs.

    python tests/reference/columns.py FT             # check every type, in unused and used columns, in every kind of file
    python tests/reference/columns.py --fixtures DIR # write the fixtures

FT is the binary. Each type is used once for a column that ft ignores and once inside the arguments of a tool call; a
Parquet file, an Arrow file, an Arrow stream and a folder of `save_to_disk` are written if their writers support the type.
`ft data inspect` must read every file, and `ft data convert` must give the values that `datasets` gives (pyarrow if
`datasets` refuses the type): days and times as ISO 8601, instants in UTC, decimals digit by digit, durations as the count
of their units, maps with texts as keys as objects, nulls inside structs as absent keys.

Written for pyarrow 26.0, datasets 5.2, pandas 3.1.
"""

import argparse
import datetime as dt
import decimal
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

D = decimal.Decimal
decimal.getcontext().prec = 200
UTC = dt.timezone.utc
# Seconds that one command of ft may take; it takes about one on a quiet machine.
LIMIT = 120


def types():
    """Returns name, type and two values for each kind of column."""
    day, when = dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 13, 5, 7, 250000)
    category = pa.dictionary(pa.int8(), pa.string())
    entry = pa.struct([("city", pa.string()), ("n", pa.int8())])
    return [
        ("bool", pa.bool_(), [True, False]),
        ("int8", pa.int8(), [-128, 7]),
        ("int16", pa.int16(), [-32768, 7]),
        ("int32", pa.int32(), [-(2**31), 7]),
        ("int64", pa.int64(), [-(2**63), 7]),
        ("uint8", pa.uint8(), [255, 7]),
        ("uint16", pa.uint16(), [65535, 7]),
        ("uint32", pa.uint32(), [2**32 - 1, 7]),
        ("uint64", pa.uint64(), [2**64 - 1, 7]),
        ("float16", pa.float16(), [0.5, -2.0]),
        ("float32", pa.float32(), [0.1, -2.5]),
        ("float64", pa.float64(), [0.1, 1e300]),
        ("nan", pa.float64(), [math.nan, 1.0]),
        ("null", pa.null(), [None, None]),
        ("string", pa.string(), ["ä", ""]),
        ("large_string", pa.large_string(), ["ä", "b" * 40]),
        ("string_view", pa.string_view(), ["ä", "b" * 40]),
        ("binary", pa.binary(), [b"abc", b"x" * 40]),
        ("large_binary", pa.large_binary(), [b"abc", b"d"]),
        ("binary_view", pa.binary_view(), [b"abc", b"x" * 40]),
        ("fixed_binary", pa.binary(3), [b"abc", b"def"]),
        ("decimal32", pa.decimal32(7, 2), [D("-12345.67"), D("0.05")]),
        ("decimal64", pa.decimal64(16, 3), [D("1234567890123.456"), D("-0.001")]),
        ("decimal128", pa.decimal128(38, 18), [D("12345678901234567890.123456789012345678"), D("1")]),
        ("decimal_whole", pa.decimal128(30, 0), [D("123456789012345678901234567890"), D("-3")]),
        ("decimal256", pa.decimal256(70, 10), [D("1" * 55 + ".0123456789"), D("2.5")]),
        ("date32", pa.date32(), [day, dt.date(1969, 12, 31)]),
        ("date64", pa.date64(), [day, dt.date(1969, 12, 31)]),
        ("time32_s", pa.time32("s"), [dt.time(23, 59, 58), dt.time(0)]),
        ("time32_ms", pa.time32("ms"), [dt.time(23, 59, 58, 500000), dt.time(0)]),
        ("time64_us", pa.time64("us"), [dt.time(23, 59, 58, 123456), dt.time(0)]),
        ("time64_ns", pa.time64("ns"), [dt.time(23, 59, 58, 123456), dt.time(0)]),
        ("timestamp_s", pa.timestamp("s"), [when.replace(microsecond=0), dt.datetime(1960, 1, 1)]),
        ("timestamp_ms", pa.timestamp("ms"), [when, dt.datetime(1960, 1, 1)]),
        ("timestamp_us", pa.timestamp("us"), [when, dt.datetime(1960, 1, 1)]),
        ("timestamp_ns", pa.timestamp("ns"), [when, dt.datetime(1960, 1, 1)]),
        ("timestamp_utc", pa.timestamp("us", "UTC"), [when.replace(tzinfo=UTC), None]),
        ("timestamp_zone", pa.timestamp("us", "Europe/Paris"), [when.replace(tzinfo=UTC), None]),
        ("duration_s", pa.duration("s"), [dt.timedelta(seconds=90), dt.timedelta(0)]),
        ("duration_ns", pa.duration("ns"), [dt.timedelta(microseconds=5), dt.timedelta(0)]),
        ("interval", pa.month_day_nano_interval(), [(1, 2, 3), (0, 0, 0)]),
        ("category", category, ["a", "b"]),
        ("category_of_int", pa.dictionary(pa.int32(), pa.int64()), [7, 8]),
        ("ordered_category", pa.dictionary(pa.int16(), pa.string(), ordered=True), ["a", None]),
        ("list", pa.list_(pa.int8()), [[1, 2, 3], []]),
        ("list_of_categories", pa.list_(category), [["a", "b"], ["a"]]),
        ("list_of_decimals", pa.list_(pa.decimal128(20, 2)), [[D("1.25")], None]),
        ("list_of_dates", pa.list_(pa.date32()), [[day], [None]]),
        ("large_list", pa.large_list(pa.string()), [["a"], ["b", "c"]]),
        ("fixed_list", pa.list_(pa.float32(), 2), [[0.5, 1.5], [2.5, 3.5]]),
        ("list_of_lists", pa.list_(pa.list_(pa.uint8())), [[[1], [2, 3]], [[]]]),
        ("struct", entry, [{"city": "Rome", "n": 1}, {"city": None, "n": 2}]),
        ("list_of_structs", pa.list_(entry), [[{"city": "Rome", "n": 1}], []]),
        ("map", pa.map_(pa.string(), pa.int32()), [[("a", 1), ("b", 2)], []]),
        ("map_of_int", pa.map_(pa.int8(), pa.string()), [[(1, "x")], []]),
        ("map_of_lists", pa.map_(pa.string(), pa.list_(pa.timestamp("ms"))), [[("a", [when])], []]),
        ("json", pa.json_(pa.string()), ['{"a": [1, null, {"b": 12345678901234567890123}]}', '"text"']),
        ("list_of_json", pa.list_(pa.json_(pa.string())), [['{"a": 1}', "[2]"], ["3"]]),
    ]


def array(type_, values):
    """Converts values to an array, by the storage type if pa.array does not accept them for the type."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))
    if pa.types.is_list(type_) and isinstance(type_.value_type, pa.BaseExtensionType):
        storage = pa.array(values, pa.list_(type_.value_type.storage_type))
        return pa.ListArray.from_arrays(storage.offsets, array(type_.value_type, storage.values.to_pylist()), type=type_)
    if pa.types.is_float16(type_):
        import numpy as np

        return pa.array([None if v is None else np.float16(v) for v in values], type_)
    return pa.array(values, type_)


def struct(**children):
    arrays = list(children.values())
    return pa.StructArray.from_arrays(arrays, fields=[pa.field(n, a.type) for n, a in children.items()])


def one_each(values):
    """Returns a list column with one value in each row."""
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)


def plain_messages(n):
    turns = pa.struct([("role", pa.string()), ("content", pa.string())])
    rows = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(n)]
    return pa.array(rows, pa.list_(turns))


def calling_messages(columns, n):
    """Returns rows of one assistant turn whose tool call has the columns as its arguments."""
    function = struct(name=pa.array(["f"] * n), arguments=struct(**columns))
    calls = one_each(struct(type=pa.array(["function"] * n), function=function))
    turn = struct(role=pa.array(["assistant"] * n), content=pa.array([None] * n, pa.string()), tool_calls=calls)
    return one_each(turn)


def spoken(value, type_):
    """Converts a value of datasets or pyarrow to the JSON that ft writes; numbers keep their digits."""
    if value is None:
        return None
    if isinstance(type_, pa.BaseExtensionType):
        return read(value) if isinstance(value, str) else digits(value)
    if pa.types.is_dictionary(type_):
        return spoken(value, type_.value_type)
    if pa.types.is_map(type_):
        pairs = [(spoken(k, type_.key_type), spoken(v, type_.item_type)) for k, v in (value.items() if isinstance(value, dict) else value)]
        texts = pa.types.is_string(type_.key_type)
        return dict(pairs) if texts else [list(pair) for pair in pairs]
    if pa.types.is_struct(type_):
        said = {f.name: spoken(value.get(f.name), f.type) for f in type_}
        return {k: v for k, v in said.items() if v is not None}
    if hasattr(type_, "value_type"):
        return [spoken(v, type_.value_type) for v in value]
    if isinstance(value, bool) or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, D):
        return canonical(str(value))
    if isinstance(value, dt.datetime):
        return value.astimezone(UTC).isoformat() if value.tzinfo else value.isoformat()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        unit = {"s": 10**6, "ms": 10**3, "us": 1}.get(type_.unit)
        whole = (value.days * 86400 + value.seconds) * 10**6 + value.microseconds
        return canonical(str(whole // unit if unit else whole * 1000))
    if pa.types.is_interval(type_):
        return dict(zip(("months", "days", "nanoseconds"), map(canonical, map(str, value))))
    number = float(value)
    return None if math.isnan(number) else canonical(str(value) if isinstance(value, int) else repr(number))


class Number(str):
    """A number, stored as its digits."""


def canonical(text):
    value = D(text)
    return Number(f"{value:f}" if value == value.to_integral_value() and abs(value) < 10**100 else str(value.normalize()))


def read(text):
    return json.loads(text, parse_int=canonical, parse_float=canonical)


def written(value):
    """Writes JSON with the digits of numbers unchanged."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def digits(value):
    """Reads JSON with numbers as text in one canonical spelling."""
    if isinstance(value, dict):
        return {k: digits(v) for k, v in value.items()}
    if isinstance(value, list):
        return [digits(v) for v in value]
    if isinstance(value, (int, float, D)) and not isinstance(value, bool):
        return canonical(str(value))
    return value


def same(ours, theirs):
    """Returns True if both are equal; numbers are compared by value."""
    if isinstance(ours, Number) and isinstance(theirs, Number):
        return D(ours) == D(theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    return type(ours) is type(theirs) and ours == theirs


def write(folder, name, table):
    """Writes the table as every kind of file, except those whose writer refuses it."""
    made = {}
    for kind, path, save in [
        ("parquet", folder / f"{name}.parquet", lambda p: pq.write_table(table, p)),
        ("arrow", folder / f"{name}.arrow", lambda p: feather.write_feather(table, p, compression="lz4")),
        ("stream", folder / f"{name}.ipc", lambda p: stream(table, p)),
    ]:
        try:
            save(str(path))
            made[kind] = path
        except (pa.ArrowException, NotImplementedError) as e:
            made[kind] = e
    return made


def stream(table, path):
    with pa.OSFile(path, "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def theirs(path, kind):
    """Returns the rows as datasets reads them, or None if it refuses the file."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if kind == "parquet":
            with tempfile.TemporaryDirectory() as cache:
                return datasets.Dataset.from_parquet(str(path), cache_dir=cache)[:]["messages"]
        if kind == "stream":
            return datasets.Dataset.from_file(str(path))[:]["messages"]
    except Exception:
        return None


def check(ft):
    def run(*arguments):
        return subprocess.run([ft, "data", *map(str, arguments)], capture_output=True, text=True, timeout=LIMIT)

    bad, files, judged = [], 0, {"datasets": 0, "pyarrow": 0}
    kinds = types()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        for done, (name, type_, values) in enumerate(kinds, 1):
            print(f"\r{done} of {len(kinds)} types, {len(bad)} differences", end="", file=sys.stderr, flush=True)
            n = len(values)
            column = array(type_, values)
            beside = pa.table({"messages": plain_messages(n), name: column})
            inside = pa.table({"messages": calling_messages({name: column}, n)})
            for place, table in [("beside", beside), ("inside", inside)]:
                for kind, path in write(folder, f"{name}-{place}", table).items():
                    if isinstance(path, Exception):
                        print(f"{name:20} {place:7} {kind:8} cannot be written: {str(path).splitlines()[0][:70]}")
                        continue
                    files += 1
                    out = folder / "out.jsonl"
                    made = run("convert", path, "--to", "messages", "--out", out)
                    if place == "beside" and not made.returncode:
                        made = run("inspect", path)
                    if made.returncode:
                        bad.append(f"{name} {place} {kind}: {made.returncode} {made.stderr.strip()[:300]}")
                        continue
                    rows = [read(line) for line in out.open()]
                    if place == "beside":
                        said = [[m["content"] for m in row["messages"]] for row in rows]
                        if said != [[f"q{i}", f"a{i}"] for i in range(n)]:
                            bad.append(f"{name} {place} {kind}: {said}")
                        continue
                    theirs_ = theirs(path, kind)
                    judged["datasets" if theirs_ else "pyarrow"] += 1
                    for i, row in enumerate(rows):
                        ours = row["messages"][0]["tool_calls"][0]["function"]["arguments"].get(name)
                        theirs_value = values[i]
                        if theirs_:
                            theirs_value = theirs_[i][0]["tool_calls"][0]["function"]["arguments"][name]
                        if pa.types.is_float32(type_) and theirs_value is not None:
                            theirs_value = pa.scalar(theirs_value, pa.float32()).as_py()
                        wanted = spoken(theirs_value, type_)
                        if not same(ours, wanted):
                            bad.append(f"{name} {place} {kind} row {i}: {ours!r}, expected {wanted!r}")
    print(file=sys.stderr)
    print(f"{len(kinds)} types, {files} files, values by {judged}")
    print("\n".join(bad) if bad else "all as they should be")
    return 1 if bad else 0


def fixtures(folder):
    import datasets
    import pandas

    folder.mkdir(parents=True, exist_ok=True)
    all_ = {name: array(type_, values) for name, type_, values in types()}
    parquet = {n: a for n, a in all_.items() if n not in ("interval",)}
    # Values that are not text, and an image as datasets stores it. ft reads none of them.
    odd = {
        "bytes": pa.array([b"\xff\xfe", b"\x00\x80"]),
        "image": pa.array([{"bytes": b"\x89PNG\xff", "path": None}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    }
    beside = pa.table({**odd, **parquet, "messages": plain_messages(2)})
    pq.write_table(beside, folder / "beside.parquet", write_statistics=False, compression="zstd")
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    # Types that few libraries can read.
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["a"]))
    views = pa.ListViewArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array([1, 1], pa.int32()), runs)
    nested = pa.StructArray.from_arrays([views, pa.array([1, 2])], ["views", "n"])
    rare = {"union": union, "runs": runs, "views": views, "nested": nested, "listed": one_each(nested)}
    beside = pa.table({**odd, **all_, **rare, "messages": plain_messages(2), "last": pa.array(["x", "y"])})
    with pa.OSFile(str(folder / "beside.arrow"), "wb") as out, pa.ipc.new_file(out, beside.schema) as writer:
        writer.write_table(beside)
    stream(beside, str(folder / "beside.ipc"))
    # Types that pyarrow itself cannot write inside a list.
    nested = {n: a for n, a in parquet.items() if n not in ("string_view", "binary_view")}
    inside = pa.table({"messages": calling_messages(nested, 2)})
    pq.write_table(inside, folder / "inside.parquet", write_statistics=False, compression="zstd")
    stream(pa.table({"messages": calling_messages(all_, 2)}), str(folder / "inside.ipc"))
    read_back = {n: a.to_pylist() for n, a in all_.items() if n != "float16"} | {"float16": [0.5, -2.0]}
    expected = [{n: spoken(read_back[n][i], t) for n, t, _ in types()} for i in range(2)]
    frame = pandas.DataFrame({"prompt": pandas.Categorical(["one", "two", "one"]), "completion": ["a", "b", "c"]})
    frame["label"] = pandas.array([True, None, False], dtype="boolean")
    frame["when"] = pandas.to_datetime(["2024-01-01", "2024-01-02", None])
    frame.to_parquet(folder / "pandas.parquet")
    rows = [json.loads(line) for line in CALLS.strip().splitlines()]
    features = datasets.Features({"messages": datasets.List(datasets.Json()), "tools": datasets.List(datasets.Json())})
    calls = datasets.Dataset.from_list(rows, features=features)
    calls.to_parquet(str(folder / "calls.parquet"))
    datasets.DatasetDict({"train": calls, "test": calls.select([1])}).save_to_disk(str(folder / "saved"))
    (folder / "calls.jsonl").write_text(CALLS.lstrip())
    versions = {"pyarrow": pa.__version__, "datasets": datasets.__version__, "pandas": pandas.__version__}
    lines = ",\n  ".join(written(row) for row in expected)
    (folder / "expected.json").write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n  {lines}\n]}}\n')


CALLS = """
{"messages": [{"role": "user", "content": "weather in Paris"}, {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]}, {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "sunny"}], "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]}
{"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}]}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "3"}], "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}}}}]}
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ft", nargs="?")
    parser.add_argument("--fixtures", type=Path)
    options = parser.parse_args()
    if options.fixtures:
        fixtures(options.fixtures)
    else:
        sys.exit(check(options.ft))
