//! Writes a LoRA as a GGUF adapter, which llama.cpp adds to a base's weights while it computes.
//!
//! The format has A and B of each weight and one `alpha` for all: llama.cpp adds alpha / rank times B A. Where an adapter's
//! scale is another one (rsLoRA, patterns), B is multiplied by the ratio.

use super::name::{self, ModelName};
use super::output::{check_out, out_file, publish};
use super::{FORMATS, FileFormat, GgufExportOptions, folder_name, shape};
use crate::adapters::file;
use crate::adapters::merging::{WeightedAdapter, equal_values};
use crate::adapters::update::{LowRankUpdate, WeightUpdate};
use crate::convert::gguf_import::select_rows;
use crate::convert::quantised_base;
use crate::convert::verify::compatibility::{self, Compatibility};
use crate::error::{Error, Result};
use crate::gguf::file::Gguf;
use crate::gguf::layout::Layout;
use crate::gguf::quant::{GgmlType, dequantise};
use crate::gguf::quantise::quantise;
use crate::gguf::shape::{PlacedTensor, Shape};
use crate::gguf::split::SplitLimits;
use crate::gguf::tensor_map::layout_change;
use crate::gguf::writer::{self, MetaValue, TensorEntry};
use crate::models::{self, Config};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Describes a written adapter; printed as JSON by `ft export --json`.
#[derive(Debug, Serialize)]
pub struct GgufAdapterSummary {
    /// The adapter.
    pub adapter: PathBuf,
    /// The base whose names and layout it has.
    pub base: PathBuf,
    /// The file.
    pub out: PathBuf,
    /// The base's architecture.
    pub architecture: String,
    /// The format of A and B.
    pub format: String,
    /// `adapter.lora.alpha`.
    pub alpha: f64,
    /// Number of adapted weights.
    pub weights: usize,
    /// Number of those whose B was multiplied because the adapter's scale is not alpha / rank.
    pub rescaled: usize,
    /// Size of the file.
    pub bytes: u64,
    /// Which programs read the file.
    pub compatibility: Vec<Compatibility>,
}

/// A factor in the order of the file.
struct Factor {
    entry: TensorEntry,
    values: Vec<f32>,
}

/// What an adapter's file gets.
struct PreparedAdapter {
    shape: Shape,
    format: FileFormat,
    alpha: f64,
    factors: Vec<Factor>,
    rescaled: usize,
}

/// Returns what the file of an adapter gets. Fails for what the format cannot hold, with the reason.
fn prepare(options: &GgufExportOptions, part: &WeightedAdapter) -> Result<PreparedAdapter> {
    if let Some(why) = part.file.spec.why_not_merged() {
        return Err(refuse(options.model, part, why));
    }
    if part.file.spec.has_scalar_head() {
        return Err(refuse(options.model, part, "it is a reward model's, and has a head"));
    }
    if !part.file.tables.is_empty() {
        return Err(refuse(options.model, part, "it brings whole tables of tokens"));
    }
    quantised_base::trained_over(options.model, std::slice::from_ref(part))?;
    let config = Config::read(options.model)?;
    let weights = models::weights(options.model, &config)?;
    let (shape, _) = shape::of(&config, &|name| weights.shape(name).is_some())?;
    let updates = low_rank_updates(options.model, part, &weights)?;
    // The scale of the first update is that of nearly all.
    let of = |update: &LowRankUpdate| update.scale * update.a.size()[0] as f64;
    let alpha = updates.values().next().map(|update| of(update)).unwrap_or(1.0);
    if alpha == 0.0 {
        return Err(refuse(options.model, part, "its alpha is 0, which llama.cpp takes for a scale of 1"));
    }
    let mut placed = shape.tensors();
    placed.push(shape.head());
    let format = options.format.unwrap_or(FORMATS[0]);
    if !format.main.is_float() {
        return Err(Error::user(format!(
            "--type {}: an adapter's factors are f32, f16 or bf16",
            format.name.to_lowercase()
        ))
        .hint("leave --type out")
        .hint(format!(
            "or merge the adapter: ft export {} --adapter {} --to gguf",
            options.model.display(),
            part.folder.display()
        )));
    }
    let kind = format.main;
    let (mut factors, mut rescaled, mut written) = (Vec::new(), 0, BTreeSet::new());
    for placed in &placed {
        let of_tensor: Vec<&LowRankUpdate> = placed.hf.iter().filter_map(|name| updates.get(name)).collect();
        if of_tensor.is_empty() {
            continue;
        }
        if of_tensor.len() < placed.hf.len() {
            return Err(refuse(
                options.model,
                part,
                format!(
                    "it adapts {} of the {} experts in {}, which are one tensor in the file",
                    of_tensor.len(),
                    placed.hf.len(),
                    placed.gguf
                ),
            ));
        }
        if let Some(why) = not_updated(placed, &shape) {
            return Err(refuse(options.model, part, format!("it adapts {}, {why}", placed.hf[0])));
        }
        written.extend(placed.hf.iter().cloned());
        let ratios: Vec<f64> = of_tensor.iter().map(|update| of(update) / alpha).collect();
        rescaled += usize::from(ratios.iter().any(|ratio| *ratio != 1.0));
        factors.extend(self::factors(
            options.model,
            part,
            placed,
            &of_tensor,
            &ratios,
            kind,
            &layout_change(placed.layout, &shape),
        )?);
    }
    if let Some(name) = updates.keys().find(|name| !written.contains(*name)) {
        return Err(refuse(
            options.model,
            part,
            format!("it adapts {name}, which has no place in a GGUF file of this architecture"),
        ));
    }
    Ok(PreparedAdapter { shape, format, alpha, factors, rescaled })
}

