//! What a database looks like, as PostgreSQL's own catalogue has it.

use anyhow::Result;

use crate::{databases::Databases, side::Side};

/// One line for every column, index, constraint and enum label of the schema `public`, in a fixed order. A line begins
/// with its kind and its table or type: `column task_run: 1 id text NOT NULL COLLATE C`.
const QUERY: &str = r#"
SELECT line COLLATE "C" FROM (
    SELECT format(
        'column %s: %s %s %s%s%s%s%s',
        c.relname,
        row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum),
        a.attname,
        format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END,
        ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
        CASE WHEN a.attgenerated <> '' THEN ' GENERATED' ELSE '' END,
        ' COLLATE ' || l.collname
    ) AS line
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
    SELECT format('table %s: %s%s', c.relname, c.relkind, ' WITH ' || c.reloptions::text)
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind NOT IN ('i', 't', 'c')
UNION ALL
    SELECT format('index %s: %s', t.relname, pg_get_indexdef(i.indexrelid))
    FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
    WHERE t.relnamespace = 'public'::regnamespace
UNION ALL
    SELECT format('constraint %s: %s %s', t.relname, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid
    WHERE k.connamespace = 'public'::regnamespace
UNION ALL
    SELECT format('enum %s: %s', t.typname, string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder))
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid
    WHERE t.typnamespace = 'public'::regnamespace GROUP BY t.typname
UNION ALL
    SELECT format('function %s', oid::regprocedure) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
    SELECT format('trigger %s: %s', t.relname, g.tgname)
    FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal
) AS lines ORDER BY 1
"#;

/// Reads the catalogue of one of the databases.
///
/// # Errors
/// If the database cannot be asked.
pub async fn catalogue(databases: &Databases, side: Side) -> Result<Vec<String>> {
    databases.values(side, QUERY).await
}

/// The lines that are in one catalogue only, marked `-` for those of `before` and `+` for those of `after`.
pub fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

/// Checks that two catalogues are the same, and not empty.
///
/// # Panics
/// If they differ; the message lists the lines.
#[track_caller]
pub fn check_same(before: &[String], after: &[String]) {
    assert!(!before.is_empty(), "an empty catalogue says nothing: is the database migrated?");
    let difference = difference(before, after);
    assert!(difference.is_empty(), "the catalogues differ:\n{}", difference.join("\n"));
}
