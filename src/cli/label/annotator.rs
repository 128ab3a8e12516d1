//! `ft label annotator`: who may judge, and their links.

use clap::Args;
use ft::error::{Error, Result};
use ft::label::Store;
use ft::label::record::{Annotator, Kind};
use ft::label::server::Token;
use ft::report;
use serde_json::{Value, json};

/// Give somebody a link to judge with, take one away, or list who there is.
///
/// The link holds a token, which is shown once and never again: the project keeps its hash. A new link ends the old one.
#[derive(Args)]
pub struct AnnotatorArgs {
    /// The project.
    project: String,
    /// Who; left out, all are listed.
    name: Option<String>,
    /// They see the overview of everybody's work, and decide what people judge differently.
    #[arg(long)]
    admin: bool,
    /// Take the link away; their votes stay.
    #[arg(long, conflicts_with = "admin")]
    revoke: bool,
    /// Where people reach the server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8321")]
    url: String,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `ft label annotator`.
pub fn run(args: &AnnotatorArgs) -> Result<()> {
    let store = Store::open(&args.project)?;
    let Some(name) = &args.name else { return list(&store, args.json) };
    if args.revoke {
        let found = store.annotators()?.into_iter().find(|a| a.name == *name);
        let found = found.ok_or_else(|| {
            Error::user(format!("{}: nobody is called `{name}`", store.place()))
                .hint(format!("who there is: ft label annotator {}", store.place()))
        })?;
        store.set_annotator(found.id, None, &found.detail)?;
        report::info(format!("{name} cannot sign in any more; a server that runs sees it in a moment"));
        return Ok(());
    }
    let token = Token::new()?;
    let somebody = store.annotator(name, Kind::Person, &json!({}))?;
    let mut detail = somebody.detail.clone();
    match args.admin {
        true => detail["admin"] = Value::Bool(true),
        false => drop(detail.as_object_mut().and_then(|d| d.shift_remove("admin"))),
    }
    store.set_annotator(somebody.id, Some(&token.hash()), &detail)?;
    let link = format!("{}/#token={}", args.url.trim_end_matches('/'), token.secret());
    match args.json {
        true => println!("{}", json!({ "name": name, "admin": args.admin, "token": token.secret(), "link": link })),
        false => {
            report::info(format!("a link for {name}, shown this once; send it where nobody else reads it:"));
            println!("{link}");
        }
    }
    Ok(())
}

fn list(store: &Store, as_json: bool) -> Result<()> {
    let votes = store.votes()?;
    let count = |a: &Annotator| votes.iter().filter(|v| v.annotator == a.id).count();
    let all = store.annotators()?;
    if as_json {
        let one = |a: &Annotator| json!({ "name": a.name, "kind": a.kind, "admin": a.is_admin(), "link": a.token_hash.is_some(), "votes": count(a) });
        println!("{}", Value::Array(all.iter().map(one).collect()));
        return Ok(());
    }
    let mut rows = vec![["name", "kind", "admin", "link", "votes"].map(String::from).to_vec()];
    let yes = |b: bool| if b { "yes" } else { "" }.to_string();
    rows.extend(all.iter().map(|a| {
        vec![a.name.clone(), a.kind.to_string(), yes(a.is_admin()), yes(a.token_hash.is_some()), count(a).to_string()]
    }));
    println!("{}", report::table(&rows));
    Ok(())
}
