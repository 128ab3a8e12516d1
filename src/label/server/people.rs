//! Who is asking: tokens and the people behind them.
//!
//! A token is 32 random bytes, shown once; the project keeps its SHA-256. A look-up compares with every hash to its end,
//! so that its time says nothing.

use crate::error::{Error, Result};
use crate::fsutil::hex;
use crate::label::record::Annotator;
use crate::label::store::Store;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// How long a token that was taken away may still be good, and how often an unknown one makes the server look.
const FRESH: Duration = Duration::from_secs(2);

/// A secret that signs somebody in. Not shown by `{:?}`.
pub struct Token(String);

impl Token {
    /// A new one, from the system's random numbers.
    pub fn new() -> Result<Self> {
        let mut bytes = [0u8; 32];
        let filled = rand::rngs::SysRng.try_fill_bytes(&mut bytes);
        filled.map_err(|e| Error::user(format!("the system gives no random numbers: {e}")))?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The token itself, to be given to its owner.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// What the project keeps of it.
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What the project keeps of a token.
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Somebody who showed a good token.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: i64,
    pub name: String,
    pub admin: bool,
}

/// The people of a project, looked up by token.
pub struct People {
    store: Store,
    /// Who serves the project; their token is in no database.
    owner: (String, Person),
    known: Mutex<(Vec<Annotator>, Instant)>,
}

impl People {
    pub fn new(store: Store, owner: Annotator, token: &Token) -> Result<Self> {
        let known = Mutex::new((store.annotators()?, Instant::now()));
        let owner = (token.hash(), Person { id: owner.id, name: owner.name, admin: true });
        Ok(Self { store, owner, known })
    }

    /// Who shows this token.
    pub fn find(&self, secret: &str) -> Result<Option<Person>> {
        let shown = hash(secret);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.1.elapsed() > FRESH {
            *known = (self.store.annotators()?, Instant::now());
        }
        let same = |kept: &str| bool::from(kept.as_bytes().ct_eq(shown.as_bytes()));
        let mut found = same(&self.owner.0).then(|| self.owner.1.clone());
        for annotator in &known.0 {
            if annotator.token_hash.as_deref().is_some_and(same) {
                let (id, name) = (annotator.id, annotator.name.clone());
                found = Some(Person { id, name, admin: annotator.is_admin() });
            }
        }
        Ok(found)
    }
}