/// Says why llama.cpp would not add an update to a tensor as it is trained; `None` if it adds it.
fn not_updated(placed: &PlacedTensor, shape: &Shape) -> Option<&'static str> {
    let name = placed.gguf.as_str();
    let of_layer = name.rsplit('.').nth(1).unwrap_or(name);
    match shape.family.arch {
        _ if name == "token_embd.weight" && !shape.has_head() => {
            Some("which llama.cpp also takes for the output head, where the update does not belong")
        }
        _ if matches!(placed.layout, Layout::HeadKeys | Layout::HeadValues) => {
            Some("which the file has by head, keys and values apart")
        }
        _ if name == "position_embd.weight" => Some("and llama.cpp adds no update to positions"),
        // Its graph multiplies these without looking for updates.
        "deepseek2" if ["attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "output"].contains(&of_layer) => {
            Some("and llama.cpp adds no update to it in this architecture")
        }
        _ => None,
    }
}

/// Says for which of these modules of a model llama.cpp would not add an update as it is trained, as far as config.json tells.
pub fn refusals_of_modules(config: &Config, modules: &BTreeSet<&str>) -> Vec<String> {
    let mut found = BTreeSet::new();
    // Which of the tensors that only some models have are there is not known.
    for has_all in [true, false] {
        let Ok((shape, _)) = shape::of(config, &|_| has_all) else { continue };
        if modules.contains("lm_head") && !shape.has_head() {
            found.insert(HEAD_ALONE.to_string());
        }
        let placed = shape.tensors().into_iter().chain([shape.head()]);
        found.extend(placed.filter_map(|placed| {
            let name = placed.hf.first()?;
            let adapted = name.strip_suffix(".weight").is_some_and(|module| modules.contains(module));
            let why = not_updated(&placed, &shape).filter(|_| adapted)?;
            Some(format!("it adapts {}, {why}", name.rsplit('.').nth(1).unwrap_or(name)))
        }));
    }
    found.into_iter().collect()
}

const HEAD_ALONE: &str = "it adapts the output head alone, which shares the embedding's weight";

