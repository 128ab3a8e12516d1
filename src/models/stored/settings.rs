//! Reads `quantization_config` of config.json: how the matrices of a checkpoint are stored quantised.

use crate::error::{Error, Result};
use crate::nn::QuantisedFormat;
use serde_json::Value;
use std::path::Path;

/// How the matrices of a checkpoint are stored quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredFormat {
    /// 4-bit blocks of bitsandbytes (QLoRA).
    FourBits {
        /// NF4 or FP4.
        format: QuantisedFormat,
        /// Whether the scales are quantised as well.
        double: bool,
    },
    /// int8 rows of bitsandbytes (LLM.int8).
    Int8,
    /// Whole numbers in groups of inputs, packed as GPTQ does.
    Gptq {
        /// 2, 3, 4 or 8 bits a number.
        bits: i64,
        /// Inputs of a group; `None`: all of a row's.
        group: Option<i64>,
        /// Zeros are stored less one (the first version of the format).
        zeros_less_one: bool,
    },
    /// Whole numbers of 4 bits in groups of inputs, packed as AWQ does ("gemm").
    Awq {
        /// Inputs of a group; `None`: all of a row's.
        group: Option<i64>,
    },
    /// Numbers of 4 bits in groups of 32 inputs that share a power of two, of experts only.
    Mxfp4,
    /// Floating-point numbers of 8 bits (e4m3) in blocks that share a scale.
    Fp8 {
        /// Outputs and inputs of a block.
        block: [i64; 2],
    },
}

/// Name of the section of config.json.
pub(in crate::models) const SECTION: &str = "quantization_config";

/// The section that mlx-lm writes.
const MLX_SECTION: &str = "quantization";

/// What to do with a checkpoint in a format that is not read.
const OTHER_FORMATS: &str = "use the model's unquantised weights, or a checkpoint of it in bitsandbytes, GPTQ (2, 3, 4 or 8 bits), AWQ (gemm, 4 bits), FP8 in blocks or, of gpt-oss, MXFP4, or a GGUF file";

/// Reads the section of a config.json; `None` if it has none. Fails for formats and settings that ft does not read.
pub(in crate::models) fn read(config: &Value, file: &Path) -> Result<Option<StoredFormat>> {
    let of_mlx = config.get(MLX_SECTION).filter(|section| section.get("group_size").is_some());
    if let Some(bits) = of_mlx.and_then(|section| section.get("bits")) {
        return Err(Error::user(format!(
            "{}: `{MLX_SECTION}` says that weights are stored in {bits} bits of mlx's, which are not computed with",
            file.display()
        ))
        .hint("make a plain model of it: ft import DIR --out OUT")
        .hint(OTHER_FORMATS));
    }
    let Some(section) = config.get(SECTION).filter(|v| !v.is_null()) else { return Ok(None) };
    let reader = SectionReader { section, file };
    let method = match section.get("quant_method") {
        Some(Value::String(method)) => method.as_str(),
        // Written before the key existed.
        None | Some(Value::Null) if reader.flag("load_in_4bit")? || reader.flag("load_in_8bit")? => "bitsandbytes",
        _ => return Err(reader.refused("quant_method", "is not given")),
    };
    Ok(Some(match method {
        "bitsandbytes" => bitsandbytes(&reader)?,
        "gptq" => gptq(&reader)?,
        "awq" => awq(&reader)?,
        "mxfp4" => StoredFormat::Mxfp4,
        "fp8" => fp8(&reader)?,
        _ => return Err(reader.refused("quant_method", "is not read")),
    }))
}

fn bitsandbytes(r: &SectionReader) -> Result<StoredFormat> {
    match (r.flag("load_in_4bit")?, r.flag("load_in_8bit")?) {
        (true, false) => {}
        (false, true) => return Ok(StoredFormat::Int8),
        _ => {
            return Err(r.refused("load_in_4bit", "and `load_in_8bit` contradict each other: one of them must be true"));
        }
    }
    let format = match r.text("bnb_4bit_quant_type")?.unwrap_or("fp4") {
        "nf4" => QuantisedFormat::Nf4,
        "fp4" => QuantisedFormat::Fp4,
        _ => return Err(r.refused("bnb_4bit_quant_type", "must be nf4 or fp4")),
    };
    Ok(StoredFormat::FourBits { format, double: r.flag("bnb_4bit_use_double_quant")? })
}

