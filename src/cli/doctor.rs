//! `ft doctor`: checks whether this machine can train, on which devices, and what to do if it cannot.

mod checks;

use checks::{
    CheckStatus, MachineCheck, check_arithmetic, check_cpu, check_cuda, check_devices, check_disk, check_libtorch,
    check_memory, check_threads,
};
use clap::Args;
use console::{Alignment, Style, pad_str};
use ft::error::{Error, Result};
use ft::machine::{Cpu, SystemMemory, cuda_driver, free_disk};
use ft::runtime;
use serde_json::json;
use std::path::Path;
use tch::Device;

/// Check whether this machine can train, and on which devices
///
/// Each problem is shown with its remedy. Exit code 1 if training cannot run.
#[derive(Args)]
pub struct DoctorArgs {
    /// Write one JSON object to stdout
    #[arg(long)]
    json: bool,
}

/// Runs `ft doctor`. Fails if training cannot run on this machine.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let runtime = runtime::get();
    let cuda_usable = tch::Cuda::is_available();
    let (cpu, memory, driver) = (Cpu::read(), SystemMemory::read(), cuda_driver());
    let disk = free_disk(Path::new("."));
    let mut checks = vec![check_libtorch(runtime), check_cpu(&cpu), check_threads(&cpu)];
    let (rates, arithmetic) = check_arithmetic(Device::Cpu, "cpu", cpu.bf16().is_some());
    checks.push(arithmetic);
    checks.push(check_cuda(&driver, runtime, cuda_usable));
    let (gpu_rates, devices) = check_devices(&driver, cuda_usable);
    checks.extend(devices);
    checks.push(check_memory(&memory));
    checks.push(check_disk(disk));

    let failed = checks.iter().filter(|c| c.status == CheckStatus::Failed).count();
    if args.json {
        let report = json!({
            "ok": failed == 0,
            "ft": env!("CARGO_PKG_VERSION"),
            "libtorch": {
                "folder": runtime.libtorch.root, "version": runtime.libtorch.version, "cuda": runtime.libtorch.cuda,
            },
            "cpu": cpu,
            "threads": tch::get_num_threads(),
            "cpu_gflops": {"f32": rates.0, "bf16": rates.1},
            "gpu_gflops": gpu_rates.iter().map(|r| json!({"f32": r.0, "bf16": r.1})).collect::<Vec<_>>(),
            "driver": driver.as_ref().ok(),
            "cuda_usable": cuda_usable,
            "memory": memory,
            "disk_free": disk,
            "checks": checks,
        });
        println!("{report:#}");
    } else {
        println!("{}", table(&checks));
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::user(format!("training cannot run on this machine: {n} of {} checks failed", checks.len()))
            .hint("follow the lines marked `failed`, then run `ft doctor` again")),
    }
}

/// Formats the checks as aligned columns; a remedy is on its own line below its check.
fn table(checks: &[MachineCheck]) -> String {
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for check in checks {
        let (word, style) = match check.status {
            CheckStatus::Ok => ("ok", Style::new().green()),
            CheckStatus::Warning => ("warning", Style::new().yellow()),
            CheckStatus::Failed => ("failed", Style::new().red().bold()),
        };
        let word = style.apply_to(pad_str(word, 7, Alignment::Left, None));
        let name = Style::new().bold().apply_to(pad_str(&check.name, width, Alignment::Left, None));
        lines.push(format!("{word}  {name}  {}", check.found));
        if let Some(remedy) = &check.remedy {
            let arrow = Style::new().cyan().apply_to("→");
            lines.push(format!("{:7}  {:width$}  {arrow} {remedy}", "", ""));
        }
    }
    lines.join("\n")
}
