//! Draws the terminal screen: the prompt above, the two answers side by side, the keys below.

use super::state::{KeyMode, SIDES, TerminalScreen};
use crate::characters::{has_right_to_left, is_right_to_left, printable};
use crate::label::record::settings::Criterion;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph, Wrap};
use serde_json::Value;

/// Width in columns below which the answers are shown one above the other.
const NARROW: u16 = 90;

/// Draws the whole screen.
pub fn draw(frame: &mut Frame, screen: &TerminalScreen) {
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(2)]).areas(frame.area());
    let p = &screen.progress;
    let seconds = screen.seconds() as u64;
    let standing =
        format!("{} of {} judged · {} by you · {}:{:02} ", p.given, p.wanted, p.mine, seconds / 60, seconds % 60);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(format!(" {}", plain(&screen.settings.title))).style(bold), top);
    frame.render_widget(Paragraph::new(standing).alignment(Alignment::Right), top);
    match &screen.task {
        Some(_) => task(frame, screen, middle),
        None => {
            let text = if screen.waits() {
                "Others are at work on what is left; ft looks again by itself (r: now)."
            } else {
                "All done, thank you. u takes your last vote back, q leaves."
            };
            frame.render_widget(Paragraph::new(format!("\n{text}")).alignment(Alignment::Center), middle);
        }
    }
    frame.render_widget(Paragraph::new(keys(screen)), bottom);
    match screen.mode {
        KeyMode::Note => window(frame, "Note (Esc goes back)", &format!("{}▏", plain(&screen.draft.note))),
        KeyMode::Edit => window(
            frame,
            "A better answer (Esc goes back, Ctrl-U empties)",
            &format!("{}▏", plain(&screen.draft.edited)),
        ),
        KeyMode::Rate => {
            window(frame, "Ratings (digits; ← → Tab move, Backspace empties, Esc goes back)", &ratings(screen))
        }
        KeyMode::Help => window(frame, "Keys (any key goes back)", HELP),
        KeyMode::Guidelines => {
            let text = &screen.settings.guidelines;
            let text = if text.is_empty() { "none".into() } else { plain(text) };
            window(frame, "Guidelines (any key goes back)", &text);
        }
        KeyMode::Judge => {}
    }
}

const HELP: &str = "1 2      that answer is better\nt        tie\nb        both are bad\ns        skip: somebody else judges it\n\
                    u        undo your last vote\nf        flag it\nn        write a note\ne        write a better answer\n\
                    m        how much better, before you choose\nc        ratings, where the project asks for them\ng        guidelines\nj k ↓ ↑  scroll\nr        look again\nq        leave";

fn task(frame: &mut Frame, screen: &TerminalScreen, area: Rect) {
    let Some(task) = &screen.task else { return };
    let asked = conversation(&task.prompt.messages);
    let rows = asked.lines().map(|l| l.chars().count() / usize::from(area.width.max(8) - 4) + 1).sum::<usize>();
    let height = (rows as u16 + 2).min(area.height / 3).max(3);
    let [prompt, answers] = Layout::vertical([Constraint::Length(height), Constraint::Min(3)]).areas(area);
    let text = Paragraph::new(lines(&asked)).wrap(Wrap { trim: false });
    frame.render_widget(text.block(Block::bordered().border_type(BorderType::Rounded).title(" Prompt ")), prompt);
    let halves = [Constraint::Fill(1), Constraint::Fill(1)];
    // A terminal that reorders right-to-left text does so across the whole line. Side by side, two right-to-left
    // answers would swap places.
    let [left, right] = if area.width < NARROW || has_right_to_left(&task.left) || has_right_to_left(&task.right) {
        Layout::vertical(halves).areas(answers)
    } else {
        Layout::horizontal(halves).areas(answers)
    };
    for (text, title, place) in [(&task.left, " 1 ", left), (&task.right, " 2 ", right)] {
        let block = Block::bordered().border_type(BorderType::Rounded).title(title);
        let text = Paragraph::new(lines(text)).wrap(Wrap { trim: false }).scroll((screen.scroll, 0));
        frame.render_widget(text.block(block), place);
    }
}

fn keys(screen: &TerminalScreen) -> Text<'static> {
    let flag = if screen.draft.flagged { " [flagged]" } else { "" };
    let strength = match screen.draft.strength {
        Some(n) => format!(" [{} better]", ["slightly", "clearly", "far"][(n - 1).clamp(0, 2) as usize]),
        None => String::new(),
    };
    let beside = [
        ("note", !screen.draft.note.is_empty()),
        ("answer", !screen.draft.edited.is_empty()),
        ("ratings", screen.draft.is_rated()),
    ];
    let beside: String = beside.iter().filter(|(_, there)| *there).map(|(name, _)| format!(" [{name}]")).collect();
    let news = screen.news.as_ref().map_or_else(|| format!("{flag}{strength}{beside}"), |n| format!(" {}", plain(n)));
    Text::from(vec![
        Line::styled(news, Style::new().add_modifier(Modifier::REVERSED)),
        Line::from(" 1/2 better  t tie  b both bad  s skip  u undo  f flag  n note  e edit  ? keys  q leave"),
    ])
}

