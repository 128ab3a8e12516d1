//! Holds the state of the terminal screen and decides what a key does. Pure, so that it can be tested without a
//! terminal.

use crate::label::people::request::{DeskError, DeskRequest, DeskResponse};
use crate::label::people::screen::{ScreenTask, ScreenVote, SideChoice};
use crate::label::people::task::{LabelProgress, TaskRefusal};
use crate::label::record::answer::JsonMap;
use crate::label::record::settings::ProjectSettings;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;
use std::time::Instant;

/// What the event loop does after a key.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyAction {
    Stay,
    Ask(DeskRequest),
    Leave,
}

/// What keys currently do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyMode {
    Judge,
    /// Keys write a note.
    Note,
    /// Keys write a better answer.
    Edit,
    /// Digits rate the answers, criterion by criterion.
    Rate,
    Help,
    Guidelines,
}

/// A vote in preparation: everything except the choice.
#[derive(Debug, Clone, Default)]
pub struct VoteDraft {
    pub note: String,
    pub edited: String,
    pub flagged: bool,
    pub strength: Option<i64>,
    ratings: JsonMap,
    /// Position of the next rating: criterion `at / 2`, side `at % 2` (left, right).
    pub at: usize,
}

impl VoteDraft {
    /// Returns the rating of one side (`left` or `right`) by a criterion; `None` if it has none.
    pub fn rating(&self, criterion: &str, side: &str) -> Option<i64> {
        self.ratings.get(criterion)?.get(side)?.as_i64()
    }

    /// Returns true if any rating is set.
    pub fn is_rated(&self) -> bool {
        !self.ratings.is_empty()
    }

    fn rate(&mut self, criterion: &str, side: &str, rating: Option<i64>) {
        let sides = self.ratings.entry(criterion).or_insert_with(|| Value::Object(JsonMap::new()));
        let Some(sides) = sides.as_object_mut() else { return };
        match rating {
            Some(n) => drop(sides.insert(side.into(), n.into())),
            None => drop(sides.remove(side)),
        }
        self.ratings.retain(|_, sides| sides.as_object().is_some_and(|s| !s.is_empty()));
    }
}

/// The keys of the two answers in ratings.
pub const SIDES: [&str; 2] = ["left", "right"];

/// State of the screen.
pub struct TerminalScreen {
    pub settings: ProjectSettings,
    pub task: Option<ScreenTask>,
    wait: bool,
    pub progress: LabelProgress,
    pub draft: VoteDraft,
    pub mode: KeyMode,
    pub scroll: u16,
    /// Message for the person: what went wrong.
    pub news: Option<String>,
    since: Instant,
    /// The last vote that was sent, until it is acknowledged. Sent again, it keeps its request id.
    pending: Option<ScreenVote>,
}

impl TerminalScreen {
    pub fn new(settings: ProjectSettings) -> Self {
        Self {
            settings,
            task: None,
            wait: false,
            progress: LabelProgress { mine: 0, given: 0, wanted: 0 },
            draft: VoteDraft::default(),
            mode: KeyMode::Judge,
            scroll: 0,
            news: None,
            since: Instant::now(),
            pending: None,
        }
    }

    /// Returns true if other people hold all remaining tasks.
    pub fn waits(&self) -> bool {
        self.task.is_none() && self.wait
    }

    /// Returns the seconds since the task appeared.
    pub fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// Takes over the response of the desk.
    pub fn update(&mut self, turn: Result<DeskResponse, DeskError>) {
        match turn {
            Ok(DeskResponse { task, wait, progress }) => {
                self.pending = None;
                let before = task.as_ref().and_then(|t| t.before.clone());
                self.draft = before.map_or_else(VoteDraft::default, |b| VoteDraft {
                    note: b.note.unwrap_or_default(),
                    edited: b.edited.unwrap_or_default(),
                    flagged: b.flagged,
                    strength: b.strength,
                    ratings: b.ratings,
                    at: 0,
                });
                (self.task, self.wait, self.progress) = (task, wait, progress);
                (self.scroll, self.mode, self.news) = (0, KeyMode::Judge, None);
                self.since = Instant::now();
            }
            Err(no) => {
                self.news = Some(match no {
                    DeskError::Invalid(why) => why,
                    DeskError::Refused(TaskRefusal::NothingGiven) => "there is nothing to undo".into(),
                    DeskError::Refused(TaskRefusal::Taken) => {
                        "others have judged this task meanwhile; press r for another".into()
                    }
                    DeskError::Refused(TaskRefusal::NotYours) => {
                        "this task is not yours any more; press r for another".into()
                    }
                    DeskError::NotSaved(e) => format!("{}; the same key sends it again", e.message()),
                });
            }
        }
    }

