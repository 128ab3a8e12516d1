//! `ft student`: a smaller model cut out of a larger one.

use clap::{Args, ValueEnum};
use ft::convert::student::{self, Cut, Layers, Student};
use ft::data::{self, ChatTokenizer, EncodeOptions, Example, Overflow, RowFormat, Supervise};
use ft::error::{Error, Result};
use ft::{models, report};
use std::path::PathBuf;

/// Cut a smaller model out of a larger one, for distillation
///
/// What is kept is kept bit for bit, in an ordinary Hugging Face directory. Layers can be named, spread evenly, or chosen:
/// the block that turns its input least goes. Neurons and heads stay by the size of their activations on --data.
#[derive(Args)]
pub struct StudentArgs {
    /// Hugging Face directory of the larger model
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// How many layers to keep, or which: 0,1,2,5
    #[arg(long, value_name = "N|LIST")]
    layers: Option<String>,
    /// How so many layers are chosen
    #[arg(long, value_enum, default_value_t = Choose::Even)]
    choose: Choose,
    /// Neurons of each MLP to keep
    #[arg(long, value_name = "N")]
    mlp: Option<i64>,
    /// Query heads of each layer to keep, with the key/value heads that serve them
    #[arg(long, value_name = "N")]
    heads: Option<i64>,
    /// Rows like those the student will see, in any format that training reads; activations are measured on them
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Only the first so many of them
    #[arg(long, value_name = "N", default_value_t = 64)]
    rows: usize,
    /// Where to measure: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace DIR where it exists
    #[arg(long)]
    force: bool,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choose {
    /// Evenly spread, the first and the last among them
    Even,
    /// The block with the smallest angle between what goes in and what comes out goes
    Angular,
}

pub fn run(args: &StudentArgs) -> Result<()> {
    if args.out.exists() && !args.force {
        return Err(Error::user(format!("{}: exists already", args.out.display()))
            .hint("replace it with --force, or give another folder"));
    }
    let cut = Cut { layers: layers(args)?, mlp: args.mlp, heads: args.heads };
    if cut == Cut::default() {
        return Err(Error::user("nothing is to be cut").hint("say what to keep with --layers, --mlp or --heads"));
    }
    let device = models::device(&args.device)?;
    let made = student::student(&args.from, &cut, &calibration(args)?, &args.out, device)?;
    if args.json {
        println!("{}", serde_json::to_string(&made).map_err(|e| Error::bug(format!("student: {e}")))?);
        return Ok(());
    }
    print(&made);
    Ok(())
}

fn layers(args: &StudentArgs) -> Result<Layers> {
    let Some(text) = &args.layers else { return Ok(Layers::All) };
    let bad = |_| Error::user(format!("--layers {text}: a number, or a list such as 0,1,2,5"));
    if text.contains(',') {
        let list = text.split(',').map(|n| n.trim().parse::<usize>()).collect::<std::result::Result<_, _>>();
        return list.map(Layers::List).map_err(bad);
    }
    let n = text.parse().map_err(bad)?;
    Ok(if args.choose == Choose::Even { Layers::Even(n) } else { Layers::Angular(n) })
}

/// The rows as token ids, none longer than 512.
fn calibration(args: &StudentArgs) -> Result<Vec<Vec<u32>>> {
    let Some(file) = &args.data else { return Ok(Vec::new()) };
    let tokenizer = ChatTokenizer::load(&args.from, None)?;
    let options = EncodeOptions {
        supervise: Supervise::All,
        max_len: 512,
        on_overflow: Overflow::Truncate,
        overflow_tolerance: 0.0,
    };
    let rows = data::load(file, RowFormat::Auto, Some(args.rows), &tokenizer, &options)?;
    rows.iter().map(|e: Result<Example>| Ok(e?.ids)).collect()
}

fn print(s: &Student) {
    if !s.turns.is_empty() {
        let least = s.turns.iter().map(|t| t.distance).fold(f64::INFINITY, f64::min);
        let mut rows = vec![vec!["block".to_string(), "angle (of a half turn)".into(), String::new()]];
        rows.extend(s.turns.iter().map(|t| {
            let gone = if t.distance == least { "goes" } else { "" };
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
    report::info("\nnext: distil into it with a recipe of method distill and model.path there");
}
