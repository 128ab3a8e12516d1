//! Reads and adds records.

use super::connection::Store;
use super::database::SqlParameter;
use super::rows::{PairContent, VOTE_COLUMNS, annotator, candidate, json, prompt, shown, vote};
use super::writer::VoteInsertion;
use crate::error::{Error, Result};
use crate::fsutil::hex;
use crate::label::record::annotator::{Annotator, AnnotatorKind};
use crate::label::record::answer::{
    Candidate, CandidatePair, InsertCounts, NewCandidate, NewPair, NewPrompt, StoredPrompt,
};
use crate::label::record::lease::Lease;
use crate::label::record::settings::ProjectSettings;
use crate::label::record::vote::{NewVote, Vote};
use serde_json::Value;
use sha2::{Digest, Sha256};

impl Store {
    /// Returns the settings of the project.
    pub fn settings(&self) -> Result<ProjectSettings> {
        let rows = self.query("SELECT value FROM meta WHERE key = 'settings'", &[])?;
        let mut row =
            rows.into_iter().next().ok_or_else(|| Error::user(format!("{}: no settings", self.location())))?;
        row.json()
    }

    /// Replaces the settings of the project.
    pub fn set_settings(&self, settings: &ProjectSettings) -> Result<()> {
        let text = json(settings)?;
        self.write(|w| {
            w.execute("UPDATE meta SET value = $1 WHERE key = 'settings'", &[SqlParameter::Text(&text)]).map(drop)
        })
    }

    /// Returns all prompts in the order in which they were added.
    pub fn prompts(&self) -> Result<Vec<StoredPrompt>> {
        self.read("SELECT id, key, messages, columns FROM prompts ORDER BY id", prompt)
    }