/// Returns one line per criterion, with brackets around the rating that the next digit sets.
fn ratings(screen: &TerminalScreen) -> String {
    let width = screen.settings.criteria.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    let line = |(i, c): (usize, &Criterion)| {
        let side = |(k, side): (usize, &&str)| {
            let (open, close) = if screen.draft.at == 2 * i + k { ('[', ']') } else { (' ', ' ') };
            let rating = screen.draft.rating(&c.name, side).map_or("-".into(), |n| n.to_string());
            format!("  {}: {open}{rating:>2}{close}", k + 1)
        };
        let sides: String = SIDES.iter().enumerate().map(side).collect();
        format!("{:<width$}{sides}   of {}", plain(&c.name), c.best)
    };
    screen.settings.criteria.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn window(frame: &mut Frame, title: &str, text: &str) {
    let area = frame.area();
    let (width, height) = (area.width.saturating_sub(8).min(80), area.height.saturating_sub(4).min(18));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    let block = Block::bordered().border_type(BorderType::Rounded).title(format!(" {title} "));
    frame.render_widget(Paragraph::new(text.to_string()).wrap(Wrap { trim: false }).block(block), place);
}

/// Returns the turns of a prompt as text; a single turn without its role.
fn conversation(messages: &Value) -> String {
    let turns: Vec<&Value> = messages.as_array().into_iter().flatten().collect();
    let text = |m: &Value| m["content"].as_str().map_or_else(|| m["content"].to_string(), String::from);
    match turns.as_slice() {
        [one] => text(one),
        many => many
            .iter()
            .map(|m| format!("{}: {}", m["role"].as_str().unwrap_or("?"), text(m)))
            .collect::<Vec<_>>()
            .join("\n\n"),
    }
}

/// Returns a text for its box: hidden characters are replaced by their code points, and each line is aligned to the
/// side on which its script begins. Terminals that support such scripts reorder the letters of a line themselves.
fn lines(text: &str) -> Text<'static> {
    let line = |line: &str| {
        let side = if is_right_to_left(line) { Alignment::Right } else { Alignment::Left };
        Line::from(line.to_string()).alignment(side)
    };
    plain(text).lines().map(line).collect()
}

/// Returns a text without control characters and tabs, safe to print.
fn plain(text: &str) -> String {
    printable(text).replace('\t', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::people::request::DeskResponse;
    use crate::label::people::screen::ScreenTask;
    use crate::label::people::task::LabelProgress;
    use crate::label::record::answer::{JsonMap, StoredPrompt};
    use crate::label::record::settings::ProjectSettings;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn drawn(width: u16, height: u16) -> String {
        drawn_with("Air \u{1b}[2Jscatters.", "It is a mirror.", width, height)
    }

    fn drawn_with(left: &str, right: &str, width: u16, height: u16) -> String {
        let mut screen = TerminalScreen::new(ProjectSettings::default());
        let messages = json!([{ "role": "user", "content": "Why is the sky blue?" }]);
        let prompt = StoredPrompt { id: 1, key: "k".into(), messages, columns: JsonMap::new() };
        let task = ScreenTask { id: 5, prompt, left: left.into(), right: right.into(), before: None };
        screen.update(Ok(DeskResponse {
            task: Some(task),
            wait: false,
            progress: LabelProgress { mine: 3, given: 4, wanted: 9 },
        }));
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &screen)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn prompt_answers_and_standing_are_on_the_screen_and_codes_are_not() {
        for (width, height) in [(120, 30), (60, 30), (20, 8), (1, 1)] {
            let screen = drawn(width, height);
            assert!(!screen.contains('\u{1b}'));
            if width >= 60 {
                for part in ["Why is the sky blue?", "[2Jscatters.", "It is a mirror.", "4 of 9 judged"] {
                    assert!(screen.contains(part), "{part} in\n{screen}");
                }
            }
        }
    }

    #[test]
    fn answers_from_right_to_left_stand_on_their_side_and_never_change_places() {
        let screen = drawn_with("پہلا جواب", "دوسرا \u{202e}جواب", 120, 30);
        let row =
            |text: &str| screen.lines().position(|l| l.contains(text)).unwrap_or_else(|| panic!("{text} in\n{screen}"));
        assert!(row("پہلا") < row("دوسرا"), "side by side:\n{screen}");
        assert!(screen.contains("دوسرا ⟨U+202E⟩جواب│"), "not on the right:\n{screen}");
        assert!(drawn_with("one", "two", 120, 30).lines().any(|l| l.contains("one") && l.contains("two")));
    }
}
