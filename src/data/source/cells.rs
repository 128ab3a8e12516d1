//! Converts cells of Arrow arrays to JSON.
//!
//! All types of Arrow can be converted except binary data that is not text. A category becomes its value, and an exact
//! decimal keeps its digits. Dates and times are ISO 8601 (instants in UTC), and a duration is its number of units. A
//! map with text as keys becomes an object. Text that the file declares as JSON is parsed. NaN and infinite floats
//! become null.

use crate::json;
use half::f16;
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use polars::prelude::pf16;
use polars_arrow::array::{
    Array, BinaryArray, BinaryViewArray, BooleanArray, DictionaryArray, DictionaryKey, FixedSizeBinaryArray,
    FixedSizeListArray, ListArray, MapArray, PrimitiveArray, StructArray, UnionArray, Utf8Array, Utf8ViewArray,
};
use polars_arrow::datatypes::{ArrowDataType, IntegerType, IntervalUnit, TimeUnit};
use polars_arrow::offset::Offset;
use polars_arrow::types::{NativeType, days_ms, i256, months_days_ns};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Arrow's extension type for text that is JSON.
pub(super) const JSON: &str = "arrow.json";

/// ft's own extension type for bytes that are a decimal of 256 bits; its metadata is the scale.
pub(super) const DECIMAL256: &str = "ft.decimal256";

/// Converts cell `i`. Null fields of structs are left out, because in a column every struct has every key. The error
/// names the type that cannot be converted.
pub(super) fn cell_to_json(array: &dyn Array, i: usize) -> Result<Value, String> {
    if array.is_null(i) {
        return Ok(Value::Null);
    }
    if let ArrowDataType::Extension(kind) = array.dtype()
        && kind.name == DECIMAL256
    {
        let bytes = downcast::<FixedSizeBinaryArray>(array)?.value(i);
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| "a decimal".to_string())?;
        let scale = kind.metadata.as_ref().and_then(|m| m.parse().ok()).unwrap_or(0);
        return Ok(decimal(i256::from_le_bytes(bytes).to_string(), scale));
    }
    let value = stored(array, i)?;
    match (array.dtype(), &value) {
        (ArrowDataType::Extension(kind), Value::String(text)) if kind.name == JSON => {
            json::parse(text).map_err(|e| format!("JSON ({e})"))
        }
        _ => Ok(value),
    }
}

/// Casts the array to a concrete type. The error names the array's type.
fn downcast<A: 'static>(array: &dyn Array) -> Result<&A, String> {
    array.as_any().downcast_ref().ok_or_else(|| format!("{:?}", array.dtype()))
}

/// Returns cell `i` of a primitive array.
fn primitive<T: NativeType>(array: &dyn Array, i: usize) -> Result<T, String> {
    Ok(downcast::<PrimitiveArray<T>>(array)?.value(i))
}

