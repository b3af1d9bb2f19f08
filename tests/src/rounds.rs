//! How long callers race freely: a short form for every day, and a long one for whoever asks for it.
//!
//! `RACE_ROUNDS=1000 cargo xtask test --test it -- races:: claims:: crashes:: mint::race:: resolver_cache::` is the long form
//! of all of them.

/// The variable that asks for the long form: a number of rounds.
const RACE_ROUNDS: &str = "RACE_ROUNDS";

/// How many rounds there are: as many as were asked for, or else `short`.
///
/// # Panics
/// If something was asked for that is no number.
pub fn rounds(short: usize) -> usize {
    let asked_for = std::env::var_os(RACE_ROUNDS);
    let number = |text: std::ffi::OsString| text.to_str().and_then(|text| text.parse().ok());
    asked_for.map_or(short, |text| number(text).expect("RACE_ROUNDS is a number of rounds"))
}

/// Whether the long form was asked for.
pub fn is_long() -> bool {
    std::env::var_os(RACE_ROUNDS).is_some()
}
