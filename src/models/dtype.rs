//! Chooses two number formats: the one that a model computes in ([`Dtype`]), and the one that its frozen weights are
//! stored in ([`Storage`]).
//!
//! By default (`auto`) the machine decides what to compute in: bfloat16 halves memory and doubles speed if the device
//! can multiply it, and is many times slower than float32 if it cannot. GPUs from before bfloat16 multiply float16,
//! whose range is small: training then multiplies the loss by a factor that adapts (`train::optim`). The format of
//! stored weights changes no result: a bfloat16 weight in a float32 computation is converted when it is multiplied,
//! which does not round and gives the same bits as a float32 copy.

use super::checkpoint;
use super::family::Config;
use crate::error::{Error, Result};
use crate::machine::{self, Cpu};
use crate::native;
use crate::nn::{BaseQuantisation, Weights};
use crate::report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// The number format that a model computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// bfloat16 if the device multiplies it (CUDA from compute capability 8.0, AVX-512 BF16, AMX, Arm bf16), float16 on
    /// CUDA with 7.0 to 7.5, otherwise float32; always float32 for a model that is stored in float32.
    #[default]
    Auto,
    /// bfloat16: half the memory; adapters and optimiser state stay in float32.
    Bf16,
    /// float16, on CUDA only: for GPUs that do not multiply bfloat16. Training multiplies the loss by a factor that
    /// adapts (`loss_scale` in metrics.jsonl) and skips steps in which it was too large. A model whose activations
    /// exceed 65,504 cannot be computed in it.
    F16,
    /// float32: for reference results, and for processors that do not multiply bfloat16.
    F32,
}

/// How frozen weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// On the CPU, weights that take less than half of the free memory are read into memory, which is faster; larger
    /// ones are mapped. If the file is in bfloat16 and the model computes in float32, they stay in bfloat16 for
    /// inference; for training they become float32 if that takes less than half of the free memory (a few per cent
    /// faster).
    #[default]
    Auto,
    /// In the checkpoint's format, mapped on the CPU; converted to the format that the model computes in when they are
    /// multiplied.
    File,
    /// In memory, in the format that the model computes in.
    Copy,
    /// As `file`, and matrices that are stored quantised without their numbers: for a model that is never run.
    #[serde(skip)]
    Outline,
    /// Linear layers in 4 or 8 bits, and perhaps tables of tokens and the output head, which changes results; all other
    /// weights as with `auto`. Recipes say so with `model.quantize` and `model.quantize_embeddings`.
    #[serde(skip)]
    Quantised(BaseQuantisation),
}

impl Storage {
    /// Returns how the base is quantised when it is loaded; `None` if it is not.
    pub fn quantisation(self) -> Option<BaseQuantisation> {
        match self {
            Self::Quantised(format) => Some(format),
            Self::Auto | Self::File | Self::Copy | Self::Outline => None,
        }
    }

    /// Returns true if a frozen weight of dtype `own` is kept in it while the model computes in `computed`.
    pub fn keeps_kind(self, own: Kind, computed: Kind, device: Device) -> bool {
        match self {
            // The kernels of decoding convert exactly this combination as they read it.
            Self::Auto | Self::Quantised(_) => {
                own == Kind::BFloat16 && computed == Kind::Float && device == Device::Cpu
            }
            Self::File | Self::Outline => true,
            Self::Copy => own == computed,
        }
    }

    /// Returns true if a checkpoint of `bytes` is read into memory on the CPU instead of being mapped.
    pub fn reads_into_memory(self, bytes: u64) -> bool {
        match self {
            Self::Auto | Self::Quantised(_) => 2 * bytes < machine::SystemMemory::read().free,
            Self::File | Self::Outline => false,
            Self::Copy => true,
        }
    }
}

/// The number format to compute in, and the reason for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChosenDtype {
    /// The format; never `Auto`.
    pub dtype: Dtype,
    /// The reason, for messages.
    pub why: &'static str,
}

impl Dtype {
    /// Returns libtorch's name of the format.
    ///
    /// # Panics
    /// On `Auto`: call [`Dtype::choose`] first.
    pub fn kind(self) -> Kind {
        match self {
            Self::Auto => panic!("a number format is used before it was chosen"),
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
            Self::F32 => Kind::Float,
        }
    }

    /// Returns the format's name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Returns the format to compute in on `device`: the one that was set or, for `Auto`, the best one for the model
    /// in `folder` (`None`: a model that has no weights yet). Fails if the folder's weights cannot be opened, and for
    /// float16 on the CPU, whose kernels do not have it.
    pub fn choose(self, device: Device, folder: Option<&Path>) -> Result<ChosenDtype> {
        if self == Self::F16 && !device.is_cuda() {
            return Err(Error::user("dtype f16 needs a CUDA device: on the CPU, ft computes in float32 or bfloat16")
                .hint("leave dtype out, or set f32; ft doctor shows which devices there are"));
        }
        if self != Self::Auto {
            return Ok(ChosenDtype { dtype: self, why: "asked for" });
        }
        // The norms beside quantised matrices are in float32 and say nothing about the model.
        let opened = folder.map(|folder| checkpoint::weights(folder, &Config::read(folder)?)).transpose()?;
        let plain = opened.filter(|weights| !weights.has_quantised());
        if plain.map(|weights| count_by_kind(&weights)).transpose()?.is_some_and(|(kind, _)| kind == Kind::Float) {
            return Ok(ChosenDtype { dtype: Self::F32, why: "the model is stored in float32" });
        }
        Ok(match bf16_multiplier(device) {
            Some(why) => ChosenDtype { dtype: Self::Bf16, why },
            None if multiplies_f16(device) => {
                ChosenDtype { dtype: Self::F16, why: "multiplied by the GPU, which does not multiply bfloat16" }
            }
            None => ChosenDtype { dtype: Self::F32, why: "this device does not multiply bfloat16" },
        })
    }
}

