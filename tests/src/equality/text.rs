//! What two answers are compared by.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Gives the ids in the answers of one store names that do not depend on the store.
///
/// The ids of runs, batches and waitpoints have names of their own. Whatever else looks like an id, because a store has
/// minted it, is numbered as it turns up: two stores that say the same give it the same number.
#[derive(Debug, Default)]
pub(super) struct Text {
    seen: HashMap<String, usize>,
}

/// What becomes of an id that has not turned up before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    Numbered,
    /// The rows of a database stand in no order that means anything.
    Alike,
}

impl Text {
    /// An answer, with the same names for the same things.
    pub(super) fn of_answer(&mut self, answer: &str, names: &BTreeMap<String, String>) -> String {
        self.named(&without_tokens(answer), names, Unseen::Numbered)
    }

    /// A row of a database, likewise.
    pub(super) fn of_row(&mut self, row: &str, names: &BTreeMap<String, String>) -> String {
        self.named(row, names, Unseen::Alike)
    }

    fn named(&mut self, text: &str, names: &BTreeMap<String, String>, unseen: Unseen) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(|character: char| character.is_ascii_alphanumeric()) {
            out.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = rest.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let uuid = rest.get(..36).filter(|text| is_uuid(text));
            let word = uuid.unwrap_or(&rest[..end]);
            rest = &rest[word.len()..];
            if let Some(name) = names.get(word) {
                out.push_str(name);
            } else if uuid.is_some() || is_id(word) {
                let next = self.seen.len();
                match (self.seen.get(word), unseen) {
                    (Some(number), _) => write!(out, "<id {number}>").expect("a string takes it"),
                    (None, Unseen::Numbered) => {
                        self.seen.insert(word.to_owned(), next);
                        write!(out, "<id {next}>").expect("a string takes it");
                    }
                    (None, Unseen::Alike) => out.push_str("<id>"),
                }
            } else {
                out.push_str(word);
            }
        }
        out.push_str(rest);
        out
    }
}

/// Tokens say which database was written, and so differ.
fn without_tokens(answer: &str) -> String {
    let mut out = String::with_capacity(answer.len());
    let mut in_token = false;
    for line in answer.lines() {
        if line.trim_end().ends_with("Token {") {
            in_token = true;
        } else if in_token {
            in_token = !matches!(line.trim(), "}" | "},");
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// A cuid or a KSUID.
fn is_id(word: &str) -> bool {
    let has_digit = word.bytes().any(|byte| byte.is_ascii_digit());
    (word.len() == 25 && word.starts_with('c') && has_digit) || (word.len() == 27 && has_digit)
}

fn is_uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(place, byte)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Where two texts part, with the lines around.
pub(super) fn difference(single: &str, split: &str) -> String {
    let (single, split): (Vec<&str>, Vec<&str>) = (single.lines().collect(), split.lines().collect());
    let same = single.iter().zip(&split).take_while(|(left, right)| left == right).count();
    let around = |lines: &[&str]| {
        let from = same.saturating_sub(6);
        lines[from.min(lines.len())..(same + 8).min(lines.len())].join("\n")
    };
    format!("from line {}:\n--- one database:\n{}\n--- two databases:\n{}", same + 1, around(&single), around(&split))
}
