//! `ft adapter diff`: how two adapters differ.

use super::{base_nearby, or_dash};
use crate::cli::shared::stdout::{print, print_json};
use clap::Args;
use ft::convert::adapter::diff::{self, AdapterDiff, DeltaDiff};
use ft::error::Result;
use ft::report;
use ft::runs::page::short;
use std::path::PathBuf;

/// Compare two adapters: settings, tensors, and what they change, by layer
///
/// The changes of weights are compared, not the factors: the same change has many factors. Ranks and kinds may differ.
#[derive(Args)]
pub struct DiffArgs {
    /// Directory of the first adapter
    a: PathBuf,
    /// Directory of the second adapter
    b: PathBuf,
    /// Directory of their base, for kinds whose changes depend on the base's weights [default: the base that both name, if it
    /// is there]
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Print everything as JSON, every tensor included
    #[arg(long)]
    json: bool,
}

/// Runs `ft adapter diff`.
pub fn run(args: &DiffArgs) -> Result<()> {
    let mut found = diff::diff(&args.a, &args.b, args.base.as_deref())?;
    if found.total.is_none()
        && !found.equal
        && args.base.is_none()
        && let Some(base) = base_nearby(&[&args.a, &args.b])?
    {
        found = diff::diff(&args.a, &args.b, Some(&base))?;
    }
    if args.json { print_json(&found) } else { print(&text(&found)) }
}

fn text(found: &AdapterDiff) -> String {
    if found.equal {
        return "the adapters are equal: the same settings and the same bits\n".into();
    }
    let mut lines = Vec::new();
    lines.extend(found.settings.iter().map(|(key, [a, b])| format!("{key}: {a} and {b}")));
    for (names, which) in found.only_in.iter().zip(["first", "second"]) {
        if let [first, ..] = &names[..] {
            lines.push(format!("{} tensors are in the {which} only, such as `{first}`", names.len()));
        }
    }
    lines.push(format!("{} tensors of both differ", found.different_tensors.len()));
    let row = |name: &str, d: &DeltaDiff| {
        vec![
            name.to_string(),
            short(d.norms[0]),
            short(d.norms[1]),
            or_dash(d.cosine, |cosine| format!("{cosine:+.4}")),
            short(d.distance),
        ]
    };
    let mut rows = vec![["layer", "norm a", "norm b", "cosine", "distance"].map(String::from).to_vec()];
    rows.extend(found.layers.iter().map(|(name, d)| row(name, d)));
    rows.extend(found.total.iter().map(|d| row("all", d)));
    lines.extend([String::new(), report::table(&rows)]);
    if found.total.is_none() {
        lines.push("changes that depend on the base's weights are left out: give --base DIR".into());
    }
    lines.push("distance: norm of the difference of the changes over the larger of their norms".into());
    lines.join("\n") + "\n"
}
