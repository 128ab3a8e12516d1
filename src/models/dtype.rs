//! Number formats: what a model computes in, and what its frozen weights are held in.
//!
//! The arithmetic's format is a decision of the machine (`auto`): bfloat16 halves memory and doubles speed where the device
//! multiplies it, and is many times slower than float32 where it does not. Held weights do not decide any number: a frozen
//! weight that lies narrower in its file than the arithmetic is wide is widened as it is multiplied, without rounding, and
//! gives the bits of a wide copy.

use super::Config;
use crate::error::{Error, Result};
use crate::machine::{self, Cpu};
use crate::report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// A number format of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// bfloat16 where the device multiplies it (CUDA from compute capability 8.0, AVX-512 BF16, AMX, Arm bf16), else float32;
    /// float32 for a model that is stored in it.
    #[default]
    Auto,
    /// bfloat16: half the memory; adapters and optimiser state stay in float32.
    Bf16,
    /// float32: for reference numbers, and for processors without products of bfloat16.
    F32,
}

/// How frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// On the CPU, what takes less than half of the free memory is read into memory, which is faster; what takes more is
    /// mapped. Where the file is in bfloat16 and the arithmetic in float32: in bfloat16 to answer; to train, in float32 if
    /// that takes less than half of the free memory (a few per cent faster).
    #[default]
    Auto,
    /// As they lie in the checkpoint, mapped on the CPU, and brought into the arithmetic's format as they are multiplied.
    File,
    /// In memory, in the arithmetic's format.
    Copy,
}

impl Storage {
    /// True where a weight of format `own` is held as it is for arithmetic in `computed`.
    pub fn keeps(self, own: Kind, computed: Kind, device: Device) -> bool {
        match self {
            // What the kernels of decoding widen as they read it.
            Self::Auto => own == Kind::BFloat16 && computed == Kind::Float && device == Device::Cpu,
            Self::File => true,
            Self::Copy => own == computed,
        }
    }

    /// True where a checkpoint of so many `bytes` is read into memory on the CPU.
    pub fn reads(self, bytes: u64) -> bool {
        match self {
            Self::Auto => 2 * bytes < machine::Memory::read().free,
            Self::File => false,
            Self::Copy => true,
        }
    }
}

/// A format that was chosen, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    pub dtype: Dtype,
    pub why: &'static str,
}

impl Dtype {
    /// As libtorch calls it.
    ///
    /// # Panics
    /// On `Auto`: [`Dtype::choose`] comes first.
    pub fn kind(self) -> Kind {
        match self {
            Self::Auto => panic!("a number format is used before it was chosen"),
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
        }
    }

    /// The word for it in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// The format to compute in on `device` for the model in `folder`; without one, for a model that has no weights yet.
    pub fn choose(self, device: Device, folder: Option<&Path>) -> Result<Chosen> {
        if self != Self::Auto {
            return Ok(Chosen { dtype: self, why: "asked for" });
        }
        if folder.map(stored).transpose()? == Some(Kind::Float) {
            return Ok(Chosen { dtype: Self::F32, why: "the model is stored in it" });
        }
        Ok(match bf16_products(device) {
            Some(why) => Chosen { dtype: Self::Bf16, why },
            None => Chosen { dtype: Self::F32, why: "this device does not multiply bfloat16" },
        })
    }
}

/// The name of a format in messages.
pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        Kind::Float => "float32",
        Kind::Double => "float64",
        _ => "another format",
    }
}

/// What multiplies bfloat16 on a device; `None` where nothing does and libtorch imitates it.
pub fn bf16_products(device: Device) -> Option<&'static str> {
    match device {
        Device::Cuda(i) => {
            let driver = machine::driver().ok().flatten()?;
            driver.devices.get(i)?.bf16().then_some("multiplied by the GPU")
        }
        _ => Cpu::read().bf16().map(|set| match set {
            "AMX" => "multiplied by AMX",
            "AVX-512" => "multiplied by AVX-512",
            _ => "multiplied by the processor",
        }),
    }
}

/// The number format that most of a model folder's weights have on disk, without loading them.
pub fn stored(folder: &Path) -> Result<Kind> {
    Ok(on_disk(folder)?.0)
}

/// The same, and how many numbers there are of all formats.
pub fn on_disk(folder: &Path) -> Result<(Kind, u64)> {
    let weights = super::weights(folder, &Config::read(folder)?)?;
    let mut numbers: Vec<(Kind, u64)> = Vec::new();
    for name in weights.names() {
        let (Some(kind), Some(shape)) = (weights.kind(name), weights.shape(name)) else { continue };
        let count = shape.iter().product::<i64>() as u64;
        match numbers.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, sum)) => *sum += count,
            None => numbers.push((kind, count)),
        }
    }
    let all = numbers.iter().map(|(_, n)| n).sum();
    let most = numbers.into_iter().max_by_key(|(_, n)| *n).ok_or_else(|| {
        Error::user(format!("{}: no weights of the model are there", folder.display()))
            .hint("the download is incomplete: fetch the model again")
    })?;
    Ok((most.0, all))
}

/// Where a model computes in bfloat16 on a device that does not multiply it, says how much slower it is than float32, as
/// measured now.
pub fn warn_of_slow_products(dtype: Dtype, device: Device) -> Result<()> {
    if dtype != Dtype::Bf16 || bf16_products(device).is_some() {
        return Ok(());
    }
    let (f32, bf16) = (product_rate(device, Kind::Float)?, product_rate(device, Kind::BFloat16)?);
    if bf16 < f32 {
        report::warn(format!(
            "products in bf16 are {:.0} times slower than in f32 on this device ({bf16:.0} and {f32:.0} GFLOP/s): \
             leave dtype out, or set f32",
            f32 / bf16
        ));
    }
    Ok(())
}

/// Measures the rate of products of two square matrices, in 10⁹ operations a second.
pub fn product_rate(device: Device, kind: Kind) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let n: i64 = if device == Device::Cpu { 512 } else { 4096 };
    let a = Tensor::f_ones([n, n], (kind, device))?;
    a.f_matmul(&a)?.f_sum(Kind::Float)?.f_double_value(&[])?; // warms caches and waits for the device
    let began = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || began.elapsed().as_millis() < 100 {
        let mut c = a.f_matmul(&a)?;
        for _ in 0..3 {
            c = a.f_matmul(&a)?;
        }
        c.f_get(0)?.f_get(0)?.f_double_value(&[])?; // waits for the device
        rounds += 4;
    }
    Ok(2.0 * (n as f64).powi(3) * f64::from(rounds) / began.elapsed().as_secs_f64() / 1e9)
}
