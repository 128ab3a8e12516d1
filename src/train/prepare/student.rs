//! Cuts the model of a run out of a larger one, as `model.cut` asks.

use crate::convert::student::{KeptLayers, StudentCut, cut_student_if_missing};
use crate::data::cache::TokenCache;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::{Dataset, EncodeOptions, Overflow};
use crate::data::encode::{Example, Supervise};
use crate::data::rows::{SourceList, SourceSpec};
use crate::error::Result;
use crate::models;
use crate::recipe::plan::Plan;
use crate::recipe::sections::{CutChoice, CutLayers, CutSection, Recipe};
use crate::report;

/// Makes the model that the recipe cuts out of a larger one (`model.cut`), unless it exists.
pub fn ensure_cut_model(plan: &Plan) -> Result<()> {
    let recipe = &plan.recipe;
    let Some(section) = &recipe.model.cut else { return Ok(()) };
    let layers = match (&section.layers, section.choose) {
        (None, _) => KeptLayers::All,
        (Some(CutLayers::List(list)), _) => KeptLayers::List(list.clone()),
        (Some(CutLayers::Count(n)), CutChoice::Even) => KeptLayers::Even(*n),
        (Some(CutLayers::Count(n)), CutChoice::Angular) => KeptLayers::Angular(*n),
    };
    let cut = StudentCut { layers, mlp: section.mlp, heads: section.heads };
    let device = models::device(&recipe.model.device)?;
    let texts = || calibration_texts(recipe, section);
    if let Some(made) = cut_student_if_missing(&section.from, &cut, texts, &recipe.model.path, device)? {
        report::info(format!(
            "{}: {} of {} layers ({} of {} parameters) cut out of {}",
            recipe.model.path.display(),
            made.kept_layers.len(),
            made.layers_before,
            report::count(made.parameters),
            report::count(made.parameters_before),
            section.from.display(),
        ));
    }
    Ok(())
}

/// Returns the token ids of the first training rows, on which the larger model's activations are measured.
fn calibration_texts(recipe: &Recipe, section: &CutSection) -> Result<Vec<Vec<u32>>> {
    let tokenizer = ChatTokenizer::load_with(&section.from, &recipe.data.rendering()?)?;
    let options = EncodeOptions {
        supervise: Supervise::All,
        max_len: recipe.batch.max_len,
        on_overflow: Overflow::Truncate,
        overflow_tolerance: 0.0,
    };
    let sources =
        recipe.data.train.0.iter().map(|s| SourceSpec { rows: Some(section.rows), weight: None, ..s.clone() });
    let rows = Dataset::<Example>::open(&SourceList(sources.collect()), &tokenizer, &options, &TokenCache::off())?;
    rows.iter().take(section.rows).map(|e| Ok(e?.ids)).collect()
}