    /// Handles a key; returns what to do next.
    pub fn key(&mut self, key: KeyEvent) -> KeyAction {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return KeyAction::Leave;
        }
        match self.mode {
            KeyMode::Note | KeyMode::Edit => self.write(key),
            KeyMode::Rate => self.rate(key.code),
            KeyMode::Help | KeyMode::Guidelines => {
                self.mode = KeyMode::Judge;
                KeyAction::Stay
            }
            KeyMode::Judge => self.judge(key.code),
        }
    }

    fn write(&mut self, key: KeyEvent) -> KeyAction {
        let text = if self.mode == KeyMode::Note { &mut self.draft.note } else { &mut self.draft.edited };
        match key.code {
            KeyCode::Esc => self.mode = KeyMode::Judge,
            KeyCode::Enter => text.push('\n'),
            KeyCode::Backspace => drop(text.pop()),
            KeyCode::Char('u') if key.modifiers.contains(KeyModifiers::CONTROL) => text.clear(),
            KeyCode::Char(c) if !key.modifiers.contains(KeyModifiers::CONTROL) => text.push(c),
            _ => {}
        }
        KeyAction::Stay
    }

    fn rate(&mut self, code: KeyCode) -> KeyAction {
        let cells = 2 * self.settings.criteria.len();
        let at = self.draft.at;
        let criterion = &self.settings.criteria[at / 2];
        let side = SIDES[at % 2];
        match code {
            KeyCode::Esc | KeyCode::Enter | KeyCode::Char('c') => self.mode = KeyMode::Judge,
            KeyCode::Tab | KeyCode::Right => self.draft.at = (at + 1) % cells,
            KeyCode::BackTab | KeyCode::Left => self.draft.at = (at + cells - 1) % cells,
            KeyCode::Down | KeyCode::Char('j') => self.draft.at = (at + 2) % cells,
            KeyCode::Up | KeyCode::Char('k') => self.draft.at = (at + cells - 2) % cells,
            KeyCode::Backspace | KeyCode::Delete => self.draft.rate(&criterion.name, side, None),
            KeyCode::Char(digit @ '0'..='9') => {
                // 0 is the tenth key of the row.
                let n = digit.to_digit(10).filter(|n| *n > 0).unwrap_or(10).into();
                if n <= criterion.best {
                    self.draft.rate(&criterion.name, side, Some(n));
                    self.draft.at = (at + 1) % cells;
                }
            }
            _ => {}
        }
        KeyAction::Stay
    }

    fn judge(&mut self, code: KeyCode) -> KeyAction {
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return KeyAction::Leave,
            KeyCode::Char('u') => return KeyAction::Ask(DeskRequest::Undo),
            KeyCode::Char('r') => return KeyAction::Ask(DeskRequest::Next),
            KeyCode::Char('?') => self.mode = KeyMode::Help,
            KeyCode::Char('g') => self.mode = KeyMode::Guidelines,
            KeyCode::Down | KeyCode::Char('j') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll = self.scroll.saturating_add(10),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            _ if self.task.is_none() => {}
            KeyCode::Char('1') => return self.vote(SideChoice::Left),
            KeyCode::Char('2') => return self.vote(SideChoice::Right),
            KeyCode::Char('t') => return self.vote(SideChoice::Tie),
            KeyCode::Char('b') => return self.vote(SideChoice::BothBad),
            KeyCode::Char('s') => return self.vote(SideChoice::Skip),
            KeyCode::Char('f') => self.draft.flagged = !self.draft.flagged,
            KeyCode::Char('n') => self.mode = KeyMode::Note,
            KeyCode::Char('e') if self.settings.edit => self.mode = KeyMode::Edit,
            KeyCode::Char('c') if !self.settings.criteria.is_empty() => self.mode = KeyMode::Rate,
            KeyCode::Char('m') if self.settings.strength => {
                self.draft.strength = match self.draft.strength {
                    Some(3) => None,
                    other => Some(other.unwrap_or(0) + 1),
                };
            }
            _ => {}
        }
        KeyAction::Stay
    }

    fn vote(&mut self, choice: SideChoice) -> KeyAction {
        let Some(task) = &self.task else { return KeyAction::Stay };
        let again =
            self.pending.as_ref().filter(|b| b.task == task.id && b.choice == choice).map(|b| b.request.clone());
        let one = matches!(choice, SideChoice::Left | SideChoice::Right);
        let text = |text: &String| Some(text.clone()).filter(|t| !t.trim().is_empty());
        let ballot = ScreenVote {
            task: task.id,
            choice,
            strength: self.draft.strength.filter(|_| one),
            ratings: self.draft.ratings.clone(),
            note: text(&self.draft.note),
            flagged: self.draft.flagged,
            edited: text(&self.draft.edited),
            seconds: Some(self.seconds()),
            request: again.unwrap_or_else(request),
        };
        self.pending = Some(ballot.clone());
        KeyAction::Ask(DeskRequest::Vote(ballot))
    }
}

