//! Who changes a row of the control plane tells those who keep answers made of it.
//!
//! Triggers say which rows a statement has changed, on the channel `runseam_control_plane`. A notification is delivered
//! when its transaction commits and not at all if it is rolled back. It is a list such as `ecm1a,ecm2b`: a letter for the
//! table, then what identifies the row; or `*`, which stands for any row. A change of `updated_at` alone is none.
//!
//! No table of runs has such a trigger: transactions that notify commit one after the other.

/// A table whose changes are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notified {
    pub(crate) table: &'static str,
    /// Names the table. The store has the same ones.
    letter: char,
    /// The column whose values before and after the change name the rows; rows without a value are not told.
    pub(crate) key: &'static str,
}

const fn notified(table: &'static str, letter: char, key: &'static str) -> Notified {
    Notified { table, letter, key }
}

pub(super) const NOTIFIED: &[Notified] = &[
    notified("runtime_environment", 'e', "id"),
    notified("project", 'p', "id"),
    notified("organization", 'o', "id"),
    notified("org_member", 'm', "id"),
    notified("user", 'u', "id"),
    notified("background_worker", 'w', "id"),
    notified("background_worker_task", 't', "id"),
    // Answers know a deployment by the worker it deploys.
    notified("worker_deployment", 'd', "worker_id"),
    notified("feature_flag", 'f', "key"),
];

/// What may happen to rows, and what the trigger's function is shown of them.
const EVENTS: [(&str, &str); 4] = [
    ("INSERT", "REFERENCING NEW TABLE AS new_rows"),
    ("UPDATE", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
    ("DELETE", "REFERENCING OLD TABLE AS old_rows"),
    ("TRUNCATE", ""),
];

impl Notified {
    /// A trigger for each event: one that is shown rows cannot have several.
    pub(crate) fn create_sql(&self) -> impl Iterator<Item = String> {
        let Self { table, letter, key } = *self;
        EVENTS.into_iter().map(move |(event, shown)| {
            let name = trigger(table, event);
            format!(
                "CREATE TRIGGER \"{name}\" AFTER {event} ON \"{table}\" {shown} \
                 FOR EACH STATEMENT EXECUTE FUNCTION runseam_notify('{letter}', '{key}')"
            )
        })
    }

    pub(crate) fn drop_sql(&self) -> impl Iterator<Item = String> {
        let table = self.table;
        EVENTS.into_iter().map(move |(event, _)| format!("DROP TRIGGER \"{}\" ON \"{table}\"", trigger(table, event)))
    }
}

fn trigger(table: &str, event: &str) -> String {
    format!("tr_{table}_notify_{}", event.to_lowercase())
}

/// The function of all triggers; they give it the letter of their table and the column of its key.
///
/// A statement is told in one notification, or several where that would be longer than the server takes (8,000 bytes).
/// Above ten, or where a key cannot be told (for it has a comma in it, or is too long), it is `*`. What cannot be told
/// must not fail, for it would take the change with it; only a queue of notifications that is full still does.
///
/// The search path is fixed, for whoever fires a trigger may have another; the transition tables are found in any.
pub(crate) const CREATE_FUNCTION: &str = r#"
CREATE FUNCTION runseam_notify() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    channel CONSTANT text := 'runseam_control_plane';
    letter CONSTANT text := TG_ARGV[0];
    key CONSTANT text := TG_ARGV[1];
    rows text;
    payloads text[];
    payload text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify(channel, '*');
        RETURN NULL;
    END IF;
    rows := CASE TG_OP
        WHEN 'INSERT' THEN format('SELECT %I FROM new_rows', key)
        WHEN 'DELETE' THEN format('SELECT %I FROM old_rows', key)
        ELSE format(
            'SELECT unnest(ARRAY[o.%1$I, n.%1$I]) FROM old_rows o FULL JOIN new_rows n ON n.id = o.id '
            'WHERE to_jsonb(o) - ''updated_at'' IS DISTINCT FROM to_jsonb(n) - ''updated_at''',
            key
        )
    END;
    EXECUTE format(
        'WITH changed (key) AS (SELECT DISTINCT key FROM (%s) AS rows (key) WHERE key IS NOT NULL), '
        'placed AS (SELECT key, sum(octet_length(key) + 2) OVER (ORDER BY key) / 7000 AS place FROM changed) '
        'SELECT array_agg(payload) FROM ('
        '    SELECT CASE WHEN bool_or(strpos(key, '','') > 0) THEN ''*'' ELSE string_agg(%L || key, '','') END '
        '    FROM placed GROUP BY place'
        ') AS payloads (payload)',
        rows, letter
    ) INTO payloads;
    IF cardinality(payloads) > 10 OR EXISTS (SELECT FROM unnest(payloads) AS p WHERE octet_length(p) >= 8000) THEN
        payloads := ARRAY['*'];
    END IF;
    FOREACH payload IN ARRAY coalesce(payloads, ARRAY[]::text[]) LOOP
        PERFORM pg_notify(channel, payload);
    END LOOP;
    RETURN NULL;
END
$function$"#;

pub(crate) const DROP_FUNCTION: &str = "DROP FUNCTION runseam_notify()";
