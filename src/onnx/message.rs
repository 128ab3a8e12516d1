//! Encodes a graph as the protobuf message `ModelProto` and decodes it. Field numbers are those of onnx.proto.

use super::graph::{
    AttributeValue, Dimension, ElementType, Graph, GraphOperator, Initializer, InitializerData, TensorPort, Value,
};
use crate::protobuf::{self, ProtobufMessage, WireValue};

/// The version of the set of operators, which ONNX Runtime reads from 1.13 on.
pub const OPSET: u64 = 17;

/// The version of the format that came with that set.
const FORMAT: u64 = 8;

/// Returns the bytes of a model's file. `description` is for people.
pub fn encode(graph: &Graph, name: &str, description: &str) -> Vec<u8> {
    let mut model = ProtobufMessage::default();
    model.varint(1, FORMAT);
    model.bytes(2, "ft");
    model.bytes(3, env!("CARGO_PKG_VERSION"));
    model.bytes(6, description);
    model.message(7, |m| {
        graph.operators.iter().for_each(|operator| m.message(1, |m| put_operator(m, operator)));
        m.bytes(2, name);
        graph.initializers.iter().for_each(|initializer| m.message(5, |m| put_initializer(m, initializer)));
        graph.inputs.iter().for_each(|port| m.message(11, |m| put_port(m, port)));
        graph.outputs.iter().for_each(|port| m.message(12, |m| put_port(m, port)));
    });
    model.message(8, |opset| {
        opset.bytes(1, "");
        opset.varint(2, OPSET);
    });
    model.into_bytes()
}

fn put_operator(m: &mut ProtobufMessage, operator: &GraphOperator) {
    operator.inputs.iter().for_each(|value| m.bytes(1, value.name()));
    operator.outputs.iter().for_each(|value| m.bytes(2, value.name()));
    m.bytes(3, &operator.name);
    m.bytes(4, &operator.operator);
    for (name, value) in &operator.attributes {
        m.message(5, |m| {
            m.bytes(1, name);
            match value {
                AttributeValue::Float(x) => m.fixed32(2, x.to_bits()),
                AttributeValue::Int(n) => m.varint(3, *n as u64),
                AttributeValue::Text(text) => m.bytes(4, text),
                AttributeValue::Ints(list) => list.iter().for_each(|n| m.varint(8, *n as u64)),
            }
            m.varint(20, attribute_kind(value));
        });
    }
}

fn attribute_kind(value: &AttributeValue) -> u64 {
    match value {
        AttributeValue::Float(_) => 1,
        AttributeValue::Int(_) => 2,
        AttributeValue::Text(_) => 3,
        AttributeValue::Ints(_) => 7,
    }
}

fn put_initializer(m: &mut ProtobufMessage, initializer: &Initializer) {
    initializer.shape.iter().for_each(|n| m.varint(1, *n));
    m.varint(2, initializer.kind.id() as u64);
    m.bytes(8, initializer.value.name());
    match &initializer.data {
        InitializerData::Inside(bytes) => m.bytes(9, bytes),
        InitializerData::Beside { file, offset, length } => {
            for (key, value) in [("location", file), ("offset", &offset.to_string()), ("length", &length.to_string())] {
                m.message(13, |m| {
                    m.bytes(1, key);
                    m.bytes(2, value);
                });
            }
            m.varint(14, 1);
        }
    }
}

fn put_port(m: &mut ProtobufMessage, port: &TensorPort) {
    m.bytes(1, port.value.name());
    m.message(2, |kind| {
        kind.message(1, |tensor| {
            tensor.varint(1, port.kind.id() as u64);
            tensor.message(2, |shape| {
                for dimension in &port.shape {
                    shape.message(1, |m| match dimension {
                        Dimension::Fixed(length) => m.varint(1, *length as u64),
                        Dimension::Named(name) => m.bytes(2, name),
                    });
                }
            });
        })
    });
}

/// Returns the graph in the bytes of a model's file; `None` if they are damaged, or if the model has parts that [`encode`] does not
/// write.
pub fn decode(bytes: &[u8]) -> Option<Graph> {
    let (mut graph, mut opset) = (None, None);
    for (field, value) in fields(bytes)? {
        match field {
            1 if value.signed()? != FORMAT as i64 => return None,
            7 => graph = Some(read_graph(value)?),
            8 => opset = fields(value.bytes()?)?.iter().find(|(field, _)| *field == 2)?.1.signed(),
            1 | 2 | 3 | 6 => {}
            _ => return None,
        }
    }
    graph.filter(|_| opset == Some(OPSET as i64))
}

/// Returns all fields of a message; `None` if it is damaged.
fn fields(message: &[u8]) -> Option<Vec<(u64, WireValue<'_>)>> {
    protobuf::fields(message).collect()
}

fn read_graph(value: WireValue) -> Option<Graph> {
    let mut graph = Graph::default();
    for (field, value) in fields(value.bytes()?)? {
        match field {
            1 => graph.operators.push(read_operator(value)?),
            2 => {}
            5 => graph.initializers.push(read_initializer(value)?),
            11 => graph.inputs.push(read_port(value)?),
            12 => graph.outputs.push(read_port(value)?),
            _ => return None,
        }
    }
    Some(graph)
}

