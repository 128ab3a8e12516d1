//! Saves an admin's final decision on a pair that people judged differently.

use crate::error::Result;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::vote::{NewVote, Vote, VoteChoice};
use crate::label::store::Store;
use serde_json::json;

/// Saves an admin's final decision on a pair and undoes earlier final decisions on it.
pub fn adjudicate(store: &Store, admin: &str, pair: i64, choice: VoteChoice) -> Result<()> {
    // The final decision belongs to a separate annotator, as the admin may also have judged the pair as one of the
    // people.
    let voice =
        store.annotator(&format!("{admin} (final word)"), AnnotatorKind::Person, &json!({ "adjudicates": true }))?;
    let earlier: Vec<Vote> = store.votes()?.into_iter().filter(|v| v.pair == pair && v.adjudicates()).collect();
    store.write(|w| {
        for vote in &earlier {
            w.undo(vote.annotator, vote.id)?;
        }
        w.vote(&NewVote { detail: json!({ "adjudicated": true }), ..NewVote::new(pair, voice.id, choice) }).map(drop)
    })
}
