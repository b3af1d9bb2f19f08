//! The table, for people and for programs.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value as Json, json};

use crate::{
    bed::Transport,
    measure::{Compared, Medians},
};

/// What is aimed at: so much of what the same costs by hand.
const AIM: f64 = 1.2;

/// One line.
pub(crate) struct Row {
    pub(crate) operation: &'static str,
    pub(crate) database: &'static str,
    pub(crate) transport: Transport,
    pub(crate) compared: Compared,
    pub(crate) medians: Medians,
}

pub(crate) struct Report {
    /// The servers, for people.
    pub(crate) servers: String,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn to_json(&self) -> Json {
        let rows: Vec<Json> = self
            .rows
            .iter()
            .map(|Row { operation, database, transport, compared, medians }| {
                json!({
                    "operation": operation,
                    "database": database,
                    "transport": transport.name(),
                    "compared": match compared {
                        Compared::Work => "the same work",
                        Compared::HitWithQuery => "a hit with the query it saves",
                    },
                    "ours": medians.ours,
                    "baseline": medians.sqlx,
                    "sea_orm": medians.sea_orm,
                    "ratio": medians.to_sqlx,
                    "ratio_to_sea_orm": medians.to_sea_orm,
                    "measurements": medians.count,
                })
            })
            .collect();
        json!({
            "servers": self.servers,
            "durability": "off",
            "baseline": "sqlx",
            "unit": "nanoseconds",
            "statistic": "median; ratios are medians of the ratios of neighbouring measurements",
            "aim": AIM,
            "rows": rows,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "operation",
            "database",
            "over",
            "ours µs",
            "sqlx µs",
            "sea-orm µs",
            "ours/sqlx",
            "ours/sea-orm",
        ]);
        for Row { operation, database, transport, compared: _, medians } in &self.rows {
            table.add_row([
                (*operation).to_owned(),
                (*database).to_owned(),
                transport.name().to_owned(),
                micros(medians.ours),
                micros(medians.sqlx),
                micros(medians.sea_orm),
                ratio(medians.to_sqlx),
                ratio(medians.to_sea_orm),
            ]);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        writeln!(f, "{}, durability off, one connection each, statements prepared; medians.", self.servers)?;
        let (hits, work): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|row| row.compared == Compared::HitWithQuery);
        if !hits.is_empty() {
            writeln!(f, "A (hit) is an answer that was kept; its ratios compare it with the query it saves.")?;
        }
        let above = work.iter().filter(|row| row.medians.to_sqlx > AIM).count();
        match (above, work.len()) {
            (_, 0) => write!(f, "Nothing here was measured beside the same work by hand."),
            (0, _) => write!(f, "Every operation is within {AIM} times the same work by hand."),
            (above, all) => write!(f, "Above {AIM} times the same work by hand: {above} of {all}."),
        }
    }
}

/// Microseconds, for people; what is far below one keeps digits that tell something.
fn micros(nanoseconds: f64) -> String {
    let micros = nanoseconds / 1e3;
    if micros < 10.0 { format!("{micros:.2}") } else { format!("{micros:.0}") }
}

/// A ratio, for people.
pub(crate) fn ratio(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.2}") }
}
