//! Writes small GGUF files: models with random weights in any of ggml's formats, with the tests' tokenizer.

use super::fixture;
use ft::gguf::quant::GgmlType;
use half::{bf16, f16};
use serde_json::Value;
use std::path::Path;

const ALIGNMENT: usize = 32;

/// The contents of a GGUF file, in the order in which they are written.
#[derive(Default)]
pub struct GgufWriter {
    keys: Vec<Vec<u8>>,
    /// Name, shape (outermost dimension first), format, data.
    tensors: Vec<(String, Vec<u64>, GgmlType, Vec<u8>)>,
}

fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl GgufWriter {
    /// Adds a metadata value: its type's number in GGUF, and its bytes.
    pub fn key(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.keys.push([&text_bytes(key), &kind.to_le_bytes()[..], value].concat());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8, &text_bytes(value));
    }

    pub fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4, &value.to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6, &value.to_le_bytes());
    }

    /// Adds an array; `element` is the number of its type.
    fn array(&mut self, key: &str, element: u32, values: &[Vec<u8>]) {
        let head = [&element.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, &[head, values.concat()].concat());
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, &values.iter().map(|v| text_bytes(v)).collect::<Vec<_>>());
    }

    pub fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, &values.iter().map(|v| v.to_le_bytes().to_vec()).collect::<Vec<_>>());
    }

    /// Adds a tensor with its data as it is stored.
    pub fn tensor(&mut self, name: &str, shape: &[u64], kind: GgmlType, data: Vec<u8>) {
        self.tensors.push((name.into(), shape.into(), kind, data));
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        let mut offset = 0usize;
        for (name, shape, kind, data) in &self.tensors {
            out.extend(text_bytes(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(ALIGNMENT);
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(data);
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, out).unwrap();
    }

    /// Adds the tokenizer of tests/fixtures/tiny-tokenizer.
    fn tokenizer(&mut self) {
        let folder = fixture("tiny-tokenizer");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let json: Value = serde_json::from_str(&read("tokenizer.json")).unwrap();
        let mut tokens: Vec<(u64, String)> = Vec::new();
        for (token, id) in json["model"]["vocab"].as_object().unwrap() {
            tokens.push((id.as_u64().unwrap(), token.clone()));
        }
        tokens.sort();
        let special = json["added_tokens"].as_array().unwrap().len();
        let types: Vec<i32> = (0..tokens.len()).map(|id| if id < special { 3 } else { 1 }).collect();
        let part = |merge: &Value, i: usize| merge[i].as_str().unwrap().to_string();
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let merges: Vec<String> = merges.map(|m| format!("{} {}", part(m, 0), part(m, 1))).collect();
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "gpt-2");
        self.texts("tokenizer.ggml.tokens", &tokens.into_iter().map(|(_, token)| token).collect::<Vec<_>>());
        self.integers("tokenizer.ggml.token_type", &types);
        self.texts("tokenizer.ggml.merges", &merges);
        self.number("tokenizer.ggml.eos_token_id", 2);
        self.number("tokenizer.ggml.padding_token_id", 3);
        self.text("tokenizer.chat_template", &read("chat_template.jinja"));
    }
}

/// Random numbers that depend on nothing but the seed (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Returns a number in (-1, 1).
    fn signed(&mut self) -> f32 {
        (self.next() % 20001) as f32 / 10000.0 - 1.0
    }
}