/// Writes the adapter of `part` on `options.model` as a GGUF adapter. Fails for what the format cannot hold, with the reason.
pub fn export_adapter(options: &GgufExportOptions, part: &WeightedAdapter) -> Result<GgufAdapterSummary> {
    let PreparedAdapter { shape, format, alpha, factors, rescaled } = prepare(options, part)?;
    let kind = format.main;
    let named = ModelName::of(&folder_name(&part.companions), name::size_label(&shape));
    let out = out_file(options.out, &named.file(format.name, true))?;
    check_out(&out, false, options)?;
    let base = folder_name(options.model);
    let metadata: Vec<(String, MetaValue)> = [
        ("general.architecture", shape.family.arch.into()),
        ("general.type", "adapter".into()),
        ("general.name", named.name.as_str().into()),
        ("general.base_model.count", MetaValue::Unsigned(1)),
        ("general.base_model.0.name", base.as_str().into()),
        ("general.file_type", MetaValue::Unsigned(format.number)),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", MetaValue::Float(alpha as f32)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into();
    let entries: Vec<TensorEntry> = factors.iter().map(|factor| factor.entry.clone()).collect();
    let bytes = writer::file_size(&metadata, &entries);
    publish(&out, 1, |drafts| {
        let temp = &drafts[0];
        let mut next = factors.iter();
        writer::write(temp, &metadata, &entries, |_, out| {
            next.next().map_or(Ok(()), |factor| out.put(&quantise(kind, &factor.values)))
        })?;
        read_back(temp, &factors)
    })?;
    Ok(GgufAdapterSummary {
        adapter: part.folder.clone(),
        base: options.model.to_path_buf(),
        out,
        architecture: shape.family.arch.into(),
        format: format.name.into(),
        alpha,
        weights: factors.len() / 2,
        rescaled,
        bytes,
        compatibility: compatibility::of_gguf_adapter(),
    })
}

/// Fails if the adapter of `part` cannot be one in GGUF, with the reason.
pub fn check(base: &Path, part: &WeightedAdapter) -> Result<()> {
    let split = SplitLimits { bytes: None, tensors: None };
    let options = GgufExportOptions {
        model: base,
        adapter: None,
        out: base,
        format: None,
        split,
        imatrix: None,
        force: false,
        modelfile: false,
    };
    prepare(&options, part).map(drop)
}

/// Returns the error that the format cannot hold an adapter, with the command that gives what it computes all the same.
fn refuse(base: &Path, part: &WeightedAdapter, why: impl std::fmt::Display) -> Error {
    let (spec, folder, base) = (&part.file.spec, part.folder.display(), base.display());
    let instead = match (spec.has_scalar_head(), spec.why_not_merged()) {
        (true, _) => format!("use it without merging: ft score --model {base} --adapter {folder}"),
        (_, Some(_)) => format!("use it without merging: ft generate --model {base} --adapter {folder}"),
        _ => format!("merge it into the model instead: ft export {base} --adapter {folder} --to gguf --out FILE.gguf"),
    };
    Error::user(format!("{folder}: {} cannot be a GGUF adapter: {why}", spec.title())).hint(instead)
}

/// Returns the updates of an adapter by the weights that they change. Fails if one is no product of two factors.
fn low_rank_updates(
    model: &Path,
    part: &WeightedAdapter,
    base: &crate::nn::Weights,
) -> Result<BTreeMap<String, LowRankUpdate>> {
    let (spec, tensors) = (&part.file.spec, &part.file.tensors);
    if !spec.shared_tensor_names().is_empty() {
        return Err(refuse(model, part, "all layers share its projections, and the format has factors of each"));
    }
    let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
    let updates = spec.updates_on(base, &modules, tensors, &part.folder.join(file::TENSORS))?;
    for (name, tensor) in tensors.iter().filter(|(name, _)| spec.module_of(name).is_none()) {
        // A copy of a base weight beside an update is no change of its own.
        let of_base = name.strip_suffix("base_layer.weight").and_then(|module| base.get(&format!("{module}weight")));
        if !of_base.is_some_and(|of_base| equal_values(&of_base, tensor)) {
            let what = format!("it has {name}, and the format has nothing but products of two factors");
            return Err(refuse(model, part, what));
        }
    }
    let mut products = BTreeMap::new();
    for (name, update) in updates {
        let Some(LowRankUpdate { a, b, scale, table }) = update.low_rank() else {
            let what =
                format!("its change of {name} is no product of two factors alone, which is all that the format has");
            return Err(refuse(model, part, what));
        };
        let (a, b, scale, table) = (a.shallow_clone(), b.shallow_clone(), *scale, *table);
        let update = LowRankUpdate { a, b, scale, table };
        if base.shape(&name).is_none() && name == "lm_head.weight" {
            return Err(refuse(model, part, HEAD_ALONE));
        }
        match base.shape(&name) {
            Some(shape) if update.fits(shape, base.transposed(&name)) => products.insert(name, update),
            found => {
                return Err(Error::user(format!(
                    "{}: the change of {name} has the shape {}, the base's weight {found:?}",
                    part.folder.display(),
                    update.shape()
                ))
                .hint("was the adapter trained on another base? name it with --base"));
            }
        };
    }
    Ok(products)
}

/// Returns A and B of a weight, those of experts one after the other.
fn factors(
    model: &Path,
    part: &WeightedAdapter,
    placed: &PlacedTensor,
    updates: &[&LowRankUpdate],
    ratios: &[f64],
    kind: GgmlType,
    change: &crate::gguf::tensor_map::LayoutChange,
) -> Result<[Factor; 2]> {
    let ranks: BTreeSet<i64> = updates.iter().map(|update| update.a.size()[0]).collect();
    if ranks.len() > 1 {
        return Err(refuse(model, part, format!("the experts in {} have different ranks", placed.gguf)));
    }
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    let mut shapes = [Vec::new(), Vec::new()];
    for (update, ratio) in updates.iter().zip(ratios) {
        let (a, mut b) = (update.a.to_kind(Kind::Float), update.b.to_kind(Kind::Float) * *ratio);
        if let Some(order) = change.file_order(b.size()[0] as usize) {
            let (rows, width) = b.size2()?;
            b = Tensor::from_slice(&select_rows(&super::source::floats(&b), rows as usize, &order)).view([-1, width]);
        }
        // llama.cpp looks rows of a table's first factor up: it has a row for each token.
        let (a, b) = if placed.gguf == "token_embd.weight" { (b, a.tr()) } else { (a, b) };
        shapes = [&a, &b].map(|t| t.size().iter().map(|n| *n as u64).collect());
        of_a.extend(super::source::floats(&a));
        of_b.extend(super::source::floats(&b));
    }
    let stack = (placed.hf.len() > 1).then_some(placed.hf.len() as u64);
    let [a, b] = shapes.map(|shape: Vec<u64>| stack.into_iter().chain(shape).collect::<Vec<u64>>());
    let factor = |suffix: &str, shape: Vec<u64>, values: Vec<f32>| Factor {
        entry: TensorEntry { name: format!("{}.{suffix}", placed.gguf), shape, kind },
        values,
    };
    if of_a.iter().chain(&of_b).any(|x| !x.is_finite()) {
        return Err(Error::user(format!("{}: the change of {} is not finite", part.folder.display(), placed.hf[0]))
            .hint("the adapter is damaged, or its training diverged: use an earlier checkpoint"));
    }
    let too_large = |x: &&f32| kind == GgmlType::F16 && half::f16::from_f32(**x).is_infinite();
    if let Some(x) = of_a.iter().chain(&of_b).find(too_large) {
        let name = &placed.hf[0];
        return Err(Error::user(format!(
            "the change of {name}: its factors have {x}, which does not fit into float16"
        ))
        .hint("choose another format: --type f32 or bf16"));
    }
    Ok([factor("lora_a", a, of_a), factor("lora_b", b, of_b)])
}

/// Compares the written factors with those in memory.
fn read_back(path: &Path, factors: &[Factor]) -> Result<()> {
    let gguf = Gguf::open(path)?;
    let found: BTreeMap<&str, _> = gguf.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for factor in factors {
        let kind = factor.entry.kind;
        let expected = dequantise(kind, &quantise(kind, &factor.values));
        let same = found.get(factor.entry.name.as_str()).is_some_and(|tensor| {
            let values = dequantise(tensor.kind, gguf.data(tensor));
            values.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()))
        });
        if !same {
            return Err(Error::bug(format!("tensor {} was not read back as it was written", factor.entry.name)));
        }
    }
    Ok(())
}
