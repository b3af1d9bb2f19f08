//! The fence of a split that was ended: nothing is born in the run-ops database any more.
//!
//! A process that was started before the end would go on creating. So the database itself refuses, by a trigger on each
//! table whose rows are alive when they are born, for as long as the identity row says when the split was ended. Whoever
//! ends it keeps these tables from writers while it counts and says so; what was held off meanwhile is refused.
//!
//! The identity row is not locked: a birth costs one read of a table of one row. In READ COMMITTED, which is what the store
//! uses, that read sees all that was committed before it began, and it begins after the statement has its lock on the
//! table. A transaction of another isolation sees what was committed before its own first statement; there the row is read
//! `FOR SHARE`, which fails (40001) if it has changed since.

use crate::identity::TABLE;

/// The tables whose rows are alive when they are born. The store locks the same ones.
pub(crate) const FENCED: &[&str] = &["task_run", "batch_task_run", "waitpoint"];

/// The function of all triggers. The store knows the error by its code.
///
/// The identity's table is named with its schema: whoever fires a trigger, such as a tool that restores rows, may have
/// another search path than the migrator.
pub(crate) fn create_function_sql() -> String {
    format!(
        r#"DO $create$
BEGIN
    EXECUTE replace($template$
CREATE FUNCTION runseam_refuse_birth() RETURNS trigger LANGUAGE plpgsql AS $function$
DECLARE
    has_ended boolean;
BEGIN
    IF current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        SELECT split_ended_at IS NOT NULL INTO has_ended FROM {{schema}}.{TABLE};
    ELSE
        SELECT split_ended_at IS NOT NULL INTO has_ended FROM {{schema}}.{TABLE} FOR SHARE;
    END IF;
    IF has_ended THEN
        RAISE EXCEPTION USING
            ERRCODE = 'RS001',
            MESSAGE = 'the split was ended: nothing is born in this database any more',
            HINT = 'Restart the process: with the split off, or on to begin a new one.';
    END IF;
    RETURN NULL;
END
$function$
$template$, '{{schema}}', (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = '{TABLE}'::regclass));
END
$create$"#
    )
}

pub(crate) const DROP_FUNCTION: &str = "DROP FUNCTION runseam_refuse_birth()";

/// Before the statement inserts anything, also where it then inserts nothing.
pub(crate) fn create_trigger_sql(table: &str) -> String {
    format!(
        "CREATE TRIGGER \"{}\" BEFORE INSERT ON \"{table}\" \
         FOR EACH STATEMENT EXECUTE FUNCTION runseam_refuse_birth()",
        trigger(table)
    )
}

pub(crate) fn drop_trigger_sql(table: &str) -> String {
    format!("DROP TRIGGER \"{}\" ON \"{table}\"", trigger(table))
}

fn trigger(table: &str) -> String {
    format!("tr_{table}_refuse_birth")
}
