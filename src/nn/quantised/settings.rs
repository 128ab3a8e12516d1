//! The settings of quantised weights.

use crate::native::quantised::{BLOCK, GROUP};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The number format of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantisedFormat {
    /// 4 bits: values spaced as the quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314), in
    /// blocks of 64 that share a scale.
    Nf4,
    /// 4 bits: floating-point numbers with two bits of exponent and one of fraction, in blocks of 64 that share a scale.
    Fp4,
    /// 8 bits: whole numbers, with a scale for each output.
    Int8,
    /// 8 bits: floating-point numbers with four bits of exponent and three of fraction (e4m3), with one scale for the matrix. In half
    /// precision, GPUs from compute capability 8.9 multiply in FP8: inputs, and gradients in the backward, are rounded to e4m3 as well.
    Fp8,
}

impl QuantisedFormat {
    /// Returns the format's name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }

    /// Returns true for the formats of 4 bits, whose scales can be quantised as well.
    pub fn has_blocks(self) -> bool {
        matches!(self, Self::Nf4 | Self::Fp4)
    }
}

/// The number format of quantised tables of tokens and output heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableFormat {
    /// 8 bits: whole numbers, with a scale for each token.
    Int8,
}

impl TableFormat {
    /// Returns the format's name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
        }
    }

    /// Returns how a matrix in this format is quantised.
    pub fn quantisation(self) -> Quantisation {
        match self {
            Self::Int8 => Quantisation::new(QuantisedFormat::Int8, false),
        }
    }
}

/// How the frozen weights of a base are quantised when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseQuantisation {
    /// Linear layers.
    #[serde(flatten)]
    pub linear: Quantisation,
    /// Tables of tokens and the output head; `None`: they keep their format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<TableFormat>,
}

impl BaseQuantisation {
    /// Returns a description for people, such as `NF4 with 8-bit scales, embeddings and output head in int8`.
    pub fn describe(self) -> String {
        let tables = self.embeddings.map(|format| format!(", {TABLES} in {}", format.quantisation().describe()));
        self.linear.describe() + &tables.unwrap_or_default()
    }
}

impl From<Quantisation> for BaseQuantisation {
    fn from(linear: Quantisation) -> Self {
        Self { linear, embeddings: None }
    }
}

/// What [`BaseQuantisation::embeddings`] quantises, for people.
pub const TABLES: &str = "embeddings and output head";

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantisation {
    /// The number format.
    pub format: QuantisedFormat,
    /// Whether the scales of 4-bit blocks are stored in 8 bits (double quantisation).
    pub double: bool,
}

impl Quantisation {
    /// Quantises in `format`; the scales of 4-bit blocks are quantised as well unless `double` is false.
    pub fn new(format: QuantisedFormat, double: bool) -> Self {
        Self { format, double: double && format.has_blocks() }
    }

    /// Returns the size of a quantised matrix (out, in) in bytes, scales included.
    pub fn bytes(self, shape: [i64; 2]) -> u64 {
        let numbers = (shape[0] * shape[1]) as u64;
        let blocks = numbers.div_ceil(BLOCK as u64);
        match (self.format, self.double) {
            (QuantisedFormat::Int8, _) => numbers + 4 * shape[0] as u64,
            (QuantisedFormat::Fp8, _) => numbers + 4,
            (_, false) => numbers.div_ceil(2) + 4 * blocks,
            (_, true) => numbers.div_ceil(2) + blocks + 4 * blocks.div_ceil(GROUP as u64),
        }
    }

    /// Returns a description for people, such as `NF4 with 8-bit scales`.
    pub fn describe(self) -> String {
        let name = match self.format {
            QuantisedFormat::Nf4 => "NF4",
            QuantisedFormat::Fp4 => "FP4",
            QuantisedFormat::Int8 => "int8",
            QuantisedFormat::Fp8 => "FP8",
        };
        if self.double { format!("{name} with 8-bit scales") } else { name.into() }
    }
}