fn read_operator(value: WireValue) -> Option<GraphOperator> {
    let (mut operator, mut name) = (String::new(), String::new());
    let (mut inputs, mut outputs, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
    for (field, value) in fields(value.bytes()?)? {
        match field {
            1 => inputs.push(Value::named(value.text()?)),
            2 => outputs.push(Value::named(value.text()?)),
            3 => name = value.text()?.into(),
            4 => operator = value.text()?.into(),
            5 => attributes.push(read_attribute(value)?),
            _ => return None,
        }
    }
    Some(GraphOperator { operator, name, inputs, outputs, attributes })
}

fn read_attribute(value: WireValue) -> Option<(String, AttributeValue)> {
    let (mut name, mut found, mut list, mut kind) = (String::new(), None, Vec::new(), 0);
    for (field, value) in fields(value.bytes()?)? {
        match (field, value) {
            (1, _) => name = value.text()?.into(),
            (2, WireValue::Fixed32(bits)) => found = Some(AttributeValue::Float(f32::from_bits(bits))),
            (3, _) => found = Some(AttributeValue::Int(value.signed()?)),
            (4, _) => found = Some(AttributeValue::Text(value.text()?.into())),
            (8, _) => list.push(value.signed()?),
            (20, _) => kind = value.signed()?,
            _ => return None,
        }
    }
    let found = found.unwrap_or(AttributeValue::Ints(list));
    (attribute_kind(&found) as i64 == kind).then_some((name, found))
}

fn read_initializer(value: WireValue) -> Option<Initializer> {
    let (mut name, mut kind, mut shape, mut inside) = (None, None, Vec::new(), None);
    let (mut file, mut offset, mut length) = (None, None, None);
    for (field, value) in fields(value.bytes()?)? {
        match field {
            1 => shape.push(u64::try_from(value.signed()?).ok()?),
            2 => kind = ElementType::of_id(value.signed()?),
            8 => name = value.text(),
            9 => inside = value.bytes(),
            13 => {
                let entry = fields(value.bytes()?)?;
                let text = |wanted: u64| entry.iter().find(|(field, _)| *field == wanted)?.1.text();
                match text(1)? {
                    "location" => file = text(2),
                    "offset" => offset = text(2)?.parse().ok(),
                    "length" => length = text(2)?.parse().ok(),
                    _ => return None,
                }
            }
            14 => {}
            _ => return None,
        }
    }
    let data = match (inside, file) {
        (Some(bytes), None) => InitializerData::Inside(bytes.to_vec()),
        (None, Some(file)) => InitializerData::Beside { file: file.into(), offset: offset?, length: length? },
        _ => return None,
    };
    Some(Initializer { value: Value::named(name?), kind: kind?, shape, data })
}

/// Returns the first field with this number.
fn inner<'a>(list: &[(u64, WireValue<'a>)], wanted: u64) -> Option<WireValue<'a>> {
    list.iter().find(|(field, _)| *field == wanted).map(|(_, value)| *value)
}

fn read_port(value: WireValue) -> Option<TensorPort> {
    let port = fields(value.bytes()?)?;
    let name = inner(&port, 1)?.text()?;
    let kind = fields(inner(&port, 2)?.bytes()?)?;
    let tensor = fields(inner(&kind, 1)?.bytes()?)?;
    let mut shape = Vec::new();
    for (_, dimension) in fields(inner(&tensor, 2)?.bytes()?)? {
        shape.push(match fields(dimension.bytes()?)?.first()? {
            (1, length) => Dimension::Fixed(length.signed()?),
            (2, name) => Dimension::from(name.text()?),
            _ => return None,
        });
    }
    let kind = ElementType::of_id(inner(&tensor, 1)?.signed()?)?;
    Some(TensorPort { value: Value::named(name), kind, shape })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::GraphBuilder;

    fn small() -> Graph {
        let mut g = GraphBuilder::default();
        let x = g.input("x", ElementType::Float, vec!["rows".into(), 3.into()]);
        let data = InitializerData::Beside { file: "data".into(), offset: 4096, length: 24 };
        let weight = g.weight("weight", ElementType::Float16, vec![3, 4], data);
        let weight = g.cast(&weight, ElementType::Float);
        let product = g.add_with("Gemm", &[&x, &weight], &[("alpha", AttributeValue::Float(0.5))]);
        let turned = g.transpose(&product, &[1, 0]);
        let y = g.reshape(&turned, &[-1]);
        let y = g.add_with("ScatterND", &[&y, &y, &y], &[("reduction", AttributeValue::Text("add".into()))]);
        g.output(&y, ElementType::Float, vec!["size".into()]);
        g.finish()
    }

    #[test]
    fn what_is_written_is_read() {
        let graph = small();
        assert_eq!(graph.problem(), None);
        let bytes = encode(&graph, "small", "for a test");
        assert_eq!(decode(&bytes), Some(graph));
        // No cut of the file passes for a model, and no changed byte stops the reader.
        assert!((0..bytes.len()).all(|end| decode(&bytes[..end]).is_none()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x81;
            decode(&changed);
        }
    }

    #[test]
    fn a_graph_that_is_not_well_formed_is_told() {
        let said = |change: &dyn Fn(&mut Graph)| {
            let mut graph = small();
            change(&mut graph);
            graph.problem().unwrap_or_default()
        };
        assert!(said(&|g| g.operators.swap(0, 1)).contains("which nothing before it computes"));
        assert!(said(&|g| g.initializers[0].shape[0] = 4).contains("has 24 bytes, and its shape 32"));
        assert!(said(&|g| g.operators[1].name = g.operators[0].name.clone()).contains("two operators"));
        assert!(said(&|g| g.operators[1].outputs = g.operators[0].outputs.clone()).contains("two tensors"));
        assert!(said(&|g| g.outputs[0].value = Value::named("z")).contains("nothing computes the output z"));
        assert!(said(&|g| g.operators[0].inputs[0] = Value::named("x")).contains("nothing reads weight"));
    }
}