/// Converts cell `i` by the storage type of its array.
fn stored(array: &dyn Array, i: usize) -> Result<Value, String> {
    use ArrowDataType::*;
    let unknown = || format!("{:?}", array.dtype());
    Ok(match array.dtype().to_storage() {
        Null => Value::Null,
        Boolean => downcast::<BooleanArray>(array)?.value(i).into(),
        Int8 => primitive::<i8>(array, i)?.into(),
        Int16 => primitive::<i16>(array, i)?.into(),
        Int32 => primitive::<i32>(array, i)?.into(),
        Int64 | Duration(_) => primitive::<i64>(array, i)?.into(),
        Int128 => json::number_from_digits(&primitive::<i128>(array, i)?.to_string()),
        UInt8 => primitive::<u8>(array, i)?.into(),
        UInt16 => primitive::<u16>(array, i)?.into(),
        UInt32 => primitive::<u32>(array, i)?.into(),
        UInt64 => primitive::<u64>(array, i)?.into(),
        UInt128 => json::number_from_digits(&primitive::<u128>(array, i)?.to_string()),
        Float16 => f64::from(f16::from_bits(primitive::<pf16>(array, i)?.to_bits())).into(),
        Float32 => f64::from(primitive::<f32>(array, i)?).into(),
        Float64 => primitive::<f64>(array, i)?.into(),
        Decimal(_, scale) => decimal(primitive::<i128>(array, i)?.to_string(), *scale),
        Decimal32(_, scale) => decimal(primitive::<i32>(array, i)?.to_string(), *scale),
        Decimal64(_, scale) => decimal(primitive::<i64>(array, i)?.to_string(), *scale),
        Decimal256(_, scale) => decimal(primitive::<i256>(array, i)?.to_string(), *scale),
        Date32 => day(i64::from(primitive::<i32>(array, i)?)).ok_or_else(unknown)?.to_string().into(),
        Date64 => day(primitive::<i64>(array, i)?.div_euclid(86_400_000)).ok_or_else(unknown)?.to_string().into(),
        Time32(unit) => time(i64::from(primitive::<i32>(array, i)?), *unit).ok_or_else(unknown)?.into(),
        Time64(unit) => time(primitive(array, i)?, *unit).ok_or_else(unknown)?.into(),
        Timestamp(unit, zone) => {
            timestamp(primitive(array, i)?, *unit, zone.as_ref().is_some_and(|z| !z.is_empty())).ok_or_else(unknown)?
        }
        Interval(IntervalUnit::YearMonth) => json!({ "months": primitive::<i32>(array, i)? }),
        Interval(IntervalUnit::DayTime) => {
            let x = primitive::<days_ms>(array, i)?;
            json!({ "days": x.days(), "milliseconds": x.milliseconds() })
        }
        Interval(IntervalUnit::MonthDayNano) => {
            let x = primitive::<months_days_ns>(array, i)?;
            json!({ "months": x.months(), "days": x.days(), "nanoseconds": x.ns() })
        }
        Utf8 => downcast::<Utf8Array<i32>>(array)?.value(i).into(),
        LargeUtf8 => downcast::<Utf8Array<i64>>(array)?.value(i).into(),
        Utf8View => downcast::<Utf8ViewArray>(array)?.value(i).into(),
        Binary => bytes(downcast::<BinaryArray<i32>>(array)?.value(i))?,
        LargeBinary => bytes(downcast::<BinaryArray<i64>>(array)?.value(i))?,
        BinaryView => bytes(downcast::<BinaryViewArray>(array)?.value(i))?,
        FixedSizeBinary(_) => bytes(downcast::<FixedSizeBinaryArray>(array)?.value(i))?,
        List(_) => list::<i32>(array, i)?,
        LargeList(item) => {
            let list_ = downcast::<ListArray<i64>>(array)?;
            match is_parquet_map(&item.name, &item.dtype) {
                true => map(list_.values().as_ref(), span(list_, i))?,
                false => list::<i64>(array, i)?,
            }
        }
        FixedSizeList(_, size) => {
            let list_ = downcast::<FixedSizeListArray>(array)?;
            items(list_.values().as_ref(), i * size..(i + 1) * size)?
        }
        Map(..) => {
            let map_ = downcast::<MapArray>(array)?;
            let offsets = map_.offsets();
            map(map_.field().as_ref(), offsets[i] as usize..offsets[i + 1] as usize)?
        }
        Struct(fields) => {
            let values = downcast::<StructArray>(array)?.values();
            let pairs = fields
                .iter()
                .zip(values)
                .map(|(field, column)| Ok((field.name.to_string(), cell_to_json(column.as_ref(), i)?)));
            let pairs = pairs.collect::<Result<Vec<_>, String>>()?;
            Value::Object(pairs.into_iter().filter(|(_, v)| !v.is_null()).collect())
        }
        Dictionary(key, ..) => match key {
            IntegerType::Int8 => category::<i8>(array, i)?,
            IntegerType::Int16 => category::<i16>(array, i)?,
            IntegerType::Int32 => category::<i32>(array, i)?,
            IntegerType::Int64 => category::<i64>(array, i)?,
            IntegerType::UInt8 => category::<u8>(array, i)?,
            IntegerType::UInt16 => category::<u16>(array, i)?,
            IntegerType::UInt32 => category::<u32>(array, i)?,
            IntegerType::UInt64 => category::<u64>(array, i)?,
            _ => return Err(unknown()),
        },
        Union(_) => {
            let union = downcast::<UnionArray>(array)?;
            let (field, at) = union.index(i);
            cell_to_json(union.fields()[field].as_ref(), at)?
        }
        _ => return Err(unknown()),
    })
}

/// Makes a decimal from an integer, with its last `scale` digits after the point.
fn decimal(digits: String, scale: usize) -> Value {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |d| ("-", d));
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    match part {
        "" => json::number_from_digits(&format!("{sign}{whole}")),
        part => json::number_from_digits(&format!("{sign}{whole}.{part}")),
    }
}

