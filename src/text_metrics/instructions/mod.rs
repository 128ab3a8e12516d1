//! Instructions whose observance a program can verify: the 25 kinds of IFEval (Zhou et al. 2023, arXiv 2311.07911).
//!
//! An answer is judged strictly as it is, or loosely: also without its first line, its last line or both, and without asterisks,
//! because models introduce what they write and emphasise it. `read`: an instruction from its name and arguments. `check`: whether an
//! answer follows it. `segments`: sentences and words.
//!
//! Two kinds depend on models of language in the original. Sentences are split by rules here and by Punkt there; a language is
//! recognised by another program. Keywords are plain text, not patterns.

mod check;
mod read;
mod segments;

pub use read::InstructionError;

/// How a number has to compare with the one that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Fewer than this.
    LessThan(usize),
    /// This many or more.
    AtLeast(usize),
}

impl Amount {
    fn holds(self, found: usize) -> bool {
        match self {
            Self::LessThan(n) => found < n,
            Self::AtLeast(n) => found >= n,
        }
    }
}

/// An instruction of IFEval. Its name there is in the comment of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// keywords:existence: all of these occur, in any case.
    Keywords(Vec<String>),
    /// keywords:frequency: this occurs so often, in any case.
    KeywordFrequency(String, Amount),
    /// keywords:forbidden_words: none of these occurs as a word, in any case.
    ForbiddenWords(Vec<String>),
    /// keywords:letter_frequency: this character occurs so often, in any case.
    LetterFrequency(char, Amount),
    /// language:response_language: the answer is in the language with this code of ISO 639-1.
    Language(String),
    /// length_constraints:number_sentences
    Sentences(Amount),
    /// length_constraints:number_paragraphs: exactly so many, separated by `***`.
    Paragraphs(usize),
    /// length_constraints:number_words
    Words(Amount),
    /// length_constraints:nth_paragraph_first_word: exactly so many paragraphs, separated by empty lines, and the one with this number
    /// begins with this word.
    ParagraphFirstWord {
        /// Number of paragraphs.
        paragraphs: usize,
        /// The paragraph, counted from 1.
        paragraph: usize,
        /// Its first word.
        word: String,
    },
    /// detectable_content:number_placeholders: at least so many texts in square brackets.
    Placeholders(usize),
    /// detectable_content:postscript: there is one with this mark.
    Postscript(String),
    /// detectable_format:number_bullet_lists: exactly so many lines that begin with `*` or `-`.
    Bullets(usize),
    /// detectable_format:constrained_response: one of three fixed answers.
    ConstrainedResponse,
    /// detectable_format:number_highlighted_sections: at least so many texts between asterisks.
    Highlights(usize),
    /// detectable_format:multiple_sections: at least so many sections, whose titles are this word and a number.
    Sections(String, usize),
    /// detectable_format:json_format: all of it is JSON, in a fenced block or not.
    Json,
    /// detectable_format:title: there is one in double angular brackets.
    Title,
    /// combination:two_responses: two different answers, separated by `******`.
    TwoResponses,
    /// combination:repeat_prompt: the answer begins with this text.
    RepeatPrompt(String),
    /// startend:end_checker: the answer ends with this text.
    End(String),
    /// change_case:capital_word_frequency: so many words in capital letters.
    CapitalWords(Amount),
    /// change_case:english_capital: English in capital letters.
    EnglishCapital,
    /// change_case:english_lowercase: English in small letters.
    EnglishLowercase,
    /// punctuation:no_comma
    NoComma,
    /// startend:quotation: all of it is between double quotation marks.
    Quotation,
}

/// Returns the code of ISO 639-1 of a text's language; `None` if it cannot be told.
pub type LanguageDetector<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Returns for each instruction whether the answer as it is follows it. An empty answer follows none.
pub fn follow_strictly(instructions: &[Instruction], answer: &str, language: LanguageDetector) -> Vec<bool> {
    instructions.iter().map(|one| !answer.trim().is_empty() && one.is_followed(answer, language)).collect()
}

/// Returns for each instruction whether the answer follows it as it is, or without its first line, its last line, both, or asterisks.
pub fn follow_loosely(instructions: &[Instruction], answer: &str, language: LanguageDetector) -> Vec<bool> {
    let lines: Vec<&str> = answer.split('\n').collect();
    let joined = |lines: &[&str]| lines.join("\n").trim().to_string();
    let inner = if lines.len() > 2 { &lines[1..lines.len() - 1] } else { &[] };
    let parts = [answer.to_string(), joined(&lines[1..]), joined(&lines[..lines.len() - 1]), joined(inner)];
    let versions: Vec<String> = parts.iter().flat_map(|part| [part.clone(), part.replace('*', "")]).collect();
    let follows = |one: &Instruction| versions.iter().any(|v| !v.trim().is_empty() && one.is_followed(v, language));
    instructions.iter().map(follows).collect()
}

#[cfg(test)]
mod tests;
