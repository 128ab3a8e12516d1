//! `ft data cache`: shows and prunes the cache in which token ids are kept between runs.

use clap::Args;
use ft::data::cache::{CacheChoice, TokenCache};
use ft::error::{Error, Result};
use ft::report;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args)]
pub struct CacheArgs {
    /// Cache folder, if a recipe names one in data.cache [default: the user's cache].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Remove files that no run has used for DAYS days; 0 removes everything.
    #[arg(long, value_name = "DAYS")]
    prune: Option<u64>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `ft data cache`.
pub fn run(args: CacheArgs) -> Result<()> {
    if let Some(folder) = args.folder.as_ref().filter(|f| !f.is_dir()) {
        return Err(Error::user(format!("{}: no such folder", folder.display())));
    }
    let cache = TokenCache::new(&args.folder.map_or(CacheChoice::Auto, CacheChoice::Folder))?;
    let unused = args.prune.map_or(Duration::MAX, |days| Duration::from_secs(days.saturating_mul(24 * 3600)));
    let found = cache.prune(unused);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found).map_err(|e| Error::bug(e.to_string()))?);
        return Ok(());
    }
    let Some(folder) = found.folder else {
        println!("no cache folder: neither XDG_CACHE_HOME nor HOME is set");
        return Ok(());
    };
    println!("{}: {} files, {}", folder.display(), found.files, report::bytes(found.bytes));
    if args.prune.is_some() {
        println!("removed {} files, {}", found.removed, report::bytes(found.removed_bytes));
    }
    Ok(())
}
