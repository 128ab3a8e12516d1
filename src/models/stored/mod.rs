//! Checkpoints whose matrices are stored quantised, in the layouts that the Hub's checkpoints have: bitsandbytes (4 and 8
//! bits), GPTQ, AWQ and FP8, and MXFP4 for experts. They stay quantised in memory and are frozen bases of adapters.
//!
//! `settings` reads what config.json says. A matrix is several tensors of the checkpoint; [`collect`] replaces them by one
//! entry under the name of the layer's weight, and checks names, dtypes and shapes. The numbers are read when a model is
//! built.

mod bitsandbytes;
mod fp8;
mod mxfp4;
mod packed;
mod settings;
mod tensors;

pub use settings::StoredFormat;
pub(super) use settings::{SECTION, read};

use crate::error::{Error, Result};
use crate::nn::{Quantisation, Weights};
use std::path::Path;
use tch::Kind;
use tensors::MatrixTensors;

/// Endings of tensors that only quantised checkpoints have.
const QUANTISED: [&str; 9] = [
    ".qweight",
    ".qzeros",
    ".absmax",
    ".SCB",
    "bitsandbytes__nf4",
    "bitsandbytes__fp4",
    mxfp4::BLOCKS,
    mxfp4::SCALES,
    fp8::SCALES,
];

/// Replaces the tensors of quantised matrices by one entry for each matrix. `format` is what config.json (`config`) says.
/// Fails if it contradicts the tensors, or if tensors of a matrix are missing or have other shapes than the others.
pub(super) fn collect(weights: &mut Weights, format: Option<StoredFormat>, config: &Path) -> Result<()> {
    let Some(format) = format else { return refuse_undeclared(weights, config) };
    let ending = match format {
        StoredFormat::FourBits { .. } => bitsandbytes::STATE,
        StoredFormat::Int8 => ".SCB",
        StoredFormat::Gptq { .. } | StoredFormat::Awq { .. } => ".qweight",
        StoredFormat::Mxfp4 => mxfp4::BLOCKS,
        StoredFormat::Fp8 { .. } => fp8::SCALES,
    };
    let module = |name: &str| Some(name[..name.find(ending)?].to_string());
    let modules: Vec<String> = weights.names().filter_map(module).collect();
    if modules.is_empty() {
        return Err(Error::user(format!(
            "{}: `{SECTION}` says that weights are stored in {}, but {} contains no tensor `…{ending}`",
            config.display(),
            format.describe(),
            weights.origin().display()
        ))
        .hint(format!(
            "if the weights are not quantised, remove `{SECTION}` from config.json; else fetch the model again"
        )));
    }
    for module in modules {
        let mut tensors = MatrixTensors::new(weights, &module);
        let matrix = match format {
            StoredFormat::FourBits { format, double } => bitsandbytes::four_bits(&mut tensors, format, double)?,
            StoredFormat::Int8 => bitsandbytes::int8(&mut tensors)?,
            StoredFormat::Gptq { bits, group, zeros_less_one } => {
                packed::gptq(&mut tensors, bits, group, zeros_less_one, format.describe())?
            }
            StoredFormat::Awq { group } => packed::awq(&mut tensors, group, format.describe())?,
            StoredFormat::Mxfp4 => {
                mxfp4::experts(weights, &module)?;
                continue;
            }
            StoredFormat::Fp8 { block } => fp8::matrix(&mut tensors, block)?,
        };
        weights.add_quantised(format!("{module}.weight"), matrix);
    }
    refuse_left_over(weights, format)
}

/// Fails if the weights are quantised although config.json does not say so.
fn refuse_undeclared(weights: &Weights, config: &Path) -> Result<()> {
    if let Some(name) = weights.names().find(|name| weights.kind(name) == Some(Kind::Float8e4m3fn)) {
        let place = weights.file_of(name).unwrap_or(weights.origin()).display();
        return Err(Error::user(format!("{place}: `{name}` is in F8_E4M3, but {} has no `{SECTION}`", config.display()))
            .hint("numbers of 8 bits are read with their scales only: fetch config.json again, or save the model in bf16, f16 or f32"));
    }
    match weights.names().find(|name| QUANTISED.iter().any(|ending| name.ends_with(ending))) {
        None => Ok(()),
        Some(name) => Err(Error::user(format!(
            "{}: `{name}` belongs to a quantised weight, but {} has no `{SECTION}`",
            weights.origin().display(),
            config.display()
        ))
        .hint(format!(
            "fetch config.json again; the settings of old GPTQ checkpoints are in quantize_config.json: write them into config.json as `{SECTION}`, with quant_method gptq"
        ))),
    }
}

/// Fails if parts of quantised matrices are left that belong to none.
fn refuse_left_over(weights: &Weights, format: StoredFormat) -> Result<()> {
    let whole = |name: &str| matches!(weights.kind(name), Some(Kind::Uint8 | Kind::Int8 | Kind::Int));
    let fp8 = |name: &str| weights.kind(name) == Some(Kind::Float8e4m3fn);
    let part = |name: &&str| {
        QUANTISED.iter().any(|e| name.ends_with(e)) || name.ends_with(".weight") && whole(name) || fp8(name)
    };
    match weights.names().find(|name| weights.quantised(name).is_none() && part(name)) {
        None => Ok(()),
        Some(name) => Err(Error::user(format!(
            "{}: `{name}` is a part of a quantised weight whose other tensors in {} are missing",
            weights.origin().display(),
            format.describe()
        ))
        .hint("the download is incomplete, or config.json is that of another checkpoint: fetch the model again")),
    }
}

impl StoredFormat {
    /// Returns a description for people, such as `GPTQ int4, groups of 128`.
    pub fn describe(self) -> String {
        let groups =
            |group: Option<i64>| group.map_or("one group for each output".into(), |n| format!("groups of {n}"));
        match self {
            Self::FourBits { format, double } => {
                format!("bitsandbytes {}", Quantisation::new(format, double).describe())
            }
            Self::Int8 => "bitsandbytes int8".into(),
            Self::Gptq { bits, group, .. } => format!("GPTQ int{bits}, {}", groups(group)),
            Self::Awq { group } => format!("AWQ int4, {}", groups(group)),
            Self::Mxfp4 => "MXFP4".into(),
            Self::Fp8 { block: [outputs, inputs] } => format!("FP8, blocks of {outputs} x {inputs}"),
        }
    }
}
