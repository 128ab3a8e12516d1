//! `ft student`: makes a smaller model from a larger one by removing layers, neurons and heads.

use super::shared::interrupt::end_without_remains;
use clap::{Args, ValueEnum};
use ft::convert::student::{self, KeptLayers, StudentCut, StudentSummary};
use ft::data::chat::ChatTokenizer;
use ft::data::dataset::{self, EncodeOptions, Overflow};
use ft::data::encode::{Example, Supervise};
use ft::data::rows::RowFormat;
use ft::error::{Error, Result};
use ft::{models, report};
use std::path::PathBuf;

/// Cut a smaller model out of a larger one, for distillation
///
/// The result is an ordinary Hugging Face directory; the kept weights are equal bit for bit. The layers to keep can be
/// listed, spread evenly, or chosen by removing the block of layers that changes the direction of its input least
/// (arXiv 2403.17887). Neurons and heads with the largest activations on --data are kept (arXiv 2407.14679).
#[derive(Args)]
pub struct StudentArgs {
    /// Hugging Face directory of the larger model
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// How many layers to keep, or which: 0,1,2,5
    #[arg(long, value_name = "N|LIST")]
    layers: Option<String>,
    /// How the layers are chosen when --layers is a number
    #[arg(long, value_enum, default_value_t = LayerChoiceArg::Even, requires = "layers")]
    choose: LayerChoiceArg,
    /// Neurons of each MLP to keep
    #[arg(long, value_name = "N")]
    mlp: Option<i64>,
    /// Query heads of each layer to keep, with the key/value heads that serve them
    #[arg(long, value_name = "N")]
    heads: Option<i64>,
    /// Rows to measure activations on, like those of the later training, in any format that `ft train` reads
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Use only the first N rows of --data
    #[arg(long, value_name = "N", default_value_t = 64, requires = "data")]
    rows: usize,
    /// Device to measure on: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a model directory at DIR
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LayerChoiceArg {
    /// Evenly spread, including the first and the last
    Even,
    /// Remove the block of layers with the smallest angle between its input and its output
    Angular,
}

/// Runs `ft student`.
pub fn run(args: &StudentArgs) -> Result<()> {
    end_without_remains()?;
    // Before the rows of --data are read.
    student::destination(&args.out).check(args.force, &[&args.from])?;
    let cut = StudentCut { layers: layers(args)?, mlp: args.mlp, heads: args.heads };
    if cut == StudentCut::default() {
        return Err(Error::user("nothing to remove").hint("say what to keep with --layers, --mlp or --heads"));
    }
    let device = models::device(&args.device)?;
    let made = student::cut_student(&args.from, &cut, &calibration(args)?, &args.out, args.force, device)?;
    if args.json {
        println!("{}", serde_json::to_string(&made).map_err(|e| Error::bug(format!("student: {e}")))?);
        return Ok(());
    }
    print(&made);
    Ok(())
}

/// Reads --layers and --choose.
fn layers(args: &StudentArgs) -> Result<KeptLayers> {
    let Some(text) = &args.layers else { return Ok(KeptLayers::All) };
    let bad = |_| Error::user(format!("--layers {text}: expected a number, or a list such as 0,1,2,5"));
    if text.contains(',') {
        if args.choose == LayerChoiceArg::Angular {
            return Err(Error::user(format!("--choose angular: --layers {text} names the layers"))
                .hint("leave it out, or give their number: --layers 12 --choose angular"));
        }
        let list = text.split(',').map(|n| n.trim().parse::<usize>()).collect::<std::result::Result<_, _>>();
        return list.map(KeptLayers::List).map_err(bad);
    }
    let n = text.parse().map_err(bad)?;
    Ok(if args.choose == LayerChoiceArg::Even { KeptLayers::Even(n) } else { KeptLayers::Angular(n) })
}

/// Returns the token ids of the rows of --data, each cut to 512 tokens; empty without --data.
fn calibration(args: &StudentArgs) -> Result<Vec<Vec<u32>>> {
    let Some(file) = &args.data else { return Ok(Vec::new()) };
    let tokenizer = ChatTokenizer::load(&args.from, None)?;
    let options = EncodeOptions {
        supervise: Supervise::All,
        max_len: 512,
        on_overflow: Overflow::Truncate,
        overflow_tolerance: 0.0,
    };
    let rows = dataset::load(file, RowFormat::Auto, Some(args.rows), &tokenizer, &options)?;
    rows.iter().map(|e: Result<Example>| Ok(e?.ids)).collect()
}

fn print(s: &StudentSummary) {
    if !s.turns.is_empty() {
        let least = s.turns.iter().map(|t| t.distance).fold(f64::INFINITY, f64::min);
        let mut rows = vec![vec!["block".to_string(), "angle (1 = 180 degrees)".into(), String::new()]];
        rows.extend(s.turns.iter().map(|t| {
            let gone = if t.distance == least { "removed" } else { "" };
            vec![
                format!("{} to {}", t.from, t.from + t.layers.saturating_sub(1)),
                format!("{:.4}", t.distance),
                gone.into(),
            ]
        }));
        println!("{}\n", report::table(&rows));
    }
    let kept: Vec<String> = s.kept_layers.iter().map(usize::to_string).collect();
    let row = |what: &str, value: String| vec![what.to_string(), value];
    let rows = [
        row("student", s.out.display().to_string()),
        row("layers", format!("{} of {}: {}", s.kept_layers.len(), s.layers_before, kept.join(" "))),
        row("MLP", format!("{} neurons", s.mlp)),
        row("heads", format!("{} query, {} key/value", s.heads, s.key_value_heads)),
        row(
            "parameters",
            format!(
                "{} of {} ({:.0} %)",
                report::count(s.parameters),
                report::count(s.parameters_before),
                100.0 * s.parameters as f64 / s.parameters_before as f64
            ),
        ),
    ];
    println!("{}", report::table(&rows));
    report::info("\nnext: train it with a recipe of method distill; set model.path to its folder");
}
