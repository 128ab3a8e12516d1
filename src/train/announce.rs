//! Reports what a run is about to do, before its first step.

use super::prepare::Prepared;
use crate::models::{LayerSampling, Model, dtype};
use crate::nn::Param;
use crate::recipe::sections::ModelInit;
use crate::report;

/// Reports model, trained parameters, number format and number of steps.
pub fn announce(prepared: &Prepared, model: &Model) {
    let trained: u64 = model.params().trained_in_run().map(Param::count).sum();
    let all: u64 = model.params().base().map(Param::count).sum();
    let active = match model.active_parameters() {
        active if active < all => format!(" ({} for each token)", report::count(active)),
        _ => String::new(),
    };
    report::info(format!(
        "{}: {} parameters{active}, {} trained ({:.2} %) on {:?}",
        match prepared.plan.recipe.model.init {
            ModelInit::Pretrained => model.folder().display().to_string(),
            ModelInit::Random => format!("{} with random weights", model.config().model_type),
        },
        report::count(all),
        report::count(trained),
        100.0 * trained as f64 / all as f64,
        prepared.device,
    ));
    let recipe = &prepared.plan.recipe;
    if let Some(LayerSampling { layers, every }) =
        recipe.model.trained.layer_sampling().filter(|_| recipe.adapter.is_none())
    {
        report::info(format!("LISA: {layers} of {} layers at a time, drawn anew after {every} steps", model.depth()));
    }
    if let Some(added) = &prepared.vocabulary {
        report::info(added.describe());
    }
    let quantised = model.describe_quantisation();
    if let Some(text) = &quantised {
        report::info(text);
    }
    let (stored, bytes) = model.storage_summary();
    let held = match prepared.plan.recipe.adapter {
        Some(_) if quantised.is_some() => format!("; the base takes {}", report::bytes(bytes)),
        Some(_) if stored != model.kind() => {
            format!("; frozen weights stay in {} ({})", dtype::kind_name(stored), report::bytes(bytes))
        }
        _ => String::new(),
    };
    report::info(format!("arithmetic in {} ({}){held}", dtype::kind_name(model.kind()), prepared.why));
    let run = &prepared.plan.recipe.run;
    if run.deterministic {
        report::info("sums have a fixed order, also on a GPU (run.deterministic); some gradients take longer");
    }
    if run.tf32 {
        report::info("float32 products in TF32: their factors are rounded to 10 bits of mantissa (run.tf32)");
    }
    if run.cuda_graphs {
        report::info("passes are recorded as CUDA graphs and launched as one (run.cuda_graphs)");
    }
    let dropouts = model.config().dropouts();
    if !dropouts.is_empty() {
        report::info(format!("config.json asks for dropout ({}); ft trains without it", dropouts.join(", ")));
    }
    report::info(format!("{} steps, seed {}, out {}", prepared.total_steps, run.seed, run.out.display()));
}
