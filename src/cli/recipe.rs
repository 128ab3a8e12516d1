//! `ft recipe`: lists recipes, shows one with its defaults filled in, and explains the keys that recipes may have.

use super::shared::stdout::{print, print_json};
use clap::Subcommand;
use ft::error::{Context, Error, Result};
use ft::{fsutil, recipe};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum RecipeCommand {
    /// List the recipes in a folder with the first line of each
    List {
        /// The folder
        #[arg(default_value = "recipes")]
        folder: PathBuf,
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Print a recipe as YAML, with every default filled in and every path absolute
    Show {
        /// The recipe file
        recipe: PathBuf,
        /// Set a key by its dotted path, such as optim.lr=1e-4; an empty value removes the key
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain a key or a section of recipes; without KEY, list every key
    Explain {
        /// A dotted path or the last part of one, such as optim.lr or lr
        key: Option<String>,
    },
    /// Print the JSON Schema of recipes, for editors
    Schema,
    /// Print the reference of all keys as Markdown (docs/recipe.md)
    Reference,
}

/// Runs `ft recipe …`.
pub fn run(verb: RecipeCommand) -> Result<()> {
    match verb {
        RecipeCommand::List { folder, json } => list(&folder, json),
        RecipeCommand::Show { recipe, sets, json } => {
            let plan = recipe::plan::load(&recipe, &sets)?;
            if json { print_json(&plan.recipe) } else { print(&plan.to_yaml()?) }
        }
        RecipeCommand::Explain { key } => {
            print(&recipe::reference::explain(key.as_deref().unwrap_or("").trim_end_matches('.'))?)
        }
        RecipeCommand::Schema => print_json(recipe::schema::schema()),
        RecipeCommand::Reference => print(&recipe::reference::markdown()),
    }
}

fn list(folder: &Path, json: bool) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| fsutil::io_error("reading folder", folder, e))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    if files.is_empty() {
        return Err(Error::user(format!("{}: no .yaml file", folder.display()))
            .hint("name another folder: ft recipe list FOLDER"));
    }
    let mut rows = Vec::new();
    for file in &files {
        let text = fsutil::read_to_string(file).context(|| "listing recipes")?;
        let first = text.lines().next().unwrap_or("").strip_prefix('#').unwrap_or("").trim();
        rows.push((file.display().to_string(), first.to_string()));
    }
    if json {
        let rows: Vec<_> =
            rows.iter().map(|(file, header)| serde_json::json!({"file": file, "header": header})).collect();
        return print_json(&rows);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(file, header)| vec![file, header]).collect();
    print(&(ft::report::table(&rows) + "\n"))
}
