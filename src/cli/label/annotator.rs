//! `ft label annotator`: lists the people who may judge, gives links and revokes them.

use clap::Args;
use ft::error::{Error, Result};
use ft::label::record::annotator::{Annotator, AnnotatorKind};
use ft::label::server::SignInToken;
use ft::label::store::Store;
use ft::report;
use serde_json::{Value, json};

/// Give somebody a link to judge with, revoke it, or list all annotators.
///
/// The link contains a token that is shown only once, because the project stores only its hash. A new link replaces the
/// old one.
#[derive(Args)]
pub struct AnnotatorArgs {
    /// The project.
    project: String,
    /// Name of the annotator [default: list all].
    name: Option<String>,
    /// Let them see the overview of everybody's work, and decide pairs on which people disagree.
    #[arg(long)]
    admin: bool,
    /// Revoke the link; their votes are kept.
    #[arg(long, conflicts_with = "admin")]
    revoke: bool,
    /// URL at which people reach the server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8321")]
    url: String,
    /// Print the result as JSON.
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
            Error::user(format!("{}: no annotator is called `{name}`", store.location()))
                .hint(format!("list all annotators: ft label annotator {}", store.location()))
        })?;
        store.set_annotator(found.id, None, &found.detail)?;
        report::info(format!("{name} can no longer sign in; a running server notices within seconds"));
        return Ok(());
    }
    let token = SignInToken::new()?;
    let somebody = store.annotator(name, AnnotatorKind::Person, &json!({}))?;
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
            report::info(format!("link for {name}, shown only once; send it so that nobody else can read it:"));
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
