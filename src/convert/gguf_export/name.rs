//! Names a GGUF file as the format's specification asks: BaseName-SizeLabel[-FineTune]-Version-Encoding.gguf.

use crate::gguf::shape::Shape;

/// The parts of a model's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// The name as a whole: that of its folder.
    pub name: String,
    /// What comes before the size.
    pub base: String,
    /// What comes after the size.
    pub finetune: Option<String>,
    /// The version, `v1.0` if the name has none.
    pub version: String,
    /// The number of parameters, as 135M or 8x7B.
    pub size: String,
}

impl ModelName {
    /// Takes a folder's name apart. `size` is the label of the model's size.
    pub fn of(folder: &str, size: String) -> Self {
        let parts: Vec<&str> = folder.split(['-', ' ', '_']).filter(|part| !part.is_empty()).collect();
        let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let is_size = |part: &&str| {
            let digits = part.trim_end_matches(['K', 'M', 'B', 'T', 'k', 'm', 'b', 't']);
            digits.len() + 1 == part.len() && digits.split('x').all(number)
        };
        let is_version = |part: &&str| part.strip_prefix(['v', 'V']).is_some_and(number);
        let at = parts.iter().position(|part| is_size(part));
        let version = parts.iter().find(|part| is_version(part)).map_or("v1.0".into(), |part| part.to_lowercase());
        let join = |parts: &[&str]| {
            let kept: Vec<&str> = parts.iter().copied().filter(|part| !is_version(part)).collect();
            Some(kept.join("-")).filter(|text| !text.is_empty())
        };
        let (before, after) = parts.split_at(at.unwrap_or(parts.len()));
        Self {
            name: folder.into(),
            base: join(before).unwrap_or_else(|| "model".into()),
            finetune: join(after.get(1..).unwrap_or_default()),
            version,
            size,
        }
    }

    /// Returns the name of a file in a format; of an adapter's if `adapter` is true.
    pub fn file(&self, format: &str, adapter: bool) -> String {
        let finetune = self.finetune.iter().map(|text| format!("-{text}")).collect::<String>();
        let lora = if adapter { "-LoRA" } else { "" };
        format!("{}-{}{finetune}-{}-{}{lora}.gguf", self.base, self.size, self.version, format)
    }
}

/// Returns the label of a model's size: that of all parameters, or experts times that of one expert with what is shared.
pub fn size_label(shape: &Shape) -> String {
    let (mut shared, mut experts) = (0u64, 0u64);
    let head = shape.has_head().then(|| shape.head());
    for placed in shape.tensors().into_iter().chain(head) {
        let count: u64 = placed.stored.iter().product();
        if placed.hf.len() > 1 { experts += count } else { shared += count }
    }
    match shape.experts {
        Some(sizes) if experts > 0 => format!("{}x{}", sizes.count, rounded(shared + experts / sizes.count)),
        _ => rounded(shared),
    }
}

/// Returns a number of parameters with a suffix and at least two digits, as the `gguf` package does.
fn rounded(count: u64) -> String {
    let (scaled, suffix) = match count as f64 {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let digits = format!("{:.0}", scaled.round()).trim_start_matches('0').len();
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_at_the_size() {
        let name = ModelName::of("SmolLM2-135M-Instruct", "135M".into());
        assert_eq!((name.base.as_str(), name.finetune.as_deref()), ("SmolLM2", Some("Instruct")));
        assert_eq!(name.file("Q8_0", false), "SmolLM2-135M-Instruct-v1.0-Q8_0.gguf");
        let name = ModelName::of("Mixtral-8x7B-v0.1", "8x7B".into());
        assert_eq!(name.file("F16", false), "Mixtral-8x7B-v0.1-F16.gguf");
        assert_eq!(ModelName::of("run7", "1.1B".into()).file("F32", true), "run7-1.1B-v1.0-F32-LoRA.gguf");
    }

    #[test]
    fn sizes_have_two_digits() {
        assert_eq!([134_515_008, 1_100_000_000, 8_030_261_248, 52_000].map(rounded), ["135M", "1.1B", "8.0B", "52K"]);
    }
}
