//! `ft adapter info`: what an adapter is.

use super::{base_nearby, or_dash};
use crate::cli::shared::stdout::{print, print_json};
use clap::Args;
use ft::convert::adapter::info::{self, AdapterInfo};
use ft::error::Result;
use ft::report;
use ft::runs::page::short;
use std::path::PathBuf;

/// Show what an adapter is: kind, ranks, norms by layer, and which programs read it
///
/// No model is loaded; tensors are read one at a time.
#[derive(Args)]
pub struct InfoArgs {
    /// The adapter's directory
    adapter: PathBuf,
    /// Directory of its base, for kinds whose changes depend on the base's weights (DoRA, IA3, OFT and others) [default: the
    /// base that it names, if it is there]
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Print everything as JSON, every tensor included
    #[arg(long)]
    json: bool,
}

/// Runs `ft adapter info`.
pub fn run(args: &InfoArgs) -> Result<()> {
    let mut found = info::info(&args.adapter, args.base.as_deref())?;
    let unknown = found.weights.iter().any(|w| w.norm.is_none());
    if unknown
        && args.base.is_none()
        && let Some(base) = base_nearby(&[&args.adapter])?
    {
        found = info::info(&args.adapter, Some(&base))?;
    }
    if args.json { print_json(&found) } else { print(&text(&found)) }
}

/// Returns the description and the table by layer.
pub(super) fn text(found: &AdapterInfo) -> String {
    let targets = match &found.targets {
        serde_json::Value::Array(list) => {
            list.iter().map(|t| t.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
        }
        other => other.as_str().unwrap_or("-").to_string(),
    };
    let mut lines = vec![
        format!("{}: {} ({})", found.folder, found.kind, found.description),
        format!("base        {}", found.base.as_deref().unwrap_or("-")),
        format!(
            "parameters  {} in {} tensors, {}",
            report::count(found.parameters),
            found.tensors.len(),
            report::bytes(found.bytes)
        ),
        format!("targets     {}", if targets.is_empty() { "-" } else { &targets }),
    ];
    if !found.modules_to_save.is_empty() {
        lines.push(format!("in full     {}", found.modules_to_save.join(", ")));
    }
    let (least, most) = found
        .weights
        .iter()
        .filter_map(|w| w.rank)
        .fold((i64::MAX, 0), |(least, most), rank| (least.min(rank), most.max(rank)));
    if most > 0 {
        lines.push(format!(
            "ranks       {}",
            if least == most { most.to_string() } else { format!("{least} to {most}") }
        ));
    }
    let mut rows = vec![["layer", "weights", "norm of the change", "effective rank"].map(String::from).to_vec()];
    rows.extend(found.layers.iter().map(|l| {
        vec![
            l.layer.clone(),
            l.weights.to_string(),
            or_dash(l.norm, short),
            or_dash(l.effective_rank, |rank| format!("{rank:.1}")),
        ]
    }));
    if rows.len() > 1 {
        lines.extend([String::new(), report::table(&rows)]);
    }
    lines.push(String::new());
    if found.weights.iter().any(|w| w.norm.is_none()) {
        lines.push("changes without a norm depend on the base's weights: give --base DIR".into());
    }
    lines.extend(found.compatibility.iter().map(|answer| format!("{answer}")));
    lines.join("\n") + "\n"
}
