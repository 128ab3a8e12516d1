//! `ft adapter resize`: a LoRA of another rank with nearly the same changes.

use super::info::{self, AdapterInfo};
use crate::adapters::merging::WeightedAdapter;
use crate::adapters::update::LowRankUpdate;
use crate::adapters::{AdapterSpec, file, lora};
use crate::convert::folder::companions::{TOKENIZER_FILES, copy_companion_files, write_text};
use crate::convert::verify::report::{ExportVerdict, REPORT, WeightFile, weight_file};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::merging::{Delta, Truncation, on_one_thread, svd};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// What resizing an adapter changed; the contents of export_report.json.
#[derive(Debug, Clone, Serialize)]
pub struct ResizeReport {
    /// Always `passed`: an adapter that differs from what was to be written is not moved into place.
    pub verdict: ExportVerdict,
    /// Always `adapter`.
    pub export: &'static str,
    /// The folder of the adapter before.
    pub resized_from: String,
    /// Share of the energy of all changes together that is left.
    pub energy_kept: f64,
    /// Numbers in the tensors of the adapter before and after.
    pub parameters: [u64; 2],
    /// Every module with its rank before and after and the share of its energy that is left.
    pub modules: Vec<ResizedModule>,
    /// The new adapter.
    pub adapter: AdapterInfo,
    /// Number of tensors that were read back and compared bit for bit with what was to be written.
    pub tensors: usize,
    /// Size and SHA-256 of the weight file, by name.
    pub files: BTreeMap<String, WeightFile>,
    /// The version of ft that wrote the directory.
    pub ft_version: &'static str,
}

/// A module of a resized adapter.
#[derive(Debug, Clone, Serialize)]
pub struct ResizedModule {
    /// Its name.
    pub name: String,
    /// Rank before and after.
    pub rank: [i64; 2],
    /// Share of the energy that is left.
    pub energy_kept: f64,
}

/// Writes the LoRA in `folder` with other ranks to `out`: the largest singular values of each change, as the scale 1. Modules
/// saved in full are kept. The files are read back and compared before they are moved into place, with the report in
/// export_report.json. Fails for adapters whose changes are no products of two factors.
pub fn resize(folder: &Path, to: Truncation, out: &Path) -> Result<ResizeReport> {
    let _no_grad = tch::no_grad_guard();
    let old = WeightedAdapter::read(folder, 1.0)?.file;
    let refuse = |what: &str| {
        Error::user(format!("{}: {what}, so a resized LoRA would change other weights", folder.display())).hint(
            "with its base, every kind can be written as a LoRA: ft merge BASE DIR --as adapter --rank N --out OUT",
        )
    };
    let spec = match old.spec.as_lora() {
        None => return Err(refuse(&format!("{} is no LoRA", old.spec.title()))),
        Some(spec) if spec.dora => return Err(refuse("DoRA scales the whole weight")),
        Some(spec) if spec.bias => return Err(refuse("it has a bias behind B")),
        Some(spec) => spec,
    };
    let modules: BTreeSet<&str> = old.tensors.keys().filter_map(|name| old.spec.module_of(name)).collect();
    let updates = old.spec.updates(&modules, &old.tensors, &folder.join(file::TENSORS))?;
    let mut tensors: BTreeMap<String, Tensor> = old
        .tensors
        .iter()
        .filter(|(name, _)| old.spec.module_of(name).is_none())
        .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
        .collect();
    let (mut resized, mut kept, mut whole) = (Vec::new(), 0.0, 0.0);
    for (name, update) in &updates {
        let Some(LowRankUpdate { a, b, scale, table }) = update.low_rank() else { continue };
        let delta = Delta::Factors { a: a.to_kind(Kind::Float) * *scale, b: b.to_kind(Kind::Float) };
        if !delta.is_finite() {
            return Err(Error::user(format!(
                "{}: the change of `{name}` has NaN or infinite values",
                folder.display()
            ))
            .hint("the adapter is damaged, or its training diverged: use an earlier checkpoint"));
        }
        let (reduced, square) = on_one_thread(|| (svd::truncate(&delta, to), delta.dot(&delta)));
        kept += reduced.energy * square;
        whole += square;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let rank = [a.size()[0], reduced.a.size()[0]];
        resized.push(ResizedModule { name: module.to_string(), rank, energy_kept: reduced.energy });
        let factors = LowRankUpdate { a: reduced.a, b: reduced.b, scale: 1.0, table: *table };
        tensors.extend(lora::factors(module, factors));
    }
    let ranks = resized.iter().map(|m| (m.name.clone(), m.rank[1])).collect();
    let spec = AdapterSpec::Lora(lora::with_ranks(spec, &ranks));
    let count = |tensors: &BTreeMap<String, Tensor>| tensors.values().map(|t| t.numel() as u64).sum();
    let parameters = [count(&old.tensors), count(&tensors)];
    let base = old.base.clone().unwrap_or_default();
    let mut made = None;
    fsutil::replace_dir(out, |temp| {
        file::write(temp, &spec, &base, tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        copy_companion_files(folder, temp, TOKENIZER_FILES)?;
        let about = format!(
            "A LoRA of another rank, made with ft {} from `{}`; it keeps {:.2} % of the energy of the changes.\n",
            env!("CARGO_PKG_VERSION"),
            folder.file_name().unwrap_or_default().to_string_lossy(),
            100.0 * if whole > 0.0 { kept / whole } else { 1.0 }
        );
        write_text(
            &temp.join("README.md"),
            &format!("---\nlibrary_name: peft\nbase_model: {}\n---\n\n{about}", serde_json::Value::from(base.clone())),
        )?;
        check(temp, &tensors)?;
        let adapter = AdapterInfo { folder: out.display().to_string(), ..info::info(temp, None)? };
        let report = ResizeReport {
            verdict: ExportVerdict::Passed,
            export: "adapter",
            resized_from: folder.display().to_string(),
            energy_kept: if whole > 0.0 { kept / whole } else { 1.0 },
            parameters,
            modules: resized,
            adapter,
            tensors: tensors.len(),
            files: BTreeMap::from([weight_file(&temp.join(file::TENSORS))?]),
            ft_version: env!("CARGO_PKG_VERSION"),
        };
        fsutil::write_json(&temp.join(REPORT), &report)?;
        made = Some(report);
        Ok(())
    })?;
    made.ok_or_else(|| Error::bug("a folder was written without a report"))
}

/// Fails if the adapter in `folder` does not contain exactly these tensors, bit for bit, or if its settings do not fit them.
fn check(folder: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let read = WeightedAdapter::read(folder, 1.0)?.file;
    let modules: BTreeSet<&str> = read.tensors.keys().filter_map(|name| read.spec.module_of(name)).collect();
    read.spec.updates(&modules, &read.tensors, &folder.join(file::TENSORS))?;
    let same = |(name, tensor): (&String, &Tensor)| read.tensors.get(name).is_some_and(|t| t.equal(tensor));
    match read.tensors.len() == tensors.len() && tensors.iter().all(same) {
        true => Ok(()),
        false => Err(Error::bug(format!("{}: the written adapter differs from the one in memory", folder.display()))),
    }
}