    /// Adds prompts. A prompt whose key exists is left unchanged.
    pub fn add_prompts(&self, prompts: &[NewPrompt]) -> Result<InsertCounts> {
        let sql = "INSERT INTO prompts (key, messages, columns) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        self.add(prompts, |w, p| {
            let (messages, columns) = (p.messages.to_string(), json(&p.columns)?);
            w.execute(sql, &[SqlParameter::Text(&p.key), SqlParameter::Text(&messages), SqlParameter::Text(&columns)])
        })
    }

    /// Returns all candidate answers in the order in which they were added.
    pub fn candidates(&self) -> Result<Vec<Candidate>> {
        self.read("SELECT id, prompt, source, text, tokens FROM candidates ORDER BY id", candidate)
    }

    /// Adds candidate answers. The same text from the same source to the same prompt is stored once.
    pub fn add_candidates(&self, candidates: &[NewCandidate]) -> Result<InsertCounts> {
        let sql = "INSERT INTO candidates (prompt, source, text, digest, tokens) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT DO NOTHING";
        self.add(candidates, |w, c| {
            let digest = hex(&Sha256::digest(c.text.as_bytes()));
            let (source, text) = (SqlParameter::Text(&c.source), SqlParameter::Text(&c.text));
            w.execute(
                sql,
                &[SqlParameter::Int(c.prompt), source, text, SqlParameter::Text(&digest), SqlParameter::int(c.tokens)],
            )
        })
    }

    /// Returns all pairs in the order in which they were added and are shown.
    pub fn pairs(&self) -> Result<Vec<CandidatePair>> {
        self.read("SELECT id, prompt, a, b, overlap, repeat_of, reason FROM pairs ORDER BY id", |row| {
            Ok(CandidatePair {
                id: row.int()?,
                prompt: row.int()?,
                a: row.int()?,
                b: row.int()?,
                overlap: row.int()?,
                repeat_of: row.int_or_null()?,
                reason: row.text()?,
            })
        })
    }

    /// Adds pairs. Two answers form a pair only once, in whatever order, and a pair has at most one hidden repeat.
    pub fn add_pairs(&self, pairs: &[NewPair]) -> Result<InsertCounts> {
        let sql = "INSERT INTO pairs (prompt, a, b, low, high, overlap, repeat_of, reason) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
        self.add(pairs, |w, p| {
            let (low, high) = (p.a.min(p.b), p.a.max(p.b));
            let ids = [p.prompt, p.a, p.b, low, high, p.overlap].map(SqlParameter::Int);
            w.execute(sql, &[&ids[..], &[SqlParameter::int(p.repeat_of), SqlParameter::Text(&p.reason)]].concat())
        })
    }

    /// Returns the prompt and the answers `a` and `b` of a pair.
    pub fn pair_content(&self, pair: i64) -> Result<PairContent> {
        shown(self.lock().as_mut(), pair)
    }

    /// Returns the number of pairs: a cheap way to notice that another process added some.
    pub fn pair_count(&self) -> Result<i64> {
        self.query("SELECT count(*) FROM pairs", &[])?.remove(0).int()
    }

    /// Returns all annotators.
    pub fn annotators(&self) -> Result<Vec<Annotator>> {
        self.read("SELECT id, name, kind, token_hash, detail FROM annotators ORDER BY id", annotator)
    }

    /// Returns the annotator with this name; creates it if there is none.
    ///
    /// Errors: an annotator with this name has another kind.
    pub fn annotator(&self, name: &str, kind: AnnotatorKind, detail: &Value) -> Result<Annotator> {
        let found = self.write(|w| {
            let insert = "INSERT INTO annotators (name, kind, detail) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            w.execute(
                insert,
                &[SqlParameter::Text(name), SqlParameter::Text(kind.name()), SqlParameter::Text(&detail.to_string())],
            )?;
            let select = "SELECT id, name, kind, token_hash, detail FROM annotators WHERE name = $1";
            annotator(&mut w.query(select, &[SqlParameter::Text(name)])?.remove(0))
        })?;
        if found.kind != kind {
            return Err(Error::user(format!("{}: `{name}` is a {}, not a {kind}", self.location(), found.kind))
                .hint("choose another name"));
        }
        Ok(found)
    }

    /// Sets an annotator's detail and token hash. `None` removes the token.
    pub fn set_annotator(&self, id: i64, token_hash: Option<&str>, detail: &Value) -> Result<()> {
        let sql = "UPDATE annotators SET token_hash = $1, detail = $2 WHERE id = $3";
        let detail = detail.to_string();
        self.write(|w| {
            w.execute(sql, &[SqlParameter::text(token_hash), SqlParameter::Text(&detail), SqlParameter::Int(id)])
                .map(drop)
        })
    }

    /// Returns the votes that were not undone, in the order in which they were given.
    pub fn votes(&self) -> Result<Vec<Vote>> {
        self.read(&format!("SELECT {VOTE_COLUMNS} FROM votes WHERE undone = 0 ORDER BY id"), vote)
    }

    /// Returns all votes, including undone ones.
    pub fn votes_and_undone(&self) -> Result<Vec<Vote>> {
        self.read(&format!("SELECT {VOTE_COLUMNS} FROM votes ORDER BY id"), vote)
    }

    /// Adds a vote. If the same request was saved before, returns the stored vote.
    ///
    /// Errors: the annotator has judged the pair in another request; the vote cannot be written.
    pub fn add_vote(&self, new: &NewVote) -> Result<Vote> {
        match self.write(|w| w.vote(new))? {
            VoteInsertion::New(vote) | VoteInsertion::Repeated(vote) => Ok(vote),
            VoteInsertion::AlreadyJudged => Err(Error::user(format!(
                "{}: annotator {} has already judged pair {}",
                self.location(),
                new.annotator,
                new.pair
            ))
            .hint("to change a vote, undo it first")),
        }
    }

    /// Adds votes in one transaction. Pairs that the annotator has already judged are left unchanged.
    pub fn add_votes(&self, new: &[NewVote]) -> Result<InsertCounts> {
        self.add(new, |w, v| Ok(u64::from(matches!(w.vote(v)?, VoteInsertion::New(_)))))
    }

    /// Returns the tasks that annotators held when the project was last served.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        self.read("SELECT pair, annotator, swapped, since FROM leases ORDER BY since", |row| {
            Ok(Lease { pair: row.int()?, annotator: row.int()?, swapped: row.flag()?, since: row.int()? })
        })
    }
}