/// Returns `count` numbers of at most about 0.1 in blocks of this format.
fn random_blocks(kind: GgmlType, count: usize, numbers: &mut Numbers) -> Vec<u8> {
    if kind.is_float() {
        let value = |x: f32| match kind {
            GgmlType::F32 => x.to_le_bytes().to_vec(),
            GgmlType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            _ => bf16::from_f32(x).to_le_bytes().to_vec(),
        };
        return (0..count).flat_map(|_| value(0.1 * numbers.signed())).collect();
    }
    // The codes may have any value. Scales make the largest number about 0.1.
    let (scale, offset) = match kind {
        GgmlType::Q4_0 => (0.0125, 0.0),
        GgmlType::Q4_1 => (0.0125, -0.1),
        GgmlType::Q5_0 => (0.006, 0.0),
        GgmlType::Q5_1 => (0.006, -0.1),
        GgmlType::Q8_0 => (0.0008, 0.0),
        GgmlType::Q6_K => (0.00003, 0.0),
        _ => (0.0004, 0.0004),
    };
    let mut bytes = Vec::new();
    for _ in 0..count / kind.block_elements() {
        let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| numbers.next() as u8).collect();
        for (at, value) in kind.scale_offsets().iter().zip([scale * (1.0 + 0.5 * numbers.signed()), offset]) {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// Returns a small model with random weights: two layers of an architecture (llama, qwen2, qwen3 or gpt2), whose matrices
/// are stored in one format. A Llama's head is its embedding.
pub fn tiny_gguf(arch: &str, kind: GgmlType) -> GgufWriter {
    let (hidden, inner) = if kind.block_elements() > 64 { (256, 512) } else { (64, 96) };
    let (layers, heads, kv, vocab, context) = (2u32, 4u32, 2u32, 512u64, 256u32);
    let head = hidden / u64::from(heads);
    let mut file = GgufWriter::default();
    file.text("general.architecture", arch);
    file.text("general.name", "tiny");
    let key = |name: &str| format!("{arch}.{name}");
    for (name, value) in [
        ("block_count", layers),
        ("embedding_length", hidden as u32),
        ("feed_forward_length", inner as u32),
        ("attention.head_count", heads),
        ("context_length", context),
    ] {
        file.number(&key(name), value);
    }
    file.tokenizer();
    let mut numbers = Numbers(7);
    let mut matrix = |file: &mut GgufWriter, name: &str, shape: [u64; 2]| {
        let data = random_blocks(kind, (shape[0] * shape[1]) as usize, &mut numbers);
        file.tensor(name, &shape, kind, data);
    };
    let mut more = Numbers(8);
    let mut vector = |file: &mut GgufWriter, name: &str, size: u64, mean: f32| {
        let values = (0..size).flat_map(|_| (mean + 0.1 * more.signed()).to_le_bytes()).collect();
        file.tensor(name, &[size], GgmlType::F32, values);
    };
    matrix(&mut file, "token_embd.weight", [vocab, hidden]);
    if arch == "gpt2" {
        file.float(&key("attention.layer_norm_epsilon"), 1e-5);
        let positions = random_blocks(GgmlType::F32, context as usize * hidden as usize, &mut Numbers(9));
        file.tensor("position_embd.weight", &[u64::from(context), hidden], GgmlType::F32, positions);
        for i in 0..layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            for (part, shape) in [
                ("attn_qkv", [3 * hidden, hidden]),
                ("attn_output", [hidden, hidden]),
                ("ffn_up", [inner, hidden]),
                ("ffn_down", [hidden, inner]),
            ] {
                matrix(&mut file, &name(&format!("{part}.weight")), shape);
                vector(&mut file, &name(&format!("{part}.bias")), shape[0], 0.0);
            }
            for part in ["attn_norm", "ffn_norm"] {
                vector(&mut file, &name(&format!("{part}.weight")), hidden, 1.0);
                vector(&mut file, &name(&format!("{part}.bias")), hidden, 0.0);
            }
        }
        vector(&mut file, "output_norm.weight", hidden, 1.0);
        vector(&mut file, "output_norm.bias", hidden, 0.0);
        return file;
    }
    file.number(&key("attention.head_count_kv"), kv);
    file.float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    file.float(&key("rope.freq_base"), 10000.0);
    if arch == "qwen3" {
        file.number(&key("attention.key_length"), head as u32);
        file.number(&key("attention.value_length"), head as u32);
    }
    let kv_rows = u64::from(kv) * head;
    for i in 0..layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        for (part, shape) in [
            ("attn_q", [hidden, hidden]),
            ("attn_k", [kv_rows, hidden]),
            ("attn_v", [kv_rows, hidden]),
            ("attn_output", [hidden, hidden]),
            ("ffn_gate", [inner, hidden]),
            ("ffn_up", [inner, hidden]),
            ("ffn_down", [hidden, inner]),
        ] {
            matrix(&mut file, &name(&format!("{part}.weight")), shape);
            if arch == "qwen2" && ["attn_q", "attn_k", "attn_v"].contains(&part) {
                vector(&mut file, &name(&format!("{part}.bias")), shape[0], 0.0);
            }
        }
        vector(&mut file, &name("attn_norm.weight"), hidden, 1.0);
        vector(&mut file, &name("ffn_norm.weight"), hidden, 1.0);
        if arch == "qwen3" {
            vector(&mut file, &name("attn_q_norm.weight"), head, 1.0);
            vector(&mut file, &name("attn_k_norm.weight"), head, 1.0);
        }
    }
    vector(&mut file, "output_norm.weight", hidden, 1.0);
    if arch != "llama" {
        matrix(&mut file, "output.weight", [vocab, hidden]);
    }
    file
}