fn gptq(r: &SectionReader) -> Result<StoredFormat> {
    let bits = r.whole("bits")?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(r.refused("bits", "must be 2, 3, 4 or 8 for GPTQ"));
    }
    if r.text("pack_dtype")?.is_some_and(|dtype| dtype != "int32") {
        return Err(r.refused("pack_dtype", "must be int32"));
    }
    // The key has two names.
    let mut zeros_less_one = true;
    for key in ["checkpoint_format", "format"] {
        match r.text(key)? {
            Some("gptq_v2") => zeros_less_one = false,
            None | Some("gptq") => {}
            Some(_) => return Err(r.refused(key, "is not read; gptq and gptq_v2 are")),
        }
    }
    Ok(StoredFormat::Gptq { bits, group: r.group()?, zeros_less_one })
}

fn awq(r: &SectionReader) -> Result<StoredFormat> {
    // AutoAWQ's own files have other names for two of the keys.
    let key = if r.section.get("w_bit").is_some() { "w_bit" } else { "bits" };
    if r.whole(key)? != 4 {
        return Err(r.refused(key, "must be 4 for AWQ"));
    }
    if let Some(version) = r.text("version")?
        && !version.eq_ignore_ascii_case("gemm")
    {
        return Err(r.refused("version", "is not read; gemm is"));
    }
    if r.section.get("zero_point") == Some(&Value::Bool(false)) {
        return Err(r.refused("zero_point", "must be true"));
    }
    Ok(StoredFormat::Awq { group: r.group()? })
}

fn fp8(r: &SectionReader) -> Result<StoredFormat> {
    for (key, read) in
        [("fmt", "e4m3"), ("activation_scheme", "dynamic"), ("scale_fmt", "float"), ("expert_dtype", "fp8")]
    {
        if r.text(key)?.is_some_and(|found| found != read) {
            return Err(r.refused(key, &format!("is not read; {read} is")));
        }
    }
    let sizes: Option<Vec<Option<i64>>> =
        r.get("weight_block_size").and_then(Value::as_array).map(|list| list.iter().map(Value::as_i64).collect());
    match sizes.as_deref() {
        Some([Some(outputs), Some(inputs)]) if (1..1 << 20).contains(outputs) && (1..1 << 20).contains(inputs) => {
            Ok(StoredFormat::Fp8 { block: [*outputs, *inputs] })
        }
        _ => Err(r.refused("weight_block_size", "must be two whole numbers: outputs and inputs that share a scale")),
    }
}

/// Reads typed values of the section.
struct SectionReader<'a> {
    section: &'a Value,
    file: &'a Path,
}

impl<'a> SectionReader<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.section.get(key).filter(|v| !v.is_null())
    }

    /// Returns the error for a value that is not read.
    fn refused(&self, key: &str, why: &str) -> Error {
        let found = self.get(key).map_or(String::new(), |v| format!(" {v}"));
        Error::user(format!("{}: `{SECTION}.{key}`{found} {why}", self.file.display())).hint(OTHER_FORMATS)
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.refused(key, "must be true or false")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refused(key, "must be a string")),
        }
    }

    fn whole(&self, key: &str) -> Result<i64> {
        self.get(key).and_then(Value::as_i64).ok_or_else(|| self.refused(key, "must be a whole number"))
    }

    /// Returns the number of inputs of a group; `None` for -1, all inputs.
    fn group(&self) -> Result<Option<i64>> {
        let key = if self.section.get("q_group_size").is_some() { "q_group_size" } else { "group_size" };
        match self.whole(key)? {
            -1 => Ok(None),
            size if size > 0 => Ok(Some(size)),
            _ => Err(self.refused(key, "must be a number above 0, or -1 for one group of all inputs")),
        }
    }
}
