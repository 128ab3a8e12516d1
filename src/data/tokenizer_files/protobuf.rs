//! Reads the wire format of protocol buffers: fields by number, without a schema.

/// The value of a field as encoded in the wire format.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WireValue<'a> {
    /// An integer of variable length.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Four bytes.
    Fixed32(u32),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> WireValue<'a> {
    /// Returns an int32 or int64 (negative ones take ten bytes); `None` for other wire types.
    pub fn signed(self) -> Option<i64> {
        if let Self::Varint(n) = self { Some(n as i64) } else { None }
    }

    /// Returns the value as a boolean.
    pub fn flag(self) -> Option<bool> {
        self.signed().map(|n| n != 0)
    }

    /// Returns the value as a float.
    pub fn float(self) -> Option<f32> {
        if let Self::Fixed32(bits) = self { Some(f32::from_bits(bits)) } else { None }
    }

    /// Returns the value as bytes.
    pub fn bytes(self) -> Option<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// Returns the value as text.
    pub fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Iterates over the fields of a message: (number, value). Yields `None` once and ends if the bytes are not a valid
/// message.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Option<(u64, WireValue<'_>)>> {
    let mut rest = Some(message);
    std::iter::from_fn(move || {
        let mut bytes = rest.take().filter(|b| !b.is_empty())?;
        let found = field(&mut bytes);
        rest = found.is_some().then_some(bytes);
        Some(found)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, WireValue<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => WireValue::Varint(varint(bytes)?),
        1 => WireValue::Fixed64(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            WireValue::Bytes(take(bytes, length)?)
        }
        5 => WireValue::Fixed32(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    (tag >> 3 != 0).then_some((tag >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7F).checked_shl(7 * i as u32)?;
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_field_is_read_and_a_cut_message_is_none() {
        let message = [
            &[0x08, 0x96, 0x01][..],                                                   // 1: 150
            &[0x12, 0x03, b'a', b'b', b'c'],                                           // 2: "abc"
            &[0x1D, 0x00, 0x00, 0x80, 0xBF],                                           // 3: -1.0
            &[0x21, 1, 0, 0, 0, 0, 0, 0, 0],                                           // 4: 1, of 64 bits
            &[0xD8, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], // 43: -1
        ]
        .concat();
        let found: Vec<(u64, WireValue)> = fields(&message).map(Option::unwrap).collect();
        assert_eq!(found[0], (1, WireValue::Varint(150)));
        assert_eq!((found[1].0, found[1].1.text()), (2, Some("abc")));
        assert_eq!(found[2].1.float(), Some(-1.0));
        assert_eq!(found[3], (4, WireValue::Fixed64(1)));
        assert_eq!((found[4].0, found[4].1.signed()), (43, Some(-1)));
        for cut in [2, 4, 10, 15, message.len() - 1] {
            assert!(fields(&message[..cut]).any(|f| f.is_none()), "{cut}");
        }
        assert!(fields(b"text, not a message").any(|f| f.is_none()));
    }
}
