//! Identifies the person who sends a request by their token.
//!
//! A token is 32 random bytes, shown once; the project stores its SHA-256. A look-up compares the hash with every
//! stored hash in constant time, so that its duration reveals nothing about them.

use crate::error::{Error, Result};
use crate::fsutil::hex;
use crate::label::record::annotator::Annotator;
use crate::label::store::Store;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// Age at which the list of annotators is read again. A revoked token may stay valid for this long.
const REFRESH_AFTER: Duration = Duration::from_secs(2);

/// Age up to which the list of annotators is used while the database does not respond.
const EXPIRES_AFTER: Duration = Duration::from_secs(10);

/// A secret that signs somebody in. Not shown by `{:?}`.
pub struct SignInToken(String);

impl SignInToken {
    /// Creates a token from the system's random numbers.
    pub fn new() -> Result<Self> {
        let mut bytes = [0u8; 32];
        let filled = rand::rngs::SysRng.try_fill_bytes(&mut bytes);
        filled.map_err(|e| Error::user(format!("the system provides no random numbers: {e}")))?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Returns the token itself, to be given to its owner.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// Returns the hash that the project stores.
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

impl fmt::Debug for SignInToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Returns the hash that the project stores for a token: SHA-256, hexadecimal.
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// A person with a valid token.
#[derive(Debug, Clone)]
pub struct SignedInPerson {
    pub id: i64,
    pub name: String,
    pub admin: bool,
}

/// The people of a project, looked up by token.
pub struct PeopleByToken {
    store: Store,
    /// Token hash and identity of the person who runs the server; their token is not in the database.
    owner: (String, SignedInPerson),
    /// The cached annotators. The lock is held for a moment only.
    known: Mutex<CachedAnnotators>,
    /// Held by the request that reads the annotators again: one at a time. Requests with a known token do not wait for
    /// it.
    asking: Mutex<()>,
}

/// The annotators as last read from the project.
#[derive(Clone)]
struct CachedAnnotators {
    all: Arc<Vec<Annotator>>,
    since: Instant,
}

impl CachedAnnotators {
    fn now(store: &Store) -> Result<Self> {
        let since = Instant::now();
        Ok(Self { all: Arc::new(store.annotators()?), since })
    }
}

impl PeopleByToken {
    /// Reads the annotators. `owner` runs the server, may see everything, and signs in with `token`.
    pub fn new(store: Store, owner: Annotator, token: &SignInToken) -> Result<Self> {
        let known = Mutex::new(CachedAnnotators::now(&store)?);
        let owner = (token.hash(), SignedInPerson { id: owner.id, name: owner.name, admin: true });
        Ok(Self { store, owner, known, asking: Mutex::new(()) })
    }

    /// Returns the person with this token; `None` if the token is unknown.
    ///
    /// Errors: the list of annotators is too old and cannot be read again.
    pub fn find(&self, secret: &str) -> Result<Option<SignedInPerson>> {
        let shown = hash(secret);
        let known = self.known();
        let found = self.among(&known, &shown);
        if known.since.elapsed() <= REFRESH_AFTER {
            return Ok(found);
        }
        // A person with a known token need not wait while another request reads the project.
        let may_go_on = found.is_some() && known.since.elapsed() <= EXPIRES_AFTER;
        let turn = match self.asking.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::WouldBlock) if may_go_on => return Ok(found),
            Err(TryLockError::WouldBlock) => locked(&self.asking),
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
        };
        let mut known = self.known();
        if known.since.elapsed() > REFRESH_AFTER {
            known = CachedAnnotators::now(&self.store)?;
            *locked(&self.known) = known.clone();
        }
        drop(turn);
        Ok(self.among(&known, &shown))
    }

    fn known(&self) -> CachedAnnotators {
        locked(&self.known).clone()
    }

    /// Returns the person with this token hash. Compares with every stored hash in constant time.
    fn among(&self, known: &CachedAnnotators, shown: &str) -> Option<SignedInPerson> {
        let same = |kept: &str| bool::from(kept.as_bytes().ct_eq(shown.as_bytes()));
        let mut found = same(&self.owner.0).then(|| self.owner.1.clone());
        for annotator in known.all.iter() {
            if annotator.token_hash.as_deref().is_some_and(same) {
                let (id, name) = (annotator.id, annotator.name.clone());
                found = Some(SignedInPerson { id, name, admin: annotator.is_admin() });
            }
        }
        found
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::record::annotator::AnnotatorKind;
    use crate::label::record::settings::ProjectSettings;
    use serde_json::json;

    /// While the database does not respond, known tokens stay valid, but only for a limited time.
    #[test]
    fn a_question_to_the_project_makes_nobody_wait_who_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("project.db").display().to_string();
        let store = Store::create(&place, &ProjectSettings::default()).unwrap();
        let ann = store.annotator("Ann", AnnotatorKind::Person, &json!({})).unwrap();
        let (owner, token) = (SignInToken::new().unwrap(), SignInToken::new().unwrap());
        store.set_annotator(ann.id, Some(&token.hash()), &json!({})).unwrap();
        let me = store.annotator("me", AnnotatorKind::Person, &json!({})).unwrap();
        let people = PeopleByToken::new(store, me, &owner).unwrap();
        let aged = |age: Duration| {
            let mut known = locked(&people.known);
            known.since = Instant::now().checked_sub(age).unwrap();
        };
        let name = |token: &SignInToken| people.find(token.secret()).unwrap().map(|p| p.name);
        // Another request is reading the annotators and waits for the database.
        let asking = locked(&people.asking);
        aged(REFRESH_AFTER * 2);
        assert_eq!(name(&token).as_deref(), Some("Ann"));
        assert_eq!(name(&owner).as_deref(), Some("me"));
        std::thread::scope(|scope| {
            aged(EXPIRES_AFTER * 2);
            let late = scope.spawn(|| name(&token));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!late.is_finished(), "what is known is too old");
            drop(asking);
            assert_eq!(late.join().unwrap().as_deref(), Some("Ann"));
        });
        // Revoked and new tokens take effect when the annotators are next read.
        let new = SignInToken::new().unwrap();
        people.store.set_annotator(ann.id, Some(&new.hash()), &json!({})).unwrap();
        assert_eq!((name(&token).as_deref(), name(&new)), (Some("Ann"), None));
        aged(REFRESH_AFTER * 2);
        assert_eq!((name(&token), name(&new).as_deref()), (None, Some("Ann")));
    }
}
