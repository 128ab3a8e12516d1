//! Defines the tables, as steps from one schema version to the next. The same SQL serves SQLite and PostgreSQL.
//!
//! `{id}` is replaced by a numbered primary key, the only part that the two databases spell differently. A released
//! step must never change; changes are added as a new step.

/// Step `i` migrates from version `i` to `i + 1`.
pub const STEPS: &[&str] = &[FIRST];

/// Returns the schema version that this program reads and writes.
pub fn version() -> i64 {
    STEPS.len() as i64
}

const FIRST: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE prompts (
    id {id},
    key TEXT NOT NULL UNIQUE,
    messages TEXT NOT NULL,
    columns TEXT NOT NULL
);

CREATE TABLE candidates (
    id {id},
    prompt BIGINT NOT NULL REFERENCES prompts (id),
    source TEXT NOT NULL,
    text TEXT NOT NULL,
    digest TEXT NOT NULL,
    tokens BIGINT,
    UNIQUE (prompt, source, digest),
    UNIQUE (id, prompt)
);

CREATE TABLE pairs (
    id {id},
    prompt BIGINT NOT NULL REFERENCES prompts (id),
    a BIGINT NOT NULL,
    b BIGINT NOT NULL,
    low BIGINT NOT NULL,
    high BIGINT NOT NULL,
    overlap BIGINT NOT NULL CHECK (overlap >= 1),
    repeat_of BIGINT UNIQUE REFERENCES pairs (id),
    reason TEXT NOT NULL,
    FOREIGN KEY (a, prompt) REFERENCES candidates (id, prompt),
    FOREIGN KEY (b, prompt) REFERENCES candidates (id, prompt),
    CHECK (low < high)
);

CREATE UNIQUE INDEX pairs_once ON pairs (low, high) WHERE repeat_of IS NULL;

CREATE TABLE annotators (
    id {id},
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('person', 'reward', 'judge', 'command')),
    token_hash TEXT UNIQUE,
    detail TEXT NOT NULL
);

CREATE TABLE votes (
    id {id},
    pair BIGINT NOT NULL REFERENCES pairs (id),
    annotator BIGINT NOT NULL REFERENCES annotators (id),
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'both_bad', 'skip')),
    strength BIGINT CHECK (strength BETWEEN 1 AND 3),
    swapped BIGINT NOT NULL CHECK (swapped IN (0, 1)),
    seconds DOUBLE PRECISION,
    note TEXT,
    flagged BIGINT NOT NULL CHECK (flagged IN (0, 1)),
    ratings TEXT NOT NULL,
    edited TEXT,
    detail TEXT NOT NULL,
    created TEXT NOT NULL,
    undone BIGINT NOT NULL DEFAULT 0 CHECK (undone IN (0, 1)),
    request TEXT,
    UNIQUE (annotator, request)
);

CREATE UNIQUE INDEX votes_once ON votes (pair, annotator) WHERE undone = 0;

CREATE TABLE leases (
    annotator BIGINT PRIMARY KEY REFERENCES annotators (id),
    pair BIGINT NOT NULL REFERENCES pairs (id),
    swapped BIGINT NOT NULL CHECK (swapped IN (0, 1)),
    since BIGINT NOT NULL
);

";
