//! Who changes a row of the control plane tells those who keep answers made of it.
//!
//! Triggers say which rows a statement has changed, on the channel `runseam_control_plane`. A notification is delivered
//! when its transaction commits and not at all if it is rolled back. It is a list such as `ecm1a,ecm2b`: a letter for the
//! table, then what identifies the row; or `*`, which stands for any row.
//!
//! A row counts as changed if one of the columns is that kept answers are made of. All others are written as often, and
//! be as wide, as anybody likes. Some answers tell `updated_at`, too: by itself it says nothing, so it is not among them.
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
    /// The other columns that answers are made of. A test compares them with what the store asks for.
    pub(crate) columns: &'static [&'static str],
}

const fn notified(table: &'static str, letter: char, key: &'static str, columns: &'static [&'static str]) -> Notified {
    Notified { table, letter, key, columns }
}

pub(super) const NOTIFIED: &[Notified] = &[
    notified(
        "runtime_environment",
        'e',
        "id",
        &[
            "slug",
            "type",
            "api_key",
            "branch_name",
            "parent_environment_id",
            "git",
            "archived_at",
            "shortcode",
            "maximum_concurrency_limit",
            "concurrency_limit_burst_factor",
            "paused",
            "pause_source",
            "organization_id",
            "project_id",
            "org_member_id",
            "built_in_environment_variable_overrides",
            "created_at",
        ],
    ),
    notified(
        "project",
        'p',
        "id",
        &[
            "slug",
            "name",
            "external_ref",
            "organization_id",
            "engine",
            "deleted_at",
            "default_worker_group_id",
            "builder_project_id",
            "default_runtime",
        ],
    ),
    notified(
        "organization",
        'o',
        "id",
        &[
            "slug",
            "title",
            "maximum_concurrency_limit",
            "maximum_dev_queue_size",
            "maximum_deployed_queue_size",
            "runs_enabled",
            "feature_flags",
            "api_rate_limiter_config",
            "batch_rate_limit_config",
            "batch_queue_concurrency_config",
            "stream_basin_name",
        ],
    ),
    notified("org_member", 'm', "id", &["user_id"]),
    notified("user", 'u', "id", &["display_name", "name"]),
    notified(
        "background_worker",
        'w',
        "id",
        &["version", "sdk_version", "cli_version", "runtime", "runtime_version", "supports_lazy_attempts"],
    ),
    notified("background_worker_task", 't', "id", &["slug", "file_path", "export_name", "worker_id", "machine_config"]),
    // Answers know a deployment by the worker it deploys.
    notified(
        "worker_deployment",
        'd',
        "worker_id",
        &["friendly_id", "short_code", "version", "runtime", "runtime_version", "git"],
    ),
    notified("feature_flag", 'f', "key", &["value"]),
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
        let Self { table, letter, key, columns } = *self;
        EVENTS.into_iter().map(move |(event, shown)| {
            let name = trigger(table, event);
            let compared = if event == "UPDATE" { columns } else { &[] };
            let compared: String = compared.iter().map(|column| format!(", '{column}'")).collect();
            format!(
                "CREATE TRIGGER \"{name}\" AFTER {event} ON \"{table}\" {shown} \
                 FOR EACH STATEMENT EXECUTE FUNCTION runseam_notify('{letter}', '{key}'{compared})"
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

/// The function of all triggers; they give it the letter of their table and the column of its key, and for updates the other
/// columns that count.
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
    before text;
    after text;
    rows text;
    payloads text[];
    payload text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify(channel, '*');
        RETURN NULL;
    END IF;
    -- A row that has another id has no partner: it counts by its id.
    SELECT string_agg(format('o.%I', name), ', '), string_agg(format('n.%I', name), ', ') INTO before, after
    FROM unnest(ARRAY['id', key] || TG_ARGV[2:]) AS name;
    rows := CASE TG_OP
        WHEN 'INSERT' THEN format('SELECT %I FROM new_rows', key)
        WHEN 'DELETE' THEN format('SELECT %I FROM old_rows', key)
        ELSE format(
            'SELECT unnest(ARRAY[o.%1$I, n.%1$I]) FROM old_rows o FULL JOIN new_rows n ON n.id = o.id '
            'WHERE ROW(%2$s) IS DISTINCT FROM ROW(%3$s)',
            key, before, after
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
