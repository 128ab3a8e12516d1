//! Reads instructions as IFEval's files have them: a name, and a map of arguments in which unused ones are null.

use super::{Amount, Instruction};
use serde_json::{Map, Value};

/// Why an instruction cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstructionError {
    /// There is no instruction of this name.
    #[error("there is no instruction `{0}`")]
    Unknown(String),
    /// An argument is missing or has another type.
    #[error("{name}: `{argument}` must be {expected}")]
    Argument {
        /// The instruction.
        name: String,
        /// The argument.
        argument: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

struct Arguments<'a> {
    name: &'a str,
    values: &'a Map<String, Value>,
}

impl Instruction {
    /// Reads an instruction. Arguments that the kind does not have are ignored, as files list those of all kinds.
    pub fn read(name: &str, arguments: &Map<String, Value>) -> Result<Self, InstructionError> {
        let get = Arguments { name, values: arguments };
        Ok(match name {
            "keywords:existence" => Self::Keywords(get.texts("keywords")?),
            "keywords:frequency" => {
                Self::KeywordFrequency(get.text("keyword")?.trim().into(), get.amount("relation", "frequency")?)
            }
            "keywords:forbidden_words" => Self::ForbiddenWords(get.texts("forbidden_words")?),
            "keywords:letter_frequency" => {
                Self::LetterFrequency(get.letter("letter")?, get.amount("let_relation", "let_frequency")?)
            }
            "language:response_language" => Self::Language(get.text("language")?),
            "length_constraints:number_sentences" => Self::Sentences(get.amount("relation", "num_sentences")?),
            "length_constraints:number_paragraphs" => Self::Paragraphs(get.number("num_paragraphs")?),
            "length_constraints:number_words" => Self::Words(get.amount("relation", "num_words")?),
            "length_constraints:nth_paragraph_first_word" => Self::ParagraphFirstWord {
                paragraphs: get.number("num_paragraphs")?,
                paragraph: get.number("nth_paragraph")?,
                word: get.text("first_word")?.to_lowercase(),
            },
            "detectable_content:number_placeholders" => Self::Placeholders(get.number("num_placeholders")?),
            "detectable_content:postscript" => Self::Postscript(get.text("postscript_marker")?.trim().into()),
            "detectable_format:number_bullet_lists" => Self::Bullets(get.number("num_bullets")?),
            "detectable_format:constrained_response" => Self::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => Self::Highlights(get.number("num_highlights")?),
            "detectable_format:multiple_sections" => {
                Self::Sections(get.text("section_spliter")?.trim().into(), get.number("num_sections")?)
            }
            "detectable_format:json_format" => Self::Json,
            "detectable_format:title" => Self::Title,
            "combination:two_responses" => Self::TwoResponses,
            "combination:repeat_prompt" => Self::RepeatPrompt(get.text("prompt_to_repeat")?),
            "startend:end_checker" => Self::End(get.text("end_phrase")?.trim().into()),
            "change_case:capital_word_frequency" => {
                Self::CapitalWords(get.amount("capital_relation", "capital_frequency")?)
            }
            "change_case:english_capital" => Self::EnglishCapital,
            "change_case:english_lowercase" => Self::EnglishLowercase,
            "punctuation:no_comma" => Self::NoComma,
            "startend:quotation" => Self::Quotation,
            unknown => return Err(InstructionError::Unknown(unknown.to_string())),
        })
    }
}

impl Arguments<'_> {
    fn expected<T>(&self, argument: &'static str, expected: &'static str) -> Result<T, InstructionError> {
        Err(InstructionError::Argument { name: self.name.to_string(), argument, expected })
    }

    fn text(&self, argument: &'static str) -> Result<String, InstructionError> {
        match self.values.get(argument).and_then(Value::as_str) {
            Some(text) if !text.is_empty() => Ok(text.to_string()),
            _ => self.expected(argument, "a text"),
        }
    }

    fn texts(&self, argument: &'static str) -> Result<Vec<String>, InstructionError> {
        let texts = self.values.get(argument).and_then(Value::as_array);
        let texts: Option<Vec<String>> =
            texts.and_then(|list| list.iter().map(|v| v.as_str().map(String::from)).collect());
        match texts {
            Some(texts) if !texts.is_empty() => Ok(texts),
            _ => self.expected(argument, "a list of texts"),
        }
    }

    /// Reads a number; files that passed through a table have floats.
    fn number(&self, argument: &'static str) -> Result<usize, InstructionError> {
        match self.values.get(argument).and_then(Value::as_f64) {
            Some(n) if n >= 0.0 && n.fract() == 0.0 && n < 1e9 => Ok(n as usize),
            _ => self.expected(argument, "a whole number"),
        }
    }

    fn letter(&self, argument: &'static str) -> Result<char, InstructionError> {
        let text = self.text(argument)?;
        let mut letters = text.trim().chars();
        match (letters.next(), letters.next()) {
            (Some(letter), None) => Ok(letter.to_lowercase().next().unwrap_or(letter)),
            _ => self.expected(argument, "one character"),
        }
    }

    fn amount(&self, relation: &'static str, number: &'static str) -> Result<Amount, InstructionError> {
        let n = self.number(number)?;
        match self.values.get(relation).and_then(Value::as_str) {
            Some("less than") => Ok(Amount::LessThan(n)),
            Some("at least") => Ok(Amount::AtLeast(n)),
            _ => self.expected(relation, "`less than` or `at least`"),
        }
    }
}
