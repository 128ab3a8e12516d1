//! Writes and reads protobuf messages field by field, for the few messages that ft needs: TensorBoard's events and ONNX models.
//!
//! A message is a sequence of fields, each with a number and one of four encodings
//! (<https://protobuf.dev/programming-guides/encoding>). Which field has which meaning, the caller knows.

/// A message being written.
#[derive(Default)]
pub struct ProtobufMessage(Vec<u8>);

impl ProtobufMessage {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    /// Adds a whole number or truth value.
    pub fn varint(&mut self, field: u64, n: u64) {
        self.number(field << 3);
        self.number(n);
    }

    /// Adds the bits of a double or another number of 8 bytes.
    pub fn fixed64(&mut self, field: u64, bits: u64) {
        self.number(field << 3 | 1);
        self.0.extend(bits.to_le_bytes());
    }

    /// Adds bytes or a text.
    pub fn bytes(&mut self, field: u64, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// Adds the bits of a float or another number of 4 bytes.
    pub fn fixed32(&mut self, field: u64, bits: u32) {
        self.number(field << 3 | 5);
        self.0.extend(bits.to_le_bytes());
    }

    /// Adds a message, which `fill` writes.
    pub fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, inner.0);
    }

    /// Returns what was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

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

    fn sample() -> Vec<u8> {
        let mut m = ProtobufMessage::default();
        m.fixed64(1, 1.5f64.to_bits());
        m.varint(2, 300);
        m.message(5, |s| {
            s.message(1, |v| {
                v.bytes(1, b"train/loss");
                v.fixed32(2, 0.25f32.to_bits());
            })
        });
        m.into_bytes()
    }

    #[test]
    fn bytes_are_those_of_the_reference_writer() {
        // tensorboard.compat.proto.event_pb2.Event, 2.21.
        assert_eq!(crate::fsutil::hex(&sample()), "09000000000000f83f10ac022a130a110a0a747261696e2f6c6f7373150000803e");
    }

    #[test]
    fn what_is_written_is_read_and_a_cut_message_is_damaged() {
        let bytes = sample();
        let read = |bytes: &'static [u8]| fields(bytes).collect::<Option<Vec<_>>>().unwrap();
        let found = read(bytes.clone().leak());
        assert_eq!(found[..2], [(1, WireValue::Fixed64(1.5f64.to_bits())), (2, WireValue::Varint(300))]);
        let inner = read(read(found[2].1.bytes().unwrap())[0].1.bytes().unwrap());
        assert_eq!((inner[0].1.text(), inner[1].1.float()), (Some("train/loss"), Some(0.25)));
        // A cut between two fields leaves a message.
        let whole = [0, 9, 12, bytes.len()];
        for end in 0..=bytes.len() {
            assert_eq!(fields(&bytes[..end]).all(|field| field.is_some()), whole.contains(&end), "{end}");
        }
    }

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