/// Creates a random request id for a vote.
fn request() -> String {
    use rand::Rng;
    format!("{:016x}{:016x}", rand::rng().next_u64(), rand::rng().next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::people::screen::UndoneVote;
    use crate::label::record::answer::StoredPrompt;
    use crate::label::record::settings::Criterion;
    use serde_json::json;

    fn turn(before: Option<UndoneVote>) -> DeskResponse {
        let prompt = StoredPrompt { id: 1, key: "k".into(), messages: json!([]), columns: JsonMap::new() };
        let task = ScreenTask { id: 5, prompt, left: "L".into(), right: "R".into(), before };
        DeskResponse { task: Some(task), wait: false, progress: LabelProgress { mine: 1, given: 1, wanted: 9 } }
    }

    fn press(screen: &mut TerminalScreen, keys: &str) -> KeyAction {
        let key = |c| KeyEvent::from(if c == '\u{1b}' { KeyCode::Esc } else { KeyCode::Char(c) });
        keys.chars().map(|c| screen.key(key(c))).last().unwrap()
    }

    fn screen() -> TerminalScreen {
        let mut screen = TerminalScreen::new(ProjectSettings { strength: true, ..ProjectSettings::default() });
        screen.update(Ok(turn(None)));
        screen
    }

    #[test]
    fn keys_are_those_of_the_page() {
        for (keys, choice) in [
            ("1", SideChoice::Left),
            ("2", SideChoice::Right),
            ("t", SideChoice::Tie),
            ("b", SideChoice::BothBad),
            ("s", SideChoice::Skip),
        ] {
            let KeyAction::Ask(DeskRequest::Vote(ballot)) = press(&mut screen(), keys) else { panic!("{keys}") };
            assert_eq!((ballot.task, ballot.choice, ballot.flagged), (5, choice, false));
        }
        let KeyAction::Ask(DeskRequest::Vote(all)) = press(&mut screen(), "fmmnwhy 1?\u{1b}ebetter\u{1b}2") else {
            panic!()
        };
        assert_eq!((all.flagged, all.strength, all.note.as_deref()), (true, Some(2), Some("why 1?")));
        assert_eq!((all.edited.as_deref(), all.choice), (Some("better"), SideChoice::Right));
        let KeyAction::Ask(DeskRequest::Vote(tie)) = press(&mut screen(), "mt") else { panic!() };
        assert_eq!(tie.strength, None);
        assert_eq!(press(&mut screen(), "u"), KeyAction::Ask(DeskRequest::Undo));
        assert_eq!(press(&mut screen(), "?1"), KeyAction::Stay);
        assert_eq!(press(&mut screen(), "q"), KeyAction::Leave);
    }

    #[test]
    fn digits_rate_one_answer_after_the_other() {
        let criterion = |name: &str, best| Criterion { name: name.into(), best };
        let criteria = vec![criterion("right", 5), criterion("kind", 10)];
        let mut s = TerminalScreen::new(ProjectSettings { criteria, ..ProjectSettings::default() });
        s.update(Ok(turn(None)));
        // 9 exceeds the first criterion's best rating and is ignored; the 0 key rates 10 for the second.
        let KeyAction::Ask(DeskRequest::Vote(vote)) = press(&mut s, "c94250\u{1b}1") else { panic!() };
        let said = json!({ "right": { "left": 4, "right": 2 }, "kind": { "left": 5, "right": 10 } });
        assert_eq!((Value::Object(vote.ratings), vote.choice), (said, SideChoice::Left));
        s.update(Ok(turn(None)));
        press(&mut s, "c3");
        s.key(KeyEvent::from(KeyCode::Left));
        s.key(KeyEvent::from(KeyCode::Backspace));
        let KeyAction::Ask(DeskRequest::Vote(vote)) = press(&mut s, "c2") else { panic!() };
        assert_eq!(vote.ratings, JsonMap::new());
    }

    #[test]
    fn a_vote_that_was_not_saved_keeps_its_name_and_an_undone_one_its_words() {
        let mut s = screen();
        let KeyAction::Ask(DeskRequest::Vote(first)) = press(&mut s, "1") else { panic!() };
        s.update(Err(DeskError::NotSaved(crate::error::Error::user("the disk is full"))));
        assert!(s.news.as_deref().is_some_and(|n| n.contains("the disk is full")));
        let KeyAction::Ask(DeskRequest::Vote(again)) = press(&mut s, "1") else { panic!() };
        assert_eq!(first.request, again.request);
        let before = UndoneVote {
            choice: SideChoice::Left,
            strength: Some(3),
            ratings: JsonMap::new(),
            note: Some("n".into()),
            flagged: true,
            edited: None,
        };
        s.update(Ok(turn(Some(before))));
        let KeyAction::Ask(DeskRequest::Vote(new)) = press(&mut s, "2") else { panic!() };
        assert_eq!((new.note.as_deref(), new.flagged, new.strength), (Some("n"), true, Some(3)));
        assert_ne!(new.request, first.request);
    }
}
