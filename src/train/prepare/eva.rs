//! Finds the initial directions of EVA: runs the base over the first training rows and records the inputs of the layers that
//! are adapted. With `eva_rho` it also distributes the ranks by them.

use super::Prepared;
use crate::adapters::AdapterSpec;
use crate::adapters::lora::{self, InputRecorder, LoraInit, LoraSpec, PrincipalInputs};
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::methods::parts::TRAINED_ADAPTER;
use crate::models::{Heads, LoadOptions, Model, expert_number};
use crate::nn::{AdapterPlan, LayerKind, Tokens};
use crate::recipe::plan::Plan;
use crate::report;
use std::collections::BTreeMap;
use tch::Tensor;

/// Training rows that are looked at.
const ROWS: usize = 128;
/// Tokens that are looked at in each pass.
const TOKENS: usize = 16_384;
/// Passes over the rows. Each multiplies the directions by the covariance of the inputs once.
const PASSES: usize = 4;
const A: &str = ".lora_A.weight";

/// Returns the initial A (R, in) of each module that the run adapts, by the name of the parameter; nothing if the run does
/// not begin with EVA. Fails for layers whose inputs are not seen.
pub fn initial_factors(prepared: &Prepared) -> Result<BTreeMap<String, Tensor>> {
    if eva_settings(prepared).is_none() {
        return Ok(BTreeMap::new());
    }
    let ranks = module_ranks(prepared)?;
    let found = principal_inputs(prepared, ranks.clone())?.into_iter().map(|(module, found)| {
        match found.directions.size()[0] < ranks[&module] {
            true => Err(too_few(&module)),
            false => Ok((format!("{module}{A}"), found.directions)),
        }
    });
    found.collect()
}

/// Returns the run's settings with the ranks that EVA gives to each module (`eva_rho`); unchanged settings if it does not
/// redistribute them.
pub fn distribute_ranks(prepared: &Prepared) -> Result<Plan> {
    let mut plan = prepared.plan.clone();
    let Some(lora) = eva_settings(prepared).filter(|lora| lora.eva_rho.is_some_and(|rho| rho > 1.0)) else {
        return Ok(plan);
    };
    let (ranks, rho) = (module_ranks(prepared)?, lora.eva_rho.unwrap_or(1.0));
    let most = ranks.iter().map(|(module, rank)| (module.clone(), (*rank as f64 * rho).round() as i64)).collect();
    let explained = principal_inputs(prepared, most)?.into_iter().map(|(module, found)| (module, found.explained));
    let budget = ranks.values().sum::<i64>() as usize;
    let found = lora::distribute(&explained.collect(), budget);
    let lora = LoraSpec { eva_rho: None, ..lora.with_ranks(&found)? };
    let (least, largest) = (found.values().min().copied().unwrap_or(0), found.values().max().copied().unwrap_or(0));
    report::info(format!("EVA: ranks of {} modules between {least} and {largest}, {budget} in all", found.len()));
    plan.recipe.adapter = Some(AdapterSpec::Lora(lora));
    Ok(plan)
}

/// Returns the settings of a LoRA that begins with EVA.
fn eva_settings(prepared: &Prepared) -> Option<&LoraSpec> {
    let lora = prepared.plan.recipe.adapter.as_ref()?.as_lora()?;
    (lora.init == LoraInit::Eva && lora.from.is_none()).then_some(lora)
}

/// Returns the rank of each module that the run adapts. Fails for layers whose inputs are not seen.
fn module_ranks(prepared: &Prepared) -> Result<BTreeMap<String, i64>> {
    let sketch = prepared.sketch()?;
    let id = sketch.adapter_id(TRAINED_ADAPTER).ok_or_else(|| Error::bug("EVA: the run trains no adapter"))?;
    let factor = |p: &crate::nn::Param| Some((p.name.strip_suffix(A)?.to_string(), p.tensor.size()[0], p.layer));
    let modules: Vec<(String, i64, LayerKind)> = sketch.params().adapter(id).filter_map(factor).collect();
    if let Some((head, ..)) = modules.iter().find(|(.., layer)| *layer != LayerKind::Linear) {
        return Err(Error::user(format!(
            "adapter.lora.init: `eva` looks at the layers of the blocks only, not at `{head}`"
        ))
        .hint("leave it out of adapter.lora.targets, or choose another init"));
    }
    if let Some((expert, ..)) = modules.iter().find(|(module, ..)| expert_number(module).is_some()) {
        return Err(Error::user(format!(
            "adapter.lora.init: `eva` looks at layers that compute every token, and `{expert}` belongs to an expert"
        ))
        .hint("leave the experts out of adapter.lora.targets, or choose another init"));
    }
    Ok(modules.into_iter().map(|(module, rank, _)| (module, rank)).collect())
}

/// Runs the base over the first training rows and returns the directions in which the modules' inputs vary most, as many
/// as wanted or as there are.
fn principal_inputs(prepared: &Prepared, wanted: BTreeMap<String, i64>) -> Result<BTreeMap<String, PrincipalInputs>> {
    let recipe = &prepared.plan.recipe;
    let recorder = InputRecorder::new(wanted);
    tch::manual_seed(recipe.run.seed as i64);
    let load = LoadOptions {
        device: prepared.device,
        kind: recipe.model.dtype.kind(),
        storage: prepared.storage,
        train_base: None,
        adapters: vec![("recorder".to_string(), &recorder as &dyn AdapterPlan)],
        vocabulary: prepared.vocabulary_rows(),
        heads: Heads::Tokens,
    };
    let model = Model::load(&recipe.model.path, load)?;
    let texts = texts(prepared)?;
    let bar = report::bar((PASSES * texts.len()) as u64, "rows for EVA");
    for pass in 0..PASSES {
        for text in &texts {
            // With prompts alone, no token is a target: all of them count.
            let targets = (0..text.ids.len()).filter(|t| text.supervised[*t] || text.target_count() == 0);
            let rows: Vec<i64> = targets.map(|t| t as i64).collect();
            recorder.count_rows(Tensor::from_slice(&rows).to_device(prepared.device));
            model.hidden_states(&Tokens::pack(&[text.ids.as_slice()], prepared.device))?;
            bar.inc(1);
        }
        if pass + 1 < PASSES {
            recorder.end_pass();
        }
    }
    bar.finish_and_clear();
    let found = recorder.directions().into_iter();
    found.map(|(module, found)| found.map(|f| (module.clone(), f)).ok_or_else(|| too_few(&module))).collect()
}

fn too_few(module: &str) -> Error {
    Error::user(format!("adapter.lora.init: `eva` found no directions for `{module}`"))
        .hint("its rank is larger than its inputs, or there are no rows: lower the rank, or choose another init")
}

/// Returns the first training rows.
fn texts(prepared: &Prepared) -> Result<Vec<Example>> {
    let mut tokens = 0;
    let rows = prepared.rows.preview(ROWS)?;
    let fits = |row: &Example| {
        tokens += row.ids.len();
        tokens <= TOKENS
    };
    let texts: Vec<Example> = rows.into_iter().filter(|row| !row.ids.is_empty()).take_while(fits).collect();
    Ok(texts)
}

/// Copies the initial factors into the parameters of the run's model.
pub fn set_factors(model: &Model, factors: &BTreeMap<String, Tensor>) {
    let _no_grad = tch::no_grad_guard();
    let Some(id) = model.adapter_id(TRAINED_ADAPTER) else { return };
    for p in model.params().adapter(id) {
        if let Some(a) = factors.get(&p.name) {
            p.tensor.shallow_clone().copy_(a);
        }
    }
}