fn day(days: i64) -> Option<Date> {
    let seconds = days.checked_mul(86_400)?;
    Some(Timestamp::from_second(seconds).ok()?.to_zoned(jiff::tz::TimeZone::UTC).date())
}

fn nanoseconds(value: i64, unit: TimeUnit) -> i128 {
    i128::from(value)
        * match unit {
            TimeUnit::Second => 1_000_000_000,
            TimeUnit::Millisecond => 1_000_000,
            TimeUnit::Microsecond => 1_000,
            TimeUnit::Nanosecond => 1,
        }
}

fn time(value: i64, unit: TimeUnit) -> Option<String> {
    let all = u64::try_from(nanoseconds(value, unit)).ok()?;
    let (seconds, rest) = (all / 1_000_000_000, (all % 1_000_000_000) as i32);
    let part = |n: u64| i8::try_from(n).ok();
    let time = Time::new(part(seconds / 3600)?, part(seconds / 60 % 60)?, part(seconds % 60)?, rest).ok()?;
    Some(match rest {
        0 => time.to_string(),
        rest if rest % 1000 == 0 => format!("{time:.6}"),
        _ => format!("{time:.9}"),
    })
}

/// Writes an instant as Python's `isoformat` does.
fn timestamp(value: i64, unit: TimeUnit, zoned: bool) -> Option<Value> {
    const DAY: i128 = 86_400 * 1_000_000_000;
    let all = nanoseconds(value, unit);
    let date = day(i64::try_from(all.div_euclid(DAY)).ok()?)?;
    let time = time(i64::try_from(all.rem_euclid(DAY)).ok()?, TimeUnit::Nanosecond)?;
    Some(format!("{date}T{time}{}", if zoned { "+00:00" } else { "" }).into())
}

/// Reads bytes as text: old writers of Parquet declare text as binary.
fn bytes(bytes: &[u8]) -> Result<Value, String> {
    std::str::from_utf8(bytes).map(Value::from).map_err(|_| "binary".to_string())
}

fn category<K: DictionaryKey>(array: &dyn Array, i: usize) -> Result<Value, String> {
    let array = downcast::<DictionaryArray<K>>(array)?;
    cell_to_json(array.values().as_ref(), array.key_value(i))
}

fn span<O: Offset>(list: &ListArray<O>, i: usize) -> Range<usize> {
    let offsets = list.offsets();
    offsets[i].to_usize()..offsets[i + 1].to_usize()
}

fn list<O: Offset>(array: &dyn Array, i: usize) -> Result<Value, String> {
    let list = downcast::<ListArray<O>>(array)?;
    items(list.values().as_ref(), span(list, i))
}

fn items(values: &dyn Array, at: Range<usize>) -> Result<Value, String> {
    at.map(|i| cell_to_json(values, i)).collect::<Result<_, _>>().map(Value::Array)
}

/// Returns true for a map as Parquet writes it: a list of entries, which differs from other lists by the entry's name.
fn is_parquet_map(name: &str, item: &ArrowDataType) -> bool {
    matches!(name, "key_value" | "entries" | "map")
        && matches!(item, ArrowDataType::Struct(fields) if fields.len() == 2 && fields[0].name == "key")
}

/// Converts the entries of a map: to an object if every key is text, else to a list of pairs.
fn map(entries: &dyn Array, at: Range<usize>) -> Result<Value, String> {
    let entries = downcast::<StructArray>(entries)?;
    let [keys, values] = entries.values() else { return Err("a map".into()) };
    let pair = |i: usize| Ok((cell_to_json(keys.as_ref(), i)?, cell_to_json(values.as_ref(), i)?));
    let pairs = at.map(pair).collect::<Result<Vec<_>, String>>()?;
    let texts = match pairs.as_slice() {
        [] => {
            matches!(
                keys.dtype().to_storage(),
                ArrowDataType::Utf8 | ArrowDataType::LargeUtf8 | ArrowDataType::Utf8View
            )
        }
        pairs => pairs.iter().all(|(key, _)| key.is_string()),
    };
    if !texts {
        return Ok(pairs.into_iter().map(|(key, value)| json!([key, value])).collect());
    }
    let text = |key: Value| key.as_str().unwrap_or_default().to_string();
    Ok(Value::Object(pairs.into_iter().map(|(key, value)| (text(key), value)).collect::<Map<_, _>>()))
}