/// Returns the name of a number format for messages.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        Kind::Float => "float32",
        Kind::Double => "float64",
        _ => "another format",
    }
}

/// Says which part of a device multiplies bfloat16, for messages. `None` if nothing does and libtorch emulates it.
pub fn bf16_multiplier(device: Device) -> Option<&'static str> {
    match device {
        Device::Cuda(i) => {
            let driver = machine::cuda_driver().ok().flatten()?;
            driver.devices.get(i)?.bf16().then_some("multiplied by the GPU")
        }
        _ => Cpu::read().bf16().map(|set| match set {
            "AMX" => "multiplied by AMX",
            "AVX-512" => "multiplied by AVX-512",
            _ => "multiplied by the processor",
        }),
    }
}

/// Returns true for a GPU that multiplies float16 faster than float32.
fn multiplies_f16(device: Device) -> bool {
    let Device::Cuda(i) = device else { return false };
    machine::cuda_driver().ok().flatten().is_some_and(|driver| driver.devices.get(i).is_some_and(|d| d.f16()))
}

/// Returns the number format that most of a model's weights have on disk, those that are quantised left out, without
/// loading them.
pub fn stored_kind(folder: &Path) -> Result<Kind> {
    Ok(stored_kind_and_count(folder)?.0)
}

/// Returns the same as [`stored_kind`], and the number of parameters in all formats.
pub fn stored_kind_and_count(folder: &Path) -> Result<(Kind, u64)> {
    count_by_kind(&checkpoint::weights(folder, &Config::read(folder)?)?)
}

fn count_by_kind(weights: &Weights) -> Result<(Kind, u64)> {
    let mut numbers: Vec<(Kind, u64)> = Vec::new();
    for name in weights.names() {
        let Some(kind) = weights.kind(name) else { continue };
        let count = weights.count(name);
        match numbers.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, sum)) => *sum += count,
            None => numbers.push((kind, count)),
        }
    }
    let all = weights.names().map(|name| weights.count(name)).sum();
    let most = numbers.into_iter().max_by_key(|(_, n)| *n).ok_or_else(|| {
        Error::user(format!("{}: no weights of the model found", weights.origin().display()))
            .hint("the download is incomplete: fetch the model again")
    })?;
    Ok((most.0, all))
}

/// Warns if a model computes in bfloat16 on a device that does not multiply it; measures how much slower than float32
/// it is.
pub fn warn_of_slow_products(dtype: Dtype, device: Device) -> Result<()> {
    if dtype != Dtype::Bf16 || bf16_multiplier(device).is_some() {
        return Ok(());
    }
    let (f32, bf16) = (product_rate(device, Kind::Float)?, product_rate(device, Kind::BFloat16)?);
    native::reset_peak(device)?; // the matrices were no part of the run whose memory is reported
    if bf16 < f32 {
        report::warn(format!(
            "products in bf16 are {:.0} times slower than in f32 on this device ({bf16:.0} and {f32:.0} GFLOP/s): \
             leave dtype out, or set f32",
            f32 / bf16
        ));
    }
    Ok(())
}

/// The time that [`product_rate`] measures for, and the most that it takes to find a size of matrix to measure with.
const MEASURED: Duration = Duration::from_millis(100);

/// Measures how fast a device multiplies two square matrices, in GFLOP/s (10⁹ operations per second). A GPU is fast only
/// with large matrices, and what calls itself one may be slow: on it the size is doubled while a product is quick. The
/// matrices hold numbers like those of a model, because GPUs multiply zeros or ones up to a tenth faster.
pub fn product_rate(device: Device, kind: Kind) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let (mut n, largest): (i64, i64) = if device == Device::Cpu { (512, 512) } else { (256, 8192) };
    let mut a = varied_numbers(n, kind, device)?;
    multiply(&a, 1)?; // loads the kernel and warms caches
    // A product of the doubled size takes eight times as long.
    while n < largest && 8 * multiply(&a, 1)? <= MEASURED {
        n *= 2;
        a = varied_numbers(n, kind, device)?;
        multiply(&a, 1)?;
    }
    let (mut took, mut products) = (Duration::ZERO, 0);
    while products == 0 || took < MEASURED {
        took += multiply(&a, 4)?;
        products += 4;
    }
    Ok(2.0 * (n as f64).powi(3) * f64::from(products) / took.as_secs_f64() / 1e9)
}

/// Multiplies a matrix with itself `times` times and waits for the device. Returns the time that it took.
fn multiply(a: &Tensor, times: usize) -> Result<Duration> {
    let began = Instant::now();
    let mut c = a.f_matmul(a)?;
    for _ in 1..times {
        c = a.f_matmul(a)?;
    }
    c.f_get(0)?.f_get(0)?.f_double_value(&[])?;
    Ok(began.elapsed())
}

/// Makes an (n, n) matrix of numbers spread over (-0.5, 0.5) without the random generator, whose state a caller may
/// need: fractions of multiples of two irrational numbers.
fn varied_numbers(n: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let fractions =
        |by: f64| -> Result<Tensor> { Ok(Tensor::f_arange(n, (Kind::Float, device))?.f_mul_scalar(by)?.f_frac()?) };
    let sums = fractions(0.618_033_988)?.f_unsqueeze(1)?.f_add(&fractions(0.754_877_666)?)?;
    Ok(sums.f_frac()?.f_sub_scalar(0.5)?.f_to_kind(kind)?)
}
