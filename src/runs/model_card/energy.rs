//! Estimates the energy that a run used, since nothing measured it.
//!
//! Follows "Green Algorithms" (Lannelongue, Grealey and Inouye 2021, Advanced Science 8(12), equations 1 and 2): time times the
//! power of processors at full use plus that of memory, without the share of a data centre's cooling.

use crate::runs::facts::Environment;

/// Watts of a processor's core, where its own value is not known (the default of Green Algorithms).
const WATTS_PER_CORE: f64 = 12.0;
/// Watts of a GB of memory (Green Algorithms, section 2).
const WATTS_PER_GB: f64 = 0.3725;

/// Names of GPUs, as their driver gives them, with the largest power in watts that their data sheets state. The first whose words all
/// occur in a name counts.
const GPUS: [(&str, f64); 28] = [
    ("H200 NVL", 600.0),
    ("H200", 700.0),
    ("H100 PCIe", 350.0),
    ("H100 NVL", 400.0),
    ("H100", 700.0),
    ("B200", 1000.0),
    ("A100 PCIe", 300.0),
    ("A100", 400.0),
    ("L40S", 350.0),
    ("L40", 300.0),
    ("L4", 72.0),
    ("A40", 300.0),
    ("A10G", 150.0),
    ("A10", 150.0),
    ("T4", 70.0),
    ("V100 PCIE", 250.0),
    ("V100", 300.0),
    ("RTX 6000 Ada", 300.0),
    ("RTX A6000", 300.0),
    ("RTX 5090", 575.0),
    ("RTX 4090", 450.0),
    ("RTX 4080", 320.0),
    ("RTX 3090 Ti", 450.0),
    ("RTX 3090", 350.0),
    ("RTX 3080", 320.0),
    ("RTX 3070", 220.0),
    ("RTX 3060", 170.0),
    ("RTX 2080 Ti", 250.0),
];

/// An estimate with what it rests on.
pub struct EnergyEstimate {
    /// Energy in kilowatt hours.
    pub kwh: f64,
    /// The assumed power, in words.
    pub basis: String,
}

/// Estimates the energy of `seconds` of work; `None` if the power of the GPU is not known.
pub fn estimate(environment: &Environment, seconds: f64) -> Option<EnergyEstimate> {
    let gpu = match environment.device.starts_with("cuda") {
        true => Some(gpu_watts(&environment.device_name)?),
        false => None,
    };
    // On a GPU one core feeds it.
    let cores = if gpu.is_some() { 1 } else { environment.threads };
    let gb = environment.memory as f64 / 1e9;
    let watts = gpu.unwrap_or(0.0) + WATTS_PER_CORE * cores as f64 + WATTS_PER_GB * gb;
    let card = gpu.map_or(String::new(), |watts| format!("the GPU at {watts:.0} W, "));
    let cores = if cores == 1 { "one core".into() } else { format!("{cores} cores") };
    let basis =
        format!("{card}{cores} at {WATTS_PER_CORE:.0} W each and {gb:.0} GB of memory at {WATTS_PER_GB} W per GB");
    Some(EnergyEstimate { kwh: watts * seconds / 3.6e6, basis })
}

fn gpu_watts(name: &str) -> Option<f64> {
    let words: Vec<String> = name.split([' ', '-']).map(str::to_lowercase).collect();
    // The form factor is part of a word in some names: `A100-PCIE-40GB`, `A100-SXM4-80GB`.
    let has = |word: &str| words.contains(&word.to_lowercase());
    GPUS.iter().find(|(known, _)| known.split(' ').all(has)).map(|(_, watts)| *watts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_known_by_their_drivers_names() {
        for (name, watts) in [
            ("NVIDIA H100 80GB HBM3", Some(700.0)),
            ("NVIDIA H100 PCIe", Some(350.0)),
            ("NVIDIA A100-SXM4-80GB", Some(400.0)),
            ("NVIDIA A100-PCIE-40GB", Some(300.0)),
            ("NVIDIA GeForce RTX 3090", Some(350.0)),
            ("NVIDIA GeForce RTX 3090 Ti", Some(450.0)),
            ("Tesla T4", Some(70.0)),
            ("NVIDIA L40S", Some(350.0)),
            ("Fake GPU", None),
        ] {
            assert_eq!(gpu_watts(name), watts, "{name}");
        }
    }

    #[test]
    fn an_hour_on_two_cores() {
        let mut environment = crate::runs::model_card::example::environment();
        (environment.threads, environment.memory) = (2, 16_000_000_000);
        let found = estimate(&environment, 3600.0).unwrap();
        assert!((found.kwh - (24.0 + 16.0 * 0.3725) / 1000.0).abs() < 1e-12, "{}", found.kwh);
        (environment.device, environment.device_name) = ("cuda:0".into(), "Tesla T4".into());
        assert!((estimate(&environment, 3600.0).unwrap().kwh - (70.0 + 12.0 + 5.96) / 1000.0).abs() < 1e-12);
        environment.device_name = "unknown GPU".into();
        assert!(estimate(&environment, 3600.0).is_none());
    }
}
