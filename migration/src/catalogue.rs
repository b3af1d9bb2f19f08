//! What a database looks like, in PostgreSQL's own words.

/// A query that gives one text for each table, column, index, constraint, enum type, function and trigger of the schema
/// `public`, and one for the order of each table's columns; sorted bytewise.
///
/// A text is `kind name: definition`, where kind and name together occur once:
///
/// ```text
/// column task_run.id: text NOT NULL COLLATE C
/// index task_run.uq_task_run_friendly_id: CREATE UNIQUE INDEX uq_task_run_friendly_id ON public.task_run USING btree (friendly_id)
/// ```
///
/// An index that is not usable ends with ` INVALID`, a trigger that is switched off with ` DISABLED`. What belongs to an
/// extension is left out. Two databases with the same schema give the same texts, on any server from version 15 on, if
/// the search path is `public`: PostgreSQL writes the schema of a name only where the path does not lead to it.
pub const CATALOGUE: &str = include_str!("catalogue.sql");
