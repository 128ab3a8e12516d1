//! The checks of `ft doctor`: each says what was found, and what to do about it.

use ft::error::{Error, Result};
use ft::libtorch::SERIES;
use ft::machine::{Cpu, CudaDriver, SystemMemory};
use ft::models::dtype::product_rate;
use ft::report::bytes;
use ft::runtime::{CudaPart, Runtime};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Nothing to do.
    Ok,
    /// Training runs, but not as well as it could.
    Warning,
    /// Training cannot run.
    Failed,
}

/// One line of the report: what was found, and what to do about it.
#[derive(Serialize)]
pub struct MachineCheck {
    pub name: String,
    pub status: CheckStatus,
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl MachineCheck {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> MachineCheck {
        MachineCheck { name: name.into(), status: CheckStatus::Ok, found: found.into(), remedy: None }
    }

    /// Builds a check that is not ok, with its remedy.
    fn problem(
        name: impl Into<String>,
        status: CheckStatus,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> MachineCheck {
        MachineCheck { name: name.into(), status, found: found.into(), remedy: Some(remedy.into()) }
    }
}

const GB: u64 = 1_000_000_000;
/// Memory for the smallest useful base model and its training state.
const MEMORY_NEEDED: u64 = 2 * GB;
/// Disk space for a base model of some hundred million parameters, its adapter and two checkpoints.
const DISK_NEEDED: u64 = 2 * GB;

/// Checks the version of libtorch.
pub fn check_libtorch(runtime: &Runtime) -> MachineCheck {
    let here = &runtime.libtorch;
    let found = format!("{} in {}", here.version_text(), here.root.display());
    match here.fits() {
        Some(true) => MachineCheck::ok("libtorch", found),
        Some(false) => MachineCheck::problem(
            "libtorch",
            CheckStatus::Failed,
            found,
            format!("set FT_LIBTORCH to a libtorch {SERIES}"),
        ),
        None => MachineCheck::problem(
            "libtorch",
            CheckStatus::Warning,
            found,
            format!("its folder has neither version.py nor build-version; only {SERIES} is known to work"),
        ),
    }
}

/// Checks the processor's instruction sets.
pub fn check_cpu(cpu: &Cpu) -> MachineCheck {
    let sets = [
        (cpu.amx_bf16, "AMX bf16"),
        (cpu.avx512_bf16, "AVX-512 bf16"),
        (cpu.avx512, "AVX-512"),
        (cpu.avx2, "AVX2"),
        (cpu.arm_bf16, "Arm bf16"),
    ];
    let sets: Vec<&str> = sets.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    let limit =
        cpu.limited_to.map(|level| format!(" (limited to {level} by FT_CPU or a variable of libtorch's libraries)"));
    let sets = if sets.is_empty() { "no AVX2".into() } else { sets.join(", ") };
    let found = format!("{} · {sets}{}", cpu.model, limit.unwrap_or_default());
    if !cpu.avx2 {
        return MachineCheck::problem(
            "cpu",
            CheckStatus::Warning,
            found,
            "training runs, but slowly: libtorch's fast kernels need AVX2",
        );
    }
    MachineCheck::ok("cpu", found)
}

/// Checks that there are not more threads than cores.
pub fn check_threads(cpu: &Cpu) -> MachineCheck {
    let used = tch::get_num_threads().max(1) as usize;
    let quota = cpu.quota.map(|q| format!(", limited to {q:.1} by a control group")).unwrap_or_default();
    let found = format!("{used} in use · {} cores, {} logical{quota}", cpu.cores, cpu.logical);
    if used > cpu.threads() {
        let remedy = format!("more threads than cores wait for each other: set OMP_NUM_THREADS={}", cpu.threads());
        return MachineCheck::problem("threads", CheckStatus::Warning, found, remedy);
    }
    MachineCheck::ok("threads", found)
}

/// Checks a small training computation on the device in float32 and bfloat16. Returns both rates, (f32, bf16), in 10⁹
/// operations per second of a product of two square matrices, and the line of the report.
pub fn check_arithmetic(device: Device, name: &str, native_bf16: bool) -> ((f64, f64), MachineCheck) {
    let name = format!("training on {name}");
    let rate = |kind| matmul_rate(device, kind);
    match (rate(Kind::Float), rate(Kind::BFloat16)) {
        (Ok(f32), Ok(bf16)) => {
            let found = format!("matmul {f32:.0} GFLOP/s in f32, {bf16:.0} in bf16");
            let check = if native_bf16 || bf16 > f32 {
                MachineCheck::ok(name, found)
            } else {
                MachineCheck::problem(
                    name,
                    CheckStatus::Warning,
                    found,
                    "bf16 is not faster than f32 on this device: dtype auto, the default, does not choose it",
                )
            };
            ((f32, bf16), check)
        }
        (Err(e), _) | (_, Err(e)) => {
            let status = if device == Device::Cpu { CheckStatus::Failed } else { CheckStatus::Warning };
            (
                (0.0, 0.0),
                MachineCheck::problem(
                    name,
                    status,
                    e.message(),
                    "libtorch was found but cannot compute: is the 2.11 installation complete?",
                ),
            )
        }
    }
}

/// Computes a product and its gradient, fails if they differ from the exact values, and returns the rate of a large
/// product in 10⁹ operations per second.
fn matmul_rate(device: Device, kind: Kind) -> Result<f64> {
    let x = Tensor::f_ones([4, 8], (kind, device))?;
    let w = Tensor::f_full([8, 2], 0.5, (kind, device))?.f_set_requires_grad(true)?;
    let y = x.f_matmul(&w)?;
    y.f_sum(Kind::Float)?.f_backward()?;
    let off = |t: &Tensor, want: f64| -> Result<f64> {
        Ok(t.f_to_kind(Kind::Float)?.f_sub_scalar(want)?.f_abs()?.f_max()?.f_double_value(&[])?)
    };
    if off(&y.detach(), 4.0)? > 0.0 || off(&w.f_grad()?, 4.0)? > 0.0 {
        return Err(Error::user(format!("a product of ones and halves or its gradient is wrong in {kind:?}")));
    }
    product_rate(device, kind)
}

/// Checks the NVIDIA driver and whether libtorch can use it.
pub fn check_cuda(driver: &Result<Option<CudaDriver>, String>, runtime: &Runtime, usable: bool) -> MachineCheck {
    let built = runtime.libtorch.cuda.as_deref();
    let driver = match driver {
        Err(why) => {
            let remedy = "training runs on the CPU; check the driver with `nvidia-smi`, and reinstall it if that fails";
            return MachineCheck::problem(
                "cuda",
                CheckStatus::Warning,
                format!("the NVIDIA driver does not work: {why}"),
                remedy,
            );
        }
        Ok(None) => return MachineCheck::ok("cuda", "no NVIDIA driver: training runs on the CPU"),
        Ok(Some(driver)) => driver,
    };
    let release = driver.release.as_deref().unwrap_or("of unknown release");
    let found = format!("driver {release}, supports CUDA {}.{}", driver.cuda.0, driver.cuda.1);
    let warn = |found: String, remedy: String| MachineCheck::problem("cuda", CheckStatus::Warning, found, remedy);
    match &runtime.cuda {
        CudaPart::Opened { .. } if usable => {
            MachineCheck::ok("cuda", format!("{found}; libtorch for CUDA {}", built.unwrap_or("?")))
        }
        CudaPart::Opened { .. } if driver.devices.is_empty() => {
            warn(format!("{found}; no device"), "is CUDA_VISIBLE_DEVICES set to hide the devices?".into())
        }
        CudaPart::Opened { .. } => warn(
            format!("{found}; libtorch for CUDA {} cannot use it", built.unwrap_or("?")),
            "update the NVIDIA driver, or set FT_LIBTORCH to a libtorch 2.11 built for the driver's CUDA version"
                .into(),
        ),
        CudaPart::NotShipped => warn(
            format!("{found}; this libtorch is built for the CPU only"),
            "set FT_LIBTORCH to a PyTorch 2.11 with CUDA, e.g. site-packages/torch".into(),
        ),
        CudaPart::Failed(why) => warn(
            format!("{found}; libtorch_cuda.so does not load: {why}"),
            "fetch the CUDA libraries that it needs with `make setup CUDA=1`".into(),
        ),
        CudaPart::NoDriver => warn(found, "the driver appeared after ft started; run `ft doctor` again".into()),
    }
}

/// Checks each CUDA device, and trains on it if CUDA is usable. Returns the rates (f32, bf16) of each device that
/// trained, as [`check_arithmetic`] measures them, and the lines of the report.
pub fn check_devices(
    driver: &Result<Option<CudaDriver>, String>,
    usable: bool,
) -> (Vec<(f64, f64)>, Vec<MachineCheck>) {
    let (mut rates, mut checks) = (Vec::new(), Vec::new());
    let Ok(Some(driver)) = driver else { return (rates, checks) };
    for (i, device) in driver.devices.iter().enumerate() {
        let (major, minor) = device.capability;
        let bf16 = if device.bf16() { "bf16" } else { "no fast bf16" };
        let found = format!("{} · {} · compute capability {major}.{minor} · {bf16}", device.name, bytes(device.memory));
        let name = format!("cuda:{i}");
        checks.push(if device.bf16() {
            MachineCheck::ok(&name, found)
        } else {
            MachineCheck::problem(
                &name,
                CheckStatus::Warning,
                found,
                match device.f16() {
                    true => "dtype auto, the default, computes in f16 on this device, with a scaled loss in training",
                    false => "dtype auto, the default, computes in f32 on this device",
                },
            )
        });
        if usable {
            let (rate, check) = check_arithmetic(Device::Cuda(i), &name, device.bf16());
            rates.push(rate);
            checks.push(check);
        }
    }
    (rates, checks)
}

/// Checks the free memory.
pub fn check_memory(memory: &SystemMemory) -> MachineCheck {
    let limited = if memory.limited { " (limited by a control group)" } else { "" };
    let found = format!("{} free of {}{limited}", bytes(memory.free), bytes(memory.total));
    if memory.free < MEMORY_NEEDED {
        let remedy = format!("free some memory: most models need at least {}", bytes(MEMORY_NEEDED));
        return MachineCheck::problem("memory", CheckStatus::Warning, found, remedy);
    }
    MachineCheck::ok("memory", found)
}

/// Checks the free disk space of the current folder.
pub fn check_disk(free: Option<u64>) -> MachineCheck {
    let here = std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default();
    match free {
        Some(free) if free >= DISK_NEEDED => MachineCheck::ok("disk", format!("{} free in {here}", bytes(free))),
        Some(free) => MachineCheck::problem(
            "disk",
            CheckStatus::Warning,
            format!("{} free in {here}", bytes(free)),
            format!("free some disk space: models and checkpoints need {} or more", bytes(DISK_NEEDED)),
        ),
        None => MachineCheck::problem(
            "disk",
            CheckStatus::Warning,
            format!("{here}: the free space is unknown"),
            "does the folder still exist?",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft::libtorch::Libtorch;
    use ft::machine::CudaDevice;
    use std::time::Duration;

    fn runtime(cuda: CudaPart) -> Runtime {
        let libtorch = Libtorch {
            root: "/opt/torch".into(),
            lib: "/opt/torch/lib".into(),
            version: Some("2.11.0+cu130".into()),
            cuda: Some("13.0".into()),
        };
        Runtime { libtorch, cuda }
    }

    fn machine(capability: (u32, u32)) -> Result<Option<CudaDriver>, String> {
        let device = CudaDevice { name: "GPU".into(), capability, memory: 80 * GB };
        Ok(Some(CudaDriver { release: Some("550.54".into()), cuda: (12, 4), devices: vec![device] }))
    }

    fn opened() -> CudaPart {
        CudaPart::Opened { took: Duration::ZERO }
    }

    #[test]
    fn every_way_to_miss_cuda_has_a_remedy() {
        let driver = machine((9, 0));
        let cases = [
            (opened(), "update the NVIDIA driver"),
            (CudaPart::NotShipped, "FT_LIBTORCH"),
            (CudaPart::Failed("libcublas.so.13: not found".into()), "make setup CUDA=1"),
            (CudaPart::NoDriver, "again"),
        ];
        for (part, remedy) in cases {
            let check = check_cuda(&driver, &runtime(part), false);
            assert!(check.status == CheckStatus::Warning, "{}", check.found);
            assert!(check.remedy.as_deref().is_some_and(|r| r.contains(remedy)), "{:?} lacks {remedy}", check.remedy);
        }
        let broken = check_cuda(&Err("CUDA error 803".into()), &runtime(opened()), false);
        assert!(broken.status == CheckStatus::Warning && broken.found.contains("803"), "{}", broken.found);
    }

    #[test]
    fn a_working_device_is_ok_and_an_old_one_is_told_about_bf16() {
        let check = check_cuda(&machine((9, 0)), &runtime(opened()), true);
        assert!(check.status == CheckStatus::Ok && check.found.contains("550.54"), "{}", check.found);
        let new = &check_devices(&machine((9, 0)), false).1[0];
        assert!(new.status == CheckStatus::Ok && new.found.contains("80.0 GB"), "{}", new.found);
        for (capability, dtype) in [((7, 5), "f16"), ((6, 1), "f32")] {
            let old = &check_devices(&machine(capability), false).1[0];
            assert!(old.status == CheckStatus::Warning && old.remedy.as_deref().is_some_and(|r| r.contains(dtype)));
        }
    }

    #[test]
    fn a_libtorch_of_another_series_fails() {
        let mut other = runtime(CudaPart::NoDriver);
        other.libtorch.version = Some("2.9.1".into());
        assert!(check_libtorch(&other).status == CheckStatus::Failed);
        other.libtorch.version = None;
        assert!(check_libtorch(&other).status == CheckStatus::Warning);
    }

    #[test]
    fn little_memory_or_disk_is_a_warning() {
        let memory = |free| check_memory(&SystemMemory { total: 64 * GB, free, limited: true });
        assert!(memory(GB).status == CheckStatus::Warning && memory(8 * GB).status == CheckStatus::Ok);
        assert!(memory(GB).found.contains("control group"));
        assert!(
            check_disk(Some(GB)).status == CheckStatus::Warning && check_disk(Some(8 * GB)).status == CheckStatus::Ok
        );
    }

    #[test]
    fn both_number_formats_train_on_this_cpu() {
        assert!(matmul_rate(Device::Cpu, Kind::Float).expect("f32") > 0.0);
        assert!(matmul_rate(Device::Cpu, Kind::BFloat16).expect("bf16") > 0.0);
    }
}
