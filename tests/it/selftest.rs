//! Tests `ft selftest`: intact models pass every check; a damaged one fails, and the error names the damaged tensor.

use crate::support::*;
use ft::models::Config;
use ft::selftest::compare::CheckVerdict;
use ft::selftest::input::SelftestInput;
use ft::selftest::run;
use rand::RngExt;
use std::path::PathBuf;
use tch::Kind;

fn subject(model: PathBuf, kind: Kind) -> SelftestInput {
    let config: serde_json::Value = ft::fsutil::read_json(&model.join("config.json")).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as u32;
    let mut chance = ft::rng::stream(0, "tests: selftest", 0);
    let row = |n: &usize| (0..*n).map(|_| chance.random_range(0..vocabulary)).collect();
    let rows = [23, 5, 17, 2, 31, 11].iter().map(row).collect();
    SelftestInput { model, adapter: None, device: device(), kind, rows }
}

#[test]
fn intact_models_pass_every_check() {
    alone("selftest::intact_models_pass_every_check", || {
        tch::set_num_threads(1);
        let mut folders: Vec<PathBuf> = std::fs::read_dir(fixture("")).unwrap().map(|e| e.unwrap().path()).collect();
        folders.retain(|f| f.join("config.json").exists() && f.join("model.safetensors").exists());
        assert!(folders.len() > 2);
        for folder in folders {
            for kind in [Kind::Float, Kind::BFloat16] {
                let mut told = 0;
                let lines = run(&subject(folder.clone(), kind), &mut |_| told += 1).unwrap();
                // In few bits, tokens may go to other experts: there only float32 is compared.
                let experts = Config::read(&folder).unwrap().experts.is_some();
                let skipped = lines.iter().filter(|line| line.verdict == CheckVerdict::Skipped).count();
                // With our own kernels, kept inputs are compared as well.
                let kernels = usize::from(device().is_cuda());
                let left_out = if experts && kind != Kind::Float { 6 + kernels } else { 0 };
                assert_eq!(skipped, left_out, "{}", folder.display());
                for line in lines.iter().filter(|line| line.verdict != CheckVerdict::Skipped) {
                    println!("{} {kind:?}: {line:?}", folder.display());
                    assert_eq!(line.verdict, CheckVerdict::Passed, "{} {kind:?}: {line:?}", folder.display());
                    assert!(line.difference.is_some() && !line.reason.is_empty(), "{line:?}");
                }
                let expected = kernels + if kind == Kind::Float { 11 } else { 15 + 2 * usize::from(experts) };
                assert_eq!((lines.len(), told), (expected, expected));
            }
        }
    });
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let folder = with_weights("tiny-llama", "tiny-llama");
    let mut all = tensors("tiny-llama/model.safetensors");
    let name = "model.layers.1.mlp.up_proj.weight";
    let broken = all[name].copy();
    let _ = broken.get(3).get(5).fill_(f64::INFINITY);
    all.insert(name.into(), broken);
    save_tensors(&folder.path().join("model.safetensors"), &all);
    let e = run(&subject(folder.path().into(), Kind::Float), &mut |_| ()).unwrap_err();
    assert!(e.message().contains(&format!("`{name}` has NaN or infinite values")) && e.exit_code() == 1, "{e}");
}
